"""What a transformer looks at, drawn and in the terminal; and how positions are told to it."""

from pathlib import Path

import torch
from torch import Tensor

from experiments import show
from fn import plots
from fn.attention import attention_scores
from fn.positions import rotary_encoding, sinusoidal_encoding
from fn.tree import Params

SHADES = " ░▒▓█"


def label(characters: str) -> list[str]:
    """What stands on an axis: a space or a line's end would not be seen."""
    return [{" ": "·", "\n": "↵"}.get(character, character) for character in characters]


def draw_attention(weights: Tensor, characters: str, title: str, path: Path) -> None:
    names = label(characters)
    plots.save(plots.attention_maps(weights, names, names, title=title), path)


def print_attention(weights: Tensor, characters: str) -> None:
    """The head that is surest of where to look, in the terminal: the darker, the more of its weight is there."""
    names, layers_heads = label(characters), weights.amax(dim=-1).mean(dim=-1)
    layer, head = divmod(int(layers_heads.argmax()), weights.shape[1])
    show.console.print(f"\nLayer {layer}, head {head}: each row looks to the left, at the dark columns\n")
    show.console.print("  " + " ".join(names), markup=False)
    for name, row in zip(names, weights[layer, head].tolist(), strict=True):
        cells = " ".join(SHADES[min(int(w * len(SHADES)), len(SHADES) - 1)] for w in row)
        show.console.print(f"{name} {cells}".rstrip(), markup=False)


def draw_positions(params: Params, seq: int, d_model: int, heads: int, path: Path) -> None:
    """The encodings as tables, and how alike they make two positions."""
    table = sinusoidal_encoding(max(seq, 32), d_model)
    d_head = d_model // heads
    same = torch.ones(1, len(table), d_head)
    turned = rotary_encoding(same)
    panels = {
        "sinusoidal": (table, "entry", "position"),
        "sinusoidal: product of two positions": (table @ table.T, "position", "position"),
        "rotary: score of one query and key": (
            attention_scores(turned, turned)[0],
            "key's position",
            "query's position",
        ),
    }
    if "positions" in params:
        learned = params["positions"]["weight"].cpu()
        learned = learned / learned.norm(dim=1, keepdim=True)
        panels["learned: cosine of two positions"] = (learned @ learned.T, "position", "position")
    drawn = {title: matrix for title, (matrix, *_) in panels.items()}
    _, xlabels, ylabels = zip(*panels.values(), strict=True)
    plots.save(plots.heat_maps(drawn, xlabels=xlabels, ylabels=ylabels), path)
