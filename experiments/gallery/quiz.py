"""The quiz of the gallery: a symptom, live, and four causes. The score is kept in a file of the user."""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.gallery.failures import Failure, gallery
from experiments.shared.cli import UsageError
from experiments.shared.show import console, wrapped
from fn.files import read_json, write_atomic

if TYPE_CHECKING:
    import torch

Score = dict[str, dict[str, int]]
"""{failure: {"asked": how often, "right": how often}}"""


def score_file() -> Path:
    """Return the path of the score, in the user's folder for data, which no run writes to."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "functional-torch" / "quiz.json"


def load_score() -> Score:
    """Read the score; UsageError for a damaged file."""
    try:
        kept: Any = read_json(score_file())
        score = {name: {"asked": int(n["asked"]), "right": int(n["right"])} for name, n in kept["failures"].items()}
        if not all(0 <= n["right"] <= n["asked"] and n["asked"] for n in score.values()):
            raise ValueError("more were right than asked")
        return score
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"the score in {score_file()} cannot be read; move that file away to begin anew") from None


def choices(failure: Failure, rng: random.Random) -> list[Failure]:
    """Return the failure and three others in random order; the others are of the same kind as far as possible."""
    others = [other for name, other in gallery().items() if name not in failure.akin | {failure.name}]
    rng.shuffle(others)
    others.sort(key=lambda other: other.kind != failure.kind)
    four = [failure, *others[:3]]
    rng.shuffle(four)
    return four


def order(score: Score, rng: random.Random) -> list[Failure]:
    """Return every failure once: first those never asked, then those most often missed; equals in random order."""
    failures = rng.sample(list(gallery().values()), len(gallery()))
    return sorted(failures, key=lambda f: score[f.name]["right"] / score[f.name]["asked"] if f.name in score else -1.0)


def quiz(seed: int, device: "torch.device") -> None:
    """Ask about every failure once, in an order drawn from the seed, until the input ends or Ctrl-C."""
    rng, score, right, missed = random.Random(seed), load_score(), 0, []
    failures = order(score, rng)
    console.print(f"Which cause has the symptom? 1 to 4; q ends. Seed {seed}.")
    try:
        for number, failure in enumerate(failures, start=1):
            four = choices(failure, rng)
            console.print(f"\n{number} of {len(failures)}", style="bold")
            pose(failure, four, seed, device)
            answer = ask()
            if answer is None:
                break
            hit = four[answer - 1] is failure
            right, missed = right + hit, missed + [failure.name] * (not hit)
            tell(failure, hit, four.index(failure) + 1)
            keep(score, failure.name, hit)
    except KeyboardInterrupt:
        print()
    sums = {key: sum(n[key] for n in score.values()) for key in ("right", "asked")}
    if missed:
        wrapped("\nMissed   ", ", ".join(missed))
    console.print(f"\n{right} of {right + len(missed)} right; {sums['right']} of {sums['asked']} in all", markup=False)


def pose(failure: Failure, four: Sequence[Failure], seed: int, device: "torch.device") -> None:
    """Print the symptom in words, the run, and four titles."""
    from experiments.gallery.breaking import on  # here, not above: torch takes seconds
    from experiments.gallery.seen import show_seen

    wrapped("", failure.symptom)
    show_seen(on(device, failure.load().broken)(seed))
    offer(four)


def offer(four: Sequence[Failure]) -> None:
    """Print four titles, each with its number."""
    for number, option in enumerate(four, start=1):
        wrapped(f"  {number}  ", option.title)


def tell(failure: Failure, hit: bool, number: int) -> None:
    """Print whether the answer was right, and if not, the right one and its cause."""
    if hit:
        console.print(f"right: just break {failure.name}", style="green")
        return
    console.print(f"no, {number}: just break {failure.name}", style="red")
    wrapped("  ", f"{failure.title}. {failure.parts['Cause']}", style="")


def ask() -> int | None:
    """Read an answer: 1 to 4, or None for the end."""
    while True:
        try:
            answer = input("? ").strip().lower()
        except EOFError:
            print()
            return None
        if answer in ("1", "2", "3", "4"):
            return int(answer)
        if answer in ("q", "quit"):
            return None
        console.print("1, 2, 3 or 4, or q")


def keep(score: Score, name: str, hit: bool) -> None:
    """Write an answer to the score at once, so that Ctrl-C loses none."""
    count = score.setdefault(name, {"asked": 0, "right": 0})
    count["asked"], count["right"] = count["asked"] + 1, count["right"] + hit
    write_atomic(score_file(), json.dumps({"version": 1, "failures": score}, indent=2) + "\n")
