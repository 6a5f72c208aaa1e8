"""The tables and curves of detectors, for Lab 5 and `overfit`: parts of the loss, average precision."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from experiments.shared import show
from experiments.shared.titles import told
from fn import draw
from fn.data.scenes import SceneSet
from fn.detection.average_precision import summarize
from fn.detection.boxes import object_table
from fn.models.centernet import SIZE_WEIGHT
from fn.train import Metrics

FLAVORS = {"anchor": "ssd", "center": "centernet"}
PARTS = {
    "class": "cross-entropy of the matched anchors and of three times as many of the background, always the hardest: "
    "as anchors get easy, others take their place",
    "box": "how far the matched anchors still are from their objects, in tenths of their size and in logarithms; it "
    "needs no class",
    "center": "heat at the centres against heat elsewhere: the only part that tells classes apart",
    "size": f"{SIZE_WEIGHT:g} of the error of width and height, in cells: at {SIZE_WEIGHT / 2:g} they are off by half "
    "a cell together",
    "offset": "where in its cell a centre lies: to guess the middle costs 0.5, what is below that has been learned",
}
"""what each part of the loss measures"""


def good_enough(ap: Tensor) -> bool:
    """Return whether AP50 is 1 and AP50:95 at least 0.9: all objects found, nine tenths of them at every threshold."""
    return bool(ap[0, 0].nanmean() >= 1) and bool(ap[:, 0].nanmean() >= 0.9)


@show.picture
def show_parts(title: str, history: Sequence[Metrics], path: Path) -> None:
    """Print and draw the parts of the loss: a table, a sentence on each, and the curves."""
    parts = [name for name in history[0] if name in PARTS]
    stages = {"first step": 0, "a tenth": len(history) // 10, "half": len(history) // 2, "last": len(history) - 1}
    rows = [(part, *(f"{history[i][part]:.3f}" for i in stages.values())) for part in parts]
    show.table(title, ("part of the loss", *stages), rows)
    for part in parts:
        begins, ends = (metrics[part] / metrics["loss"] for metrics in (history[0], history[-1]))
        share = f"{begins:.0%} of the loss at first, {ends:.0%} at last"
        show.console.print(f"{part}: {PARTS[part]}. It is {share}.", soft_wrap=True)
    panels = {"loss": {"sum": [m["loss"] for m in history]} | {part: [m[part] for m in history] for part in parts}}
    heading = f"{title}. {told('loss', {'': panels['loss']['sum']})}"
    show.save(draw.curves(panels, log=["loss"], title=heading), path)


def show_average_precision(flavor: str, ap: Tensor, scenes: SceneSet, sizes: Mapping[str, tuple[float, float]]) -> None:
    """Print AP50, AP75 and AP50:95 on the held-out images, of all objects, by size and by class."""
    _, labels, _ = object_table(scenes.test.objects)
    counts = labels.bincount(minlength=len(scenes.classes)).tolist()
    parts = {_size_range(name, *sizes[name]): ap[:, i : i + 1] for i, name in enumerate(sizes)}
    named = [f"{c} ({n} of them)" for c, n in zip(scenes.classes, counts, strict=True)]
    parts |= {name: ap[:, :1, i : i + 1] for i, name in enumerate(named)}
    scores = {name: summarize(part) for name, part in parts.items()}
    rows = [(name, *(f"{score[which]:.3f}" for which in ("AP50", "AP75", "AP"))) for name, score in scores.items()]
    title = f"{flavor}: {len(scenes.test.images)} held-out images"
    show.table(title, ("objects", "AP50", "AP75", "AP50:95"), rows)


def _size_range(name: str, low: float, high: float) -> str:
    """Write a range of areas in words: "medium, 196 to 400 px²"."""
    if low == 0:
        return name if high >= 1e10 else f"{name}, up to {high:g} px²"
    return f"{name}, from {low:g} px²" if high >= 1e10 else f"{name}, {low:g} to {high:g} px²"
