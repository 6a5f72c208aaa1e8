"""The recipe of a task of Lab 3, and the flags that change it."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import tyro

from experiments.shared import cli

MaybeText = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]


class Recipe(NamedTuple):
    """The model of a task, and how it is trained."""

    layers: int
    heads: int
    d_model: int
    batch_size: int
    steps: int
    lr: float
    seeds: int = 5
    exact: float = 1.0
    """the share of unseen problems to solve"""


@dataclass(frozen=True)
class Flags(cli.CompiledLab):
    """Flags that replace values of the task's recipe, and those that only --task text takes."""

    layers: Annotated[cli.MaybeInt, cli.Between(1, 1000)] = None
    """how many blocks of attention and perceptron (each task has its own)"""
    heads: cli.MaybeSize = None
    """of each layer (the task's own)"""
    d_model: cli.MaybeSize = None
    """width of the residual stream (the task's own)"""
    batch_size: cli.MaybeCount = None
    """examples per step (the task's own)"""
    steps: cli.MaybeCount = None
    """updates (the task's own)"""
    lr: Annotated[cli.MaybeFloat, cli.Between(1e-12, 1e38)] = None
    """the highest learning rate (the task's own)"""
    file: cli.MaybePath = None
    """what --task text reads, in UTF-8 (the topics of Python's help)"""
    block: cli.Count = 64
    """how many characters --task text sees at once"""
    prompt: MaybeText = None
    """what --task text goes on from (a line break, or in a text without any its first character by code)"""
    length: cli.Count = 400
    """how many characters it writes"""
    temperature: Annotated[float, cli.Between(0.0, 1e6)] = 0.8
    """below 1 it plays safe; 0 takes the likeliest character every time"""
    top_k: cli.MaybeCount = None
    """draw from so many of the likeliest characters (from all)"""


def apply_flags(recipe: Recipe, flags: Flags, task: str) -> Recipe:
    """Return the recipe with the values that flags give; UsageError for a flag of another task."""
    given = {name: getattr(flags, name) for name in recipe._fields if getattr(flags, name, None) is not None}
    defaults = Flags()
    for name in ("file", "block", "prompt", "length", "temperature", "top_k"):
        if task != "text" and getattr(flags, name) != getattr(defaults, name):
            raise cli.UsageError(f"--{name.replace('_', '-')} is for --task text, not for {task}")
    return recipe._replace(**given)


def text_prompt(flags: Flags, vocabulary: str) -> str:
    """Return the prompt of the flags; without one, a line break, or the first character where the text has none."""
    if flags.prompt is not None:
        return flags.prompt
    return "\n" if "\n" in vocabulary else vocabulary[0]
