"""The detectors as one writes them with nn.Module and torchvision: networks, losses, and a batch of canvases."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision.ops as ops
from torch import Tensor, nn

from fn.data.scenes import digits
from fn.detection.heatmaps import gaussian_radius
from fn.models.centernet import SIZE_WEIGHT
from fn.models.ssd import ANCHOR_SIZES
from fn.tree import Params


def canvases(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a batch of images with digits on them, and their objects."""
    images, objects = digits(batch, 1, seed=seed).train
    return images, objects


class Pyramid(nn.Module):
    def __init__(self, params: Params, levels: int) -> None:
        super().__init__()
        backbone, self.levels = params["backbone"], levels
        self.backbone = nn.ModuleDict()
        for i in range(1, 7):
            self.backbone[f"conv{i}"] = _convolution(backbone[f"conv{i}"])
            self.backbone[f"bn{i}"] = nn.BatchNorm2d(len(backbone[f"bn{i}"]["bias"]))
        for i in range(3):
            self.add_module(f"lateral{i}", _convolution(params[f"lateral{i}"]))
        for i in range(levels):
            self.add_module(f"conv{i}", _convolution(params[f"conv{i}"]))
            self.add_module(f"bn{i}", nn.BatchNorm2d(len(params[f"bn{i}"]["bias"])))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i in range(1, 7):
            x = self.backbone[f"conv{i}"](x)
            x = F.relu(self.backbone[f"bn{i}"](F.max_pool2d(x, 2) if i in (1, 2, 4, 6) else x))
            if i in (3, 5, 6):
                maps.append(x)
        get = self.get_submodule
        coarse = get("lateral1")(maps[1]) + F.interpolate(get("lateral2")(maps[2]), scale_factor=2)
        fine = get("lateral0")(maps[0]) + F.interpolate(coarse, scale_factor=2)
        merged = [fine, coarse][: self.levels]
        return [F.relu(get(f"bn{i}")(get(f"conv{i}")(x))) for i, x in enumerate(merged)]


def _convolution(params: Params) -> nn.Conv2d:
    out_channels, channels, kernel, _ = params["weight"].shape
    return nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias="bias" in params)


class SSD(nn.Module):
    def __init__(self, params: Params) -> None:
        super().__init__()
        self.pyramid = Pyramid(params["pyramid"], levels=2)
        for head in ("class0", "offset0", "class1", "offset1"):
            self.add_module(head, _convolution(params[head]))
        self.kinds = len(params["offset0"]["bias"]) // 4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = self.pyramid(x)
        heads = (("class0", fine), ("class1", coarse)), (("offset0", fine), ("offset1", coarse))
        logits, offsets = (torch.cat([self._rows(self.get_submodule(n)(x)) for n, x in maps], 1) for maps in heads)
        return logits, offsets

    def _rows(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1] // self.kinds)


def ssd_module(params: Params) -> nn.Module:
    return SSD(params)


def _anchors(image: int, maps: Sequence[int]) -> Tensor:
    boxes = []
    for cells, sizes in zip(maps, ANCHOR_SIZES, strict=True):
        centre = (torch.arange(cells) + 0.5) * image / cells
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        kinds = [torch.tensor(size) for size in sizes]
        boxes.append(torch.stack([torch.stack([x, y, *k.view(2, 1, 1).expand(2, cells, cells)], 2) for k in kinds], 2))
    return torch.cat([b.reshape(-1, 4) for b in boxes])


def ssd_module_loss(output: tuple[Tensor, Tensor], objects: Tensor) -> Tensor:
    """Return SSD's loss on all images at once; one object after the other takes its best anchor."""
    (logits, offsets), anchors = output, _anchors(64, (16, 8)).to(objects)
    boxes, labels, present = objects[..., :4], objects[..., 4].long(), objects[..., 4] >= 0
    overlap = ops.box_iou(boxes, ops.box_convert(anchors, "cxcywh", "xyxy").expand(len(boxes), -1, 4))
    overlap = overlap.masked_fill(~present.unsqueeze(2), -1)
    best, match = overlap.max(1)
    match = torch.where(best >= 0.5, match, -1)
    images = torch.arange(len(boxes), device=boxes.device)
    for o in range(boxes.shape[1]):
        own = overlap[:, o].argmax(1)
        match[images, own] = torch.where(present[:, o], o, match[images, own])
    positive, index = match >= 0, match.clamp(min=0)
    target = torch.where(positive, labels.gather(1, index) + 1, 0)
    loss = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    rank = loss.detach().masked_fill(positive, -1).argsort(dim=1, descending=True, stable=True).argsort(1)
    mined = (rank < 3 * positive.sum(1, keepdim=True).clamp(min=1)) & ~positive
    matched = ops.box_convert(boxes.gather(1, index.unsqueeze(2).expand(-1, -1, 4))[positive], "xyxy", "cxcywh")
    of = anchors.expand(len(boxes), -1, 4)[positive]
    wanted = torch.cat([(matched[:, :2] - of[:, :2]) / of[:, 2:] / 0.1, (matched[:, 2:] / of[:, 2:]).log() / 0.2], 1)
    in_box = F.smooth_l1_loss(offsets[positive], wanted, reduction="sum")
    return (loss[positive | mined].sum() + in_box) / positive.sum().clamp(min=1)


class CenterNet(nn.Module):
    def __init__(self, params: Params) -> None:
        super().__init__()
        self.pyramid = Pyramid(params["pyramid"], levels=1)
        for head in ("heat", "size", "offset"):
            self.add_module(head, nn.ModuleDict({name: _convolution(params[head][name]) for name in ("conv", "out")}))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        [fine] = self.pyramid(x)
        heads = (self.get_submodule(head) for head in ("heat", "size", "offset"))
        return tuple(head.get_submodule("out")(F.relu(head.get_submodule("conv")(fine))) for head in heads)


def centernet_module(params: Params) -> nn.Module:
    return CenterNet(params)


def centernet_module_loss(output: tuple[Tensor, ...], objects: Tensor) -> Tensor:
    heat, size, offset = output
    present, labels = objects[..., 4] >= 0, objects[..., 4].long()
    boxes = ops.box_convert(objects[..., :4], "xyxy", "cxcywh") / 4
    image, which = present.nonzero(as_tuple=True)
    centre, extent, label = boxes[image, which, :2], boxes[image, which, 2:], labels[image, which]
    cell = centre.floor().long()
    y, x = (torch.arange(n, device=heat.device) for n in heat.shape[2:])
    distance = (y[:, None] - cell[:, 1, None, None]) ** 2 + (x - cell[:, 0, None, None]) ** 2
    sigma = (2 * gaussian_radius(extent) + 1) / 6
    target = torch.zeros_like(heat)
    for i, bump in enumerate(torch.exp(-distance / (2 * sigma[:, None, None] ** 2))):
        target[image[i], label[i]] = torch.maximum(target[image[i], label[i]], bump)
    p = heat.sigmoid()
    at = (1 - p) ** 2 * F.logsigmoid(heat)
    away = (1 - target) ** 4 * p**2 * F.logsigmoid(-heat)
    loss = -torch.where(target == 1, at, away).sum()
    loss = loss + SIZE_WEIGHT * F.l1_loss(size[image, :, cell[:, 1], cell[:, 0]], extent, reduction="sum")
    loss = loss + F.l1_loss(offset[image, :, cell[:, 1], cell[:, 0]], centre - cell, reduction="sum")
    return loss / present.sum().clamp(min=1)
