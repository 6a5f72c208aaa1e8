"""The page of a lab, experiments/labN_….md: what to read, predict, change and write, with its answers folded away.

    just lab 0 --page              in a terminal; Enter then shows the answers
    just lab 0 --page --answers    with the answers

A page names code as `fn/layers.py:linear`. The lines are put in from the source, so they are never out of date. A
change to try is a block: where, the line taken out, the line put in, and the claim of the lab that `fails` or `holds`
then, or the message in which the run `says` what is wrong. The part of the lab that shows it stands before it.

    ```change
    fn/models/mlp.py:two_layer_grads
    -     d_z = d_h * (z > 0)
    +     d_z = d_h
    check_gradients fails: gradient: derived by hand, relative error
    ```
"""

import ast
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.shared.show import console, folded_code, print_anything

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"`((?:fn|experiments|tests)/[\w/]+\.py):([\w.]+)`")
CHANGE = re.compile(r"^```change\n(\S+\.py):(\S+)\n((?:[-+].*\n)+)(\w+) (fails|holds|says): (.+)\n```$", re.MULTILINE)
FENCED = re.compile(r"^( *```\w*\n)(.*?)(\n *```)$", re.MULTILINE | re.DOTALL)
MARGIN = 6
"""columns that Markdown keeps free around code, in a list too"""
FOLDED = re.compile(r"^<details><summary>(.+?)</summary>\n\n(.+?)\n\n</details>$", re.MULTILINE | re.DOTALL)
THEN = {"fails": "Then the claim “{}” fails.", "holds": "The claim “{}” still holds.", "says": "The run says: `{} …`"}


class Change(NamedTuple):
    """An edit of the code, and what the lab shows after it."""

    file: str
    name: str
    """of the function, class or constant: Examples.__getitem__"""
    old: str
    new: str
    part: str
    """the function of the lab that shows it"""
    verb: str
    """fails, holds or says"""
    text: str
    """the name of the claim, or a part of the message"""


def source(n: str | int) -> str:
    """Return the page as it is written; ValueError if there is no such lab."""
    found = list((ROOT / "experiments").glob(f"lab{n}_*.md"))
    if len(found) != 1:
        raise ValueError(f"there is no page of a lab {n}")
    return found[0].read_text(encoding="utf-8")


def page(n: str | int) -> str:
    """Return the page as Markdown, with the lines of the code that it names; answers are in <details>."""
    text = CHANGE.sub(lambda block: _shown(_change(block)), source(n))
    return REFERENCE.sub(lambda found: f"{found[0]} ({_lines(*line_numbers(found[1], found[2]))})", text)


def changes(n: str | int) -> list[Change]:
    """Return the changes that a page proposes."""
    return [_change(block) for block in CHANGE.finditer(source(n))]


def line_numbers(file: str, name: str) -> tuple[int, int]:
    """Return the first and the last line of a function, class, method or constant; ValueError if there is none."""
    node: ast.AST = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        named = [child for child in ast.iter_child_nodes(node) if part in _names(child)]
        if not named:
            raise ValueError(f"{file} defines no {name}")
        node = named[-1]
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])  # pyright: ignore
    return first, node.end_lineno  # pyright: ignore[reportAttributeAccessIssue]


def _names(node: ast.AST) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)]


def _lines(first: int, last: int) -> str:
    return f"line {first}" if first == last else f"lines {first} to {last}"


def _change(block: re.Match[str]) -> Change:
    file, name, edit, part, verb, text = block.groups()
    old, new = ("".join(line[2:] + "\n" for line in edit.splitlines() if line[0] == sign) for sign in "-+")
    return Change(file, name, old, new, part, verb, text)


def _shown(change: Change) -> str:
    """Return the edit as a diff, below the place and above what happens."""
    indent = min(len(line) - len(line.lstrip()) for line in (change.old + change.new).splitlines())
    signed = [f"- {line[indent:]}" for line in change.old.splitlines()]
    signed += [f"+ {line[indent:]}" for line in change.new.splitlines()]
    edit = "\n".join(["```diff", *signed, "```"])
    return f"In `{change.file}:{change.name}`:\n\n{edit}\n\n{THEN[change.verb].format(change.text)}"


def show(n: str, flags: Sequence[str]) -> int:
    """Print the page, in a pipe as Markdown; return the exit status."""
    print_anything()
    if others := [flag for flag in flags if flag not in ("--page", "--answers")]:
        print(f"error: --page goes with --answers alone, not with {others[0]}", file=sys.stderr)
        return 2
    text, shown = page(n), r"**\1**\n\n\2" if "--answers" in flags else r"**\1**"
    try:
        _print(FOLDED.sub(shown, text))
        if "--answers" not in flags:
            _answer(n, text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _answer(n: str, text: str) -> None:
    """Say how to see the answers, and on a terminal show them after Enter."""
    if not (console.is_terminal and sys.stdin.isatty()):
        _print(f"The answers: `just lab {n} --page --answers`")
        return
    try:
        input("Enter shows the answers, Ctrl-C leaves: ")
    except EOFError:
        return
    _print("\n\n".join(["# Answers", *answers(text)]))


def answers(text: str) -> list[str]:
    """Return the questions with their answers, below the headings of their sections."""
    found = []
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        folded = FOLDED.findall(section)
        found += [section.splitlines()[0]] if folded else []
        found += [f"**{question}**\n\n{answer}" for question, answer in folded]
    return found


def _print(text: str) -> None:
    if not console.is_terminal:
        print(text)
        return
    from rich.markdown import Markdown

    console.print(Markdown(FENCED.sub(_folded_fence, text), code_theme="ansi_dark"))


def _folded_fence(block: re.Match[str]) -> str:
    """Return a block of code folded before Markdown breaks it, which would be within a word."""
    return f"{block[1]}{folded_code(block[2], console.width - MARGIN)}{block[3]}"
