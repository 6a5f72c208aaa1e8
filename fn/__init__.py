"""Pure functions over parameter dicts, with every shape and dtype checked as they run.

Importing this package installs the hook that wraps each function of `fn.*` in jaxtyping + beartype.
"""

from jaxtyping import install_import_hook

# The numeric tower lets `lr=1` pass for a float.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

install_import_hook("fn", CHECKER)
