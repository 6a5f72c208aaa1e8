"""The detectors in JAX: networks on images with channels last, and losses of one image under `vmap`.

JAX is imported where it is used, as it may be missing.
"""

from collections.abc import Callable
from typing import Any

import torch

from experiments.bench.jax_models import jax_conv, jax_norm, jax_pool
from fn.detection.anchors import VARIANCES, anchor_grid
from fn.models.centernet import SIZE_WEIGHT
from fn.models.pyramid import BLOCKS
from fn.models.ssd import ANCHOR_SIZES

SIDE, CELL = 64, 4  # pixels of an image, and of a cell of the finest map


def _maps(params: dict, state: dict, x: Any, levels: int) -> tuple[list[Any], dict]:
    """Return (the `levels` finest maps of the pyramid, the finest first; the new state)"""
    import jax
    import jax.numpy as jnp

    maps, new_state = [], {"backbone": {}}
    for i, block in enumerate(BLOCKS, start=1):
        x = jax_conv(x, params["backbone"][f"conv{i}"])
        x = jax_pool(x) if block.pooled else x
        x, new_state["backbone"][f"bn{i}"] = jax_norm(x, params["backbone"][f"bn{i}"], state["backbone"][f"bn{i}"])
        x = jax.nn.relu(x)
        maps += [x] if block.returned else []
    merged = jax_conv(maps[2], params["lateral2"])
    finest = []
    for i in (1, 0):
        merged = jax_conv(maps[i], params[f"lateral{i}"]) + jnp.repeat(jnp.repeat(merged, 2, 1), 2, 2)
        if i < levels:
            y, new_state[f"bn{i}"] = jax_norm(jax_conv(merged, params[f"conv{i}"]), params[f"bn{i}"], state[f"bn{i}"])
            finest.insert(0, jax.nn.relu(y))
    return finest, new_state


