"""Thin scripts, one per lab: parse a config, call fn, print the verdict."""

import sys

if sys.argv[:1] == ["-m"] and not {"-h", "--help"}.isdisjoint(sys.argv):  # as long as Python looks for the script
    from experiments.shared import help

    help.answer(sys.orig_argv[-len(sys.argv)].removeprefix("-m"), sys.argv[1:])
