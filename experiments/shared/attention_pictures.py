"""What a transformer looks at, drawn and in the terminal; and how positions are told to it."""

from pathlib import Path

import torch
from torch import Tensor

from experiments.shared import show
from fn import draw
from fn.attention import attention_scores
from fn.positions import rotary_encoding, sinusoidal_encoding
from fn.tree import Params

SHADES = "░▒▓█"
WIDTH = 64  # of the encodings that are drawn


def label(characters: str) -> list[str]:
    """What stands on an axis: a space or a line's end would not be seen."""
    return [{" ": "·", "\n": "↵"}.get(character, character) for character in characters]


def draw_attention(weights: Tensor, characters: str, title: str, path: Path) -> None:
    names = label(characters)
    draw.save(draw.attention_maps(weights, names, names, title=title), path)


def print_attention(weights: Tensor, characters: str, *, first: int = 0) -> None:
    """In the terminal, the head whose rows from `first` on are surest of where to look."""
    names, sureness = label(characters), weights[:, :, first:].amax(dim=-1).mean(dim=-1)
    layer, head = divmod(int(sureness.argmax()), weights.shape[1])
    lines = [f"\nLayer {layer}, head {head}: how much each row takes from each column, from 5 % ░ to all █", ""]
    lines.append("  " + " ".join(names))
    for name, row in zip(names, weights[layer, head].tolist(), strict=True):
        lines.append(f"{name} {' '.join(map(_shade, row))}".rstrip())
    show.console.print("\n".join(lines), markup=False, soft_wrap=True)


def _shade(weight: float) -> str:
    return " " if weight < 0.05 else SHADES[min(int(weight * len(SHADES)), len(SHADES) - 1)]


def draw_positions(params: Params, seq: int, path: Path) -> None:
    """The encodings as tables, and how alike they make two positions; what was learned, if it was."""
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
    draw.save(draw.heat_maps(drawn, xlabels=xlabels, ylabels=ylabels), path)
