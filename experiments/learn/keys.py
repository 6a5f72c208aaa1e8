"""Single keys from a terminal; whole lines where it has no such mode, as on Windows."""

import contextlib
import queue
import select
import sys
import threading
from collections.abc import Callable, Iterator

KeyReader = Callable[[float], str]
"""the key pressed within so many seconds, "" for none, "q" at the end of the input"""


@contextlib.contextmanager
def keys() -> Iterator[KeyReader]:
    """Yield a reader of keys, and leave the terminal as it was."""
    try:
        import termios
        import tty

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError):
        yield _lines()
        return
    except termios.error:  # pyright: ignore[reportPossiblyUnboundVariable]
        yield _lines()
        return
    try:
        tty.setcbreak(sys.stdin)  # no Enter is needed; Ctrl-C stays Ctrl-C
        yield _pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> str:
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return ""
    import os

    read = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
    return read[:1].lower() if read and read[0] != "\x1b" else "" if read else "q"


def _lines() -> KeyReader:
    waiting: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            waiting.put(line.strip()[:1].lower() or "\n")
        waiting.put("q")

    threading.Thread(target=read, daemon=True).start()

    def key(seconds: float) -> str:
        try:
            return waiting.get(timeout=seconds)
        except queue.Empty:
            return ""

    return key
