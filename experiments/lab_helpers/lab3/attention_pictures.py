"""Attention weights, drawn and in the terminal; and pictures of the positional encodings."""

from pathlib import Path

import torch
from torch import Tensor

from experiments.shared import show
from experiments.shared.report import record
from fn import draw
from fn.attention import attention_scores
from fn.positions import rotary_encoding, sinusoidal_encoding
from fn.tree import Params

SHADES = "░▒▓█"
WIDTH = 64  # of the encodings that are drawn


def label(characters: str) -> list[str]:
    """Return the labels of an axis, with signs for a space and a line break, which would not be seen."""
    return [{" ": "·", "\n": "↵"}.get(character, character) for character in characters]


@show.picture
def show_attention(weights: Tensor, characters: str, title: str, path: Path, *, first_row: int = 0) -> None:
    """Draw all heads (layers, heads, queries, keys) into a picture; print one of them, see `print_attention`."""
    names = label(characters)
    show.save(draw.attention_maps(weights, names, names, title=title), path)
    record.attention(weights, names, title)
    print_attention(weights, characters, first_row=first_row)


def print_attention(weights: Tensor, characters: str, *, first_row: int = 0) -> None:
    """Print the head whose rows from `first_row` on have the largest weights, in shades of grey."""
    names, sureness = label(characters), weights[:, :, first_row:].amax(dim=-1).mean(dim=-1)
    layer, head = divmod(int(sureness.argmax()), weights.shape[1])
    lines = [f"\nLayer {layer}, head {head}: how much each row takes from each column, from 5 % ░ to all █", ""]
    lines.append("  " + " ".join(names))
    for name, row in zip(names, weights[layer, head].tolist(), strict=True):
        lines.append(f"{name} {' '.join(map(_shade, row))}".rstrip())
    show.console.print("\n".join(lines), markup=False, soft_wrap=True)


def _shade(weight: float) -> str:
    return " " if weight < 0.05 else SHADES[min(int(weight * len(SHADES)), len(SHADES) - 1)]


@show.picture
def draw_positions(params: Params, seq: int, path: Path) -> None:
    """Draw the encodings as tables, the product of any two positions, and the learned encoding if there is one."""
    table = sinusoidal_encoding(seq, WIDTH)
    turned = rotary_encoding(torch.ones(1, seq, WIDTH))
    pair = ("position", "position")
    panels = {
        "sinusoidal": (table, "entry", "position"),
        "sinusoidal: product of two": (table @ table.T, *pair),
        "rotary: score of one query and key": (attention_scores(turned, turned)[0], "of the key", "of the query"),
    }
    if "positions" in params:
        learned = params["positions"]["weight"].cpu()
        learned = learned / learned.norm(dim=1, keepdim=True)
        panels["learned: cosine of two"] = (learned @ learned.T, *pair)
    drawn = {title: matrix for title, (matrix, *_) in panels.items()}
    _, xlabels, ylabels = zip(*panels.values(), strict=True)
    title = "The diagonal is strongest, where a position meets itself; far positions are told apart from near ones"
    show.save(draw.heat_maps(drawn, xlabels=xlabels, ylabels=ylabels, title=title), path)
