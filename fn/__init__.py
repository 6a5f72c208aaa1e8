"""Pure functions over parameter dicts, with every shape and dtype checked as they run.

Importing this package installs the hook that puts jaxtyping + beartype over each function of `fn.*`, see fn.checks.
"""

from jaxtyping import install_import_hook
from jaxtyping._import_hook import Typechecker

from fn import checks as checks  # before the hook, which it serves


class _Decorator(Typechecker):
    """Has jaxtyping's hook write the decorator itself over a function, not @jaxtyped(typechecker=decorator)."""

    def get_ast(self):
        return super().get_ast().keywords[0].value


_DECORATOR = "fn.checks.remember"
_hook = install_import_hook("fn", _DECORATOR).hook
_hook._typechecker = _Decorator(_DECORATOR)  # pyright: ignore[reportAttributeAccessIssue]
