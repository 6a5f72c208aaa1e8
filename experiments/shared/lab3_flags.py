"""The flags of Lab 3, and what they do to a task's recipe. A value out of range is a UsageError of one line."""

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeVar

import tyro

from experiments.shared import cli

MaybeText = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
RecipeT = TypeVar("RecipeT", bound=NamedTuple)


@dataclass(frozen=True)
class Flags(cli.Compiled):
    """Flags that replace values of the task's recipe, and those that only --task text takes."""

    layers: cli.MaybeInt = None
    """how many blocks of attention and perceptron (each task has its own)"""
    heads: cli.MaybeInt = None
    """of each layer (the task's own)"""
    d_model: cli.MaybeInt = None
    """width of the residual stream (the task's own)"""
    batch_size: cli.MaybeInt = None
    """examples per step (the task's own)"""
    steps: cli.MaybeInt = None
    """updates (the task's own)"""
    lr: cli.MaybeFloat = None
    """the highest learning rate (the task's own)"""
    file: cli.MaybePath = None
    """what --task text reads, in UTF-8 (the topics of Python's help)"""
    block: int = 64
    """how many characters --task text sees at once"""
    prompt: MaybeText = None
    """what --task text goes on from (a line break, or in a text without any its first character by code)"""
    length: int = 400
    """how many characters it writes"""
    temperature: float = 0.8
    """below 1 it plays safe; 0 takes the likeliest character every time"""
    top_k: cli.MaybeInt = None
    """draw from so many of the likeliest characters (from all)"""


def apply_flags(recipe: RecipeT, flags: Flags, task: str) -> RecipeT:
    """Return the recipe with the values that flags give; UsageError for a value out of range or for another task."""
    given = {name: getattr(flags, name) for name in recipe._fields if getattr(flags, name, None) is not None}
    recipe = recipe._replace(**given)
    values = recipe._asdict() | {"block": flags.block, "length": flags.length, "top_k": flags.top_k}
    for name in ("layers", "heads", "d_model", "batch_size", "steps", "block", "length", "top_k"):
        if values[name] is not None and values[name] < 1:
            raise cli.UsageError(f"--{name.replace('_', '-')} {values[name]}: at least 1 is needed")
    if not 0 < values["lr"] < math.inf:
        raise cli.UsageError(f"--lr {values['lr']}: a learning rate is a number above 0")
    if not 0 <= flags.temperature < math.inf:
        raise cli.UsageError(f"--temperature {flags.temperature} is negative or not a number")
    defaults = Flags()
    for name in ("file", "block", "prompt", "length", "temperature", "top_k"):
        if task != "text" and getattr(flags, name) != getattr(defaults, name):
            raise cli.UsageError(f"--{name.replace('_', '-')} is for --task text, not for {task}")
    return recipe


def text_prompt(flags: Flags, vocabulary: str) -> str:
    """Return the prompt of the flags; without one, a line break, or the first character where the text has none."""
    if flags.prompt is not None:
        return flags.prompt
    return "\n" if "\n" in vocabulary else vocabulary[0]
