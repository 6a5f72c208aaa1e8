"""The quiz of the gallery: a symptom, live, and four causes; the score is kept in a file of yours."""

import json
import os
import random
from pathlib import Path
from typing import Any

import torch

from experiments.breaking import on, show_seen
from experiments.cli import UsageError
from experiments.failures import Failure, gallery
from experiments.show import console, wrapped
from fn.files import write_atomic

Score = dict[str, dict[str, int]]
"""{failure: {"asked": how often, "right": how often}}"""

AKIN = {"dead_relus", "no_warmup", "rate_too_high"}
"""Where one of them is the cause, the others may be too: they are not offered beside it."""


def score_file() -> Path:
    """Where a user's data belongs; no run, and no git, touches it."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "functional-torch" / "quiz.json"


def load_score() -> Score:
    """UsageError for a file that is damaged."""
    try:
        kept: Any = json.loads(score_file().read_text())
        return {name: {"asked": int(n["asked"]), "right": int(n["right"])} for name, n in kept["failures"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"the score in {score_file()} cannot be read; move that file away to begin anew") from None


def choices(failure: Failure, rng: random.Random) -> list[Failure]:
    """It and three others in random order, of its kind as far as there are any."""
    akin = AKIN if failure.name in AKIN else {failure.name}
    others = [other for name, other in gallery().items() if name not in akin]
    rng.shuffle(others)
    others.sort(key=lambda other: other.kind != failure.kind)
    four = [failure, *others[:3]]
    rng.shuffle(four)
    return four


def quiz(seed: int, device: torch.device) -> None:
    """Every failure once, in an order drawn from the seed; the end of the answers, or Ctrl-C, ends it."""
    rng, score, right, asked = random.Random(seed), load_score(), 0, 0
    failures = rng.sample(list(gallery().values()), len(gallery()))
    console.print("Which cause has the symptom? 1 to 4; q ends.")
    try:
        for failure in failures:
            four = choices(failure, rng)
            console.print(f"\n{asked + 1} of {len(failures)}", style="bold")
            wrapped("", failure.symptom)
            show_seen(on(device, failure.load().broken)(seed))
            for number, each in enumerate(four, start=1):
                wrapped(f"  {number}  ", each.title)
            answer = ask()
            if answer is None:
                break
            hit = four[answer - 1] is failure
            asked, right = asked + 1, right + hit
            said = "right" if hit else f"no, {four.index(failure) + 1}"
            console.print(f"{said}: just break {failure.name}", style="green" if hit else "red")
            keep(score, failure.name, hit)
    except KeyboardInterrupt:
        print()
    sums = {key: sum(n[key] for n in score.values()) for key in ("right", "asked")}
    console.print(f"\n{right} of {asked} right; {sums['right']} of {sums['asked']} in all", markup=False)


def ask() -> int | None:
    """1 to 4, or None for the end."""
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
    """Note an answer at once: Ctrl-C loses none."""
    count = score.setdefault(name, {"asked": 0, "right": 0})
    count["asked"], count["right"] = count["asked"] + 1, count["right"] + hit
    write_atomic(score_file(), json.dumps({"version": 1, "failures": score}, indent=2) + "\n")