def jax_ssd(params: dict, state: dict, x: Any) -> tuple[tuple[Any, ...], dict]:
    import jax.numpy as jnp

    maps, new_state = _maps(params["pyramid"], state["pyramid"], x, levels=2)
    kinds = params["offset0"]["bias"].size // 4
    heads = ([jax_conv(y, params[f"{head}{i}"]) for i, y in enumerate(maps)] for head in ("class", "offset"))
    rows = ([y.reshape(len(x), -1, y.shape[-1] // kinds) for y in outputs] for outputs in heads)
    return tuple(jnp.concatenate(levels, axis=1) for levels in rows), {"pyramid": new_state}


def jax_ssd_loss(output: tuple[Any, Any], objects: Any) -> Any:
    import jax
    import jax.numpy as jnp

    grids = [anchor_grid((SIDE, SIDE), (n, n), sizes) for n, sizes in zip((16, 8), ANCHOR_SIZES, strict=True)]
    anchors = jnp.asarray(torch.cat(grids).numpy(), output[0].dtype)
    sums = jax.vmap(_ssd_image_loss, in_axes=(0, 0, 0, None))(*output, objects, anchors)
    in_class, in_box, matched = (part.sum() for part in sums)
    return (in_class + in_box) / jnp.maximum(matched, 1)


def _ssd_image_loss(logits: Any, offsets: Any, objects: Any, anchors: Any) -> tuple[Any, Any, Any]:
    """Return (sum of cross-entropies, sum of smooth L1, anchors matched)"""
    import jax
    import jax.numpy as jnp

    boxes, labels, present = _unpacked(objects)
    sides = jnp.minimum(boxes[:, None, 2:], anchors[:, 2:]) - jnp.maximum(boxes[:, None, :2], anchors[:, :2])
    shared, anchors = jnp.maximum(sides, 0).prod(-1), _centred(anchors)
    overlap = shared / ((boxes[:, 2:] - boxes[:, :2]).prod(-1)[:, None] + anchors[:, 2:].prod(-1) - shared)
    overlap = jnp.where(present[:, None], overlap, -1)
    match = jnp.where(overlap.max(0) >= 0.5, overlap.argmax(0), -1)
    best_of_object = (overlap.argmax(1)[:, None] == jnp.arange(len(anchors))) & (overlap > 0)
    last = jnp.where(best_of_object, jnp.arange(len(boxes))[:, None], -1).max(0)
    match = jnp.where(last >= 0, last, match)

    positive, index = match >= 0, jnp.maximum(match, 0)
    target = jnp.where(positive, labels[index] + 1, 0)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], 1)[:, 0]
    rank = jnp.where(positive, jnp.inf, -jax.lax.stop_gradient(losses)).argsort().argsort()
    counted = positive | (rank < 3 * jnp.maximum(positive.sum(), 1))
    own = jnp.where(positive[:, None], _centred(boxes)[index], anchors)
    shift = (own[:, :2] - anchors[:, :2]) / anchors[:, 2:] / VARIANCES[0]
    growth = jnp.log(own[:, 2:] / anchors[:, 2:]) / VARIANCES[1]
    apart = jnp.abs(offsets - jnp.concatenate([shift, growth], axis=1))
    in_box = jnp.where(apart < 1, apart**2 / 2, apart - 0.5).sum(1)
    return jnp.where(counted, losses, 0).sum(), jnp.where(positive, in_box, 0).sum(), positive.sum()


def jax_centernet(params: dict, state: dict, x: Any) -> tuple[tuple[Any, ...], dict]:
    import jax

    [features], new_state = _maps(params["pyramid"], state["pyramid"], x, levels=1)
    heads = (params[head] for head in ("heat", "size", "offset"))
    return tuple(jax_conv(jax.nn.relu(jax_conv(features, h["conv"])), h["out"]) for h in heads), {"pyramid": new_state}


def jax_centernet_loss(output: tuple[Any, Any, Any], objects: Any) -> Any:
    import jax
    import jax.numpy as jnp

    total, count = (part.sum() for part in jax.vmap(_centernet_image_loss)(*output, objects))
    return total / jnp.maximum(count, 1)


def _centernet_image_loss(heat: Any, size: Any, offset: Any, objects: Any) -> tuple[Any, Any]:
    """Return (the sum of all parts, objects)"""
    import jax
    import jax.numpy as jnp

    boxes, labels, present = _unpacked(objects)
    centre, extent = jnp.split(_centred(boxes) / CELL, 2, axis=1)
    rows, columns, classes = heat.shape
    cell = jnp.clip(jnp.floor(centre), 0, jnp.array([columns - 1, rows - 1])).astype(int)
    along, below = (jnp.arange(n) - cell[:, i, None] for i, n in enumerate((columns, rows)))
    sigma = (2 * _radius(extent) + 1) / 6
    bumps = jnp.exp(-(along[:, None, :] ** 2 + below[:, :, None] ** 2) / (2 * sigma[:, None, None] ** 2))
    own = (labels[:, None] == jnp.arange(classes)) & present[:, None]
    target = jnp.where(own[:, None, None, :], bumps[..., None], 0).max(0)
    p = jax.nn.sigmoid(heat)
    at, away = (1 - p) ** 2 * jax.nn.softplus(-heat), (1 - target) ** 4 * p**2 * jax.nn.softplus(heat)
    at_cell = cell[:, 1], cell[:, 0]
    in_box = SIZE_WEIGHT * jnp.abs(size[at_cell] - extent) + jnp.abs(offset[at_cell] - (centre - cell))
    return jnp.where(target == 1, at, away).sum() + jnp.where(present, in_box.sum(1), 0).sum(), present.sum()


def _radius(extent: Any, t: float = 0.7) -> Any:
    """Return CornerNet's radius; see fn.detection.heatmaps.gaussian_radius."""
    import jax.numpy as jnp

    half, area = extent.sum(-1), extent.prod(-1)
    root: Callable = lambda x: jnp.sqrt(jnp.maximum(x, 0))  # noqa: E731
    alike = (half - root(half**2 - 4 * area * (1 - t) / (1 + t))) / 2
    inwards = (half - root(half**2 - 4 * area * (1 - t))) / 4
    outwards = (root(half**2 + 4 * area * (1 - t) / t) - half) / 4
    return jnp.minimum(jnp.minimum(alike, inwards), outwards)


def _unpacked(objects: Any) -> tuple[Any, Any, Any]:
    """Return (boxes, labels, which are present)"""
    return objects[:, :4], objects[:, 4].astype(int), objects[:, 4] >= 0


def _centred(boxes: Any) -> Any:
    import jax.numpy as jnp

    return jnp.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
