"""Baselines of Lab 5: average precision without a network."""

import torch

from fn.data.scenes import SceneSet
from fn.detection.average_precision import summarize
from fn.detection.boxes import object_table
from fn.detection.train import Detections, evaluate_detections
from fn.rng import generator


def score_baselines(scenes: SceneSet, seed: int) -> dict[str, float]:
    """Return AP50 without a network: of no detections, and of 100 random boxes of the right sizes in each image."""
    images, classes = len(scenes.test.images), len(scenes.classes)
    rng = generator(seed)
    boxes, labels, _ = object_table(scenes.train.objects.cpu())
    rows = torch.randint(len(boxes), (100 * images,), generator=rng)
    size = boxes[rows, 2:] - boxes[rows, :2]
    corner = torch.rand(len(rows), 2, generator=rng) * (torch.tensor(scenes.shape[:0:-1]) - size)
    guesses = Detections(
        torch.cat([corner, corner + size], dim=1),
        torch.rand(len(rows), generator=rng),
        labels[rows],
        torch.arange(images).repeat_interleave(100),
    )
    background = Detections(*(column[:0] for column in guesses))
    return {
        name: summarize(evaluate_detections(detections, scenes.test.objects, classes, scenes.difficult))["AP50"]
        for name, detections in (("all background", background), ("random boxes", guesses))
    }
