"""The networks as one writes them with nn.Module, of the sizes and parameter names of ours."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fn.tree import Params


def mlp_module(params: Params) -> nn.Module:
    sizes = [params["fc1"]["weight"].shape[1], *(layer["bias"].numel() for layer in params.values())]
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for i, (d_in, d_out) in enumerate(pairwise(sizes), start=1):
        layers |= {f"fc{i}": nn.Linear(d_in, d_out), f"relu{i}": nn.ReLU()}
    layers.popitem()
    return sequential(layers)


def cnn_module(params: Params) -> nn.Module:
    layers: dict[str, nn.Module] = {}
    blocks = len(params) // 2
    for i in range(1, blocks + 1):
        out_channels, channels, height, width = params[f"conv{i}"]["weight"].shape
        layers[f"conv{i}"] = nn.Conv2d(channels, out_channels, (height, width), padding=1, bias=False)
        if i < blocks:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        layers |= {f"bn{i}": nn.BatchNorm2d(out_channels), f"relu{i}": nn.ReLU()}
    classes, d_in = params["fc"]["weight"].shape
    return sequential(layers | {"flatten": nn.Flatten(), "fc": nn.Linear(d_in, classes)})


class Residual(nn.Module):
    """A block of two convolutions; zeros fill the new channels of the shortcut where the shape changes."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride = 1 if channels == out_channels else 2
        self.zeros = (out_channels - channels) // 2
        self.conv1 = nn.Conv2d(channels, out_channels, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.zeros:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))
        return F.relu(x + y)


def resnet_module(params: Params) -> nn.Module:
    out_channels, channels, *_ = params["conv1"]["weight"].shape
    conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    layers: dict[str, nn.Module] = {"conv1": conv, "bn1": nn.BatchNorm2d(out_channels), "relu": nn.ReLU()}
    for stage in [name for name in params if name.startswith("layer")]:
        blocks = [params[stage][str(i)]["conv1"]["weight"].shape[:2] for i in range(len(params[stage]))]
        layers[stage] = nn.Sequential(*[Residual(channels, out_channels) for out_channels, channels in blocks])
    classes, d_in = params["fc"]["weight"].shape
    return sequential(
        layers | {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(d_in, classes)}
    )


def sequential(layers: dict[str, nn.Module]) -> nn.Module:
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    return module
