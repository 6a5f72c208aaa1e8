"""Pretrained weights by flag: --backbone and --weights, refused in one line where they do not fit."""

from collections.abc import Sequence
from pathlib import Path

from experiments.shared import cli
from fn import pretrained
from fn.backbones import BACKBONES
from fn.data.datasets import data_root
from fn.models import Model
from fn.pretrained import PretrainedError
from fn.rng import generator
from fn.tree import Params

SHIPPED = Path(__file__).parents[1] / "pretrain" / "resnet8_fashion_mnist.safetensors"
"""the weights that `python -m experiments.pretrain` wrote"""


def load(name: str, weights: str, *, cut_off: Sequence[str]) -> tuple[Params, Params]:
    """Read the (params, state) of a backbone from `weights`: imagenet, for torchvision's, a file, or "" for our own.

    The branches `cut_off`, such as the old head, are left out, so their sizes may be any.
    UsageError for weights that cannot be had, cannot be read, or are not of that backbone.
    """
    spec = BACKBONES[name]
    try:
        if weights == "imagenet":
            if name == "resnet8":
                raise cli.UsageError("--weights imagenet: there are none of resnet8; its own come with the lab")
            path = pretrained.download(name, data_root() / "weights")
        elif weights:
            path = Path(weights)
        elif name == "resnet8":
            path = SHIPPED
        else:
            raise cli.UsageError(f"--backbone {name} needs --weights: imagenet, or a .pth or .safetensors file")
    except PretrainedError as error:
        raise cli.UsageError(str(error)) from None
    return weights_of(path, spec.model(spec.shape, spec.classes), f"of --backbone {name}", cut_off=cut_off)


def weights_of(path: Path, model: Model, description: str, *, cut_off: Sequence[str]) -> tuple[Params, Params]:
    """Read the (params, state) of a model, without the branches that are cut off, from a file.

    UsageError if it cannot be read or is not `description`.
    """
    try:
        state_dict = pretrained.read(path)
    except PretrainedError as error:
        raise cli.UsageError(str(error)) from None
    try:
        params, state, _ = pretrained.from_state_dict(state_dict, *model.init(generator(0)), cut_off=cut_off)
    except PretrainedError as error:
        raise cli.UsageError(f"--weights {path} are not {description}: {error}") from None
    return params, state
