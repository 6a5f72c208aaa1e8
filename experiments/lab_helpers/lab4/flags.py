"""The flags of Lab 4."""

from dataclasses import dataclass, field
from typing import Literal

from experiments.shared import cli


@dataclass(frozen=True)
class Flags(cli.Lab):
    """The flags of Lab 4 but for --out."""

    backbone: Literal["resnet8", "resnet18", "resnet34", "resnet50", "squeezenet1_1"] = "resnet8"
    """the network that was pretrained"""
    weights: str = ""
    """imagenet, for torchvision's, or a .pth or .safetensors file; resnet8 has its own"""
    train: cli.MaybeNames = None
    """what is trained after the head: head, last, all, or dotted prefixes such as backbone.layer2; of digits all, of
    photographs the last stage unless given"""
    lr_scales: dict[str, float] = field(default_factory=dict)
    """by dotted prefix, factors of the learning rate of that second stage: backbone 0.1, say; of photographs head 10
    unless this or --train is given"""
    dataset: Literal["digits", "folder"] = "digits"
    """what it learns"""
    root: cli.MaybePath = None
    """the directory of photographs, a sub-directory per class, of --dataset folder"""
    target_accuracy: cli.MaybeShare = None
    """exit 1 if the head alone stays below"""
