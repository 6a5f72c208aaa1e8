"""The table of Lab 1: convolution three ways."""

from collections.abc import Mapping, Sequence
from statistics import median

from experiments.shared import cli, show


def show_convolutions(
    output_gaps: Sequence[float], grad_gaps: Sequence[float], seconds: Mapping[str, Sequence[float]]
) -> None:
    """Show a row per convolution: its gaps to torch's, and its time beside torch's, from the seconds by name."""
    rows = []
    for name, output_gap, grad_gap in zip(seconds, output_gaps, grad_gaps, strict=True):
        ratio = median(s / native for s, native in zip(seconds[name], seconds["conv2d"], strict=True))
        rows.append((name, f"{output_gap:.1e}", f"{grad_gap:.1e}", f"{ratio:.3g}×"))
    cli.order("convolutions: time forward and backward", {name: median(s) for name, s in seconds.items()})
    title = "Convolution three ways: 32 images of 32×14×14, 64 kernels of 3×3, forward and backward"
    show.table(title, ("", "output gap", "gradient gap", "time / native"), rows)
