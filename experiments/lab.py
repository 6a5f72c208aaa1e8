"""Run a lab by its number: python -m experiments.lab 0 [flags]. `LABS` names them."""

import os
import runpy
import signal
import sys
from pathlib import Path

LABS = {path.stem[3:].partition("_")[0]: path.stem for path in sorted(Path(__file__).parent.glob("lab[0-9]*_*.py"))}


def main() -> None:
    number = sys.argv[1] if len(sys.argv) > 1 else ""
    if number in ("-h", "--help"):
        print(f"usage: python -m experiments.lab {{{','.join(LABS)}}} [flags of that lab; its own --help lists them]")
        print("       --page prints what to read, predict, change and write in that lab; --answers its answers too")
        return
    if number not in LABS:
        said = f"there is no lab {number!r}" if number else "which lab?"
        print(f"error: {said}; the labs are {', '.join(LABS)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    try:
        if "--page" in sys.argv:
            from experiments.shared import page

            sys.exit(page.show(number, sys.argv[1:]))
        if not {"-h", "--help"}.isdisjoint(sys.argv):
            from experiments.shared import help

            help.answer(f"experiments.{LABS[number]}", sys.argv[1:])
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # what is being loaded may catch an exception
        runpy.run_module(f"experiments.{LABS[number]}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
