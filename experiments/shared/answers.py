"""The files that the reader writes: how one is named, begun, and shown beside ours."""

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from experiments.shared.show import console, folded_code, say, wrapped


def shown(file: Path) -> str:
    """Return the path of a file as a command takes it: from here, if it lies below."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def begin(file: Path, text: str, say: Callable[[str], None] = say) -> None:
    """Write the file that a task begins with; what stood there is kept as NAME.py.old, or .old2, and said to be there.

    Nothing that was kept is written over. A file in which nothing was written is not kept.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.read_bytes() not in (b"", text.encode()):
        kept = file.replace(set_aside(file)[-1])
        say(f"what stood in {file.name} is in {shown(kept)} now")
    file.write_text(text, encoding="utf-8")


def set_aside(file: Path) -> list[Path]:
    """Return the files that `begin` kept of one, the oldest first, and at the end the next one, which is not there."""
    found = [file.with_name(f"{file.name}.old")]
    while found[-1].exists():
        found.append(file.with_name(f"{file.name}.old{len(found) + 1}"))
    return found


def compare(title: str, ours: str, file: Path) -> None:
    """Print ours and the file, side by side where there is room; lines that both have are dim."""
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text

    yours = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    widest = max(map(len, [*ours.splitlines(), *yours.splitlines()]), default=0)
    beside = console.width >= max(120, widest + 40)
    width = console.width // 2 - 2 if beside else console.width
    highlight = Syntax("", "python", theme="ansi_light", background_color="default").highlight
    left, right = (highlight(folded_code(text, width)) for text in (ours, yours))
    lines = left.split("\n"), right.split("\n")
    for i, j in common([line.plain for line in lines[0]], [line.plain for line in lines[1]]):
        lines[0][i].stylize("dim")
        lines[1][j].stylize("dim")
    said = "; what both have is dim" if console.is_terminal else ""
    code = {f"ours, {title}": lines[0], f"yours, {shown(file)}{said}": lines[1]}
    if beside:
        columns = Table(*code, box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold")
        columns.add_row(*map(Text("\n").join, code.values()))
        console.print(columns)
        return
    for head, part in code.items():
        print()
        wrapped("", head)
        print()
        console.print(Text("\n").join(part), soft_wrap=True)


def common(ours: Sequence[str], yours: Sequence[str]) -> list[tuple[int, int]]:
    """Return the numbers of the lines that both texts have, in the same order; how far in they stand does not count.

    >>> common(["def f(x):", "    return x"], ["import torch", "def f(x):", "  return x"])
    [(0, 1), (1, 2)]
    """
    texts = [[line.strip() for line in lines] for lines in (ours, yours)]
    blocks = SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
    return [(block.a + n, block.b + n) for block in blocks for n in range(block.size)]
