"""No function of fn computes with a tensor argument of a wrong shape or dtype: it names itself and the parameter.

The functions are found by walking the package, their arguments are made from their annotations: each axis name gets a
size of its own. What annotations cannot say stands in GIVEN; a new function fails here until it can be called.
How much is proved: pytest tests/test_shape_checks.py --collect-only | cut -d[ -f1 | sort | uniq -c
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from math import prod
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import torch
from jaxtyping import AbstractArray, TypeCheckError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fn
from fn import tree
from fn.backbones import BACKBONES, cut
from fn.conv import conv2d_init
from fn.data.scene_transforms import random_flip
from fn.data.transforms import random_horizontal_flip
from fn.detection.train import Detections
from fn.distributed import part_gradient
from fn.ensemble import stack
from fn.layers import linear, linear_init, norm_modes
from fn.losses import cross_entropy
from fn.models.centernet import centernet
from fn.models.cnn import cnn_apply, cnn_init
from fn.models.mlp import mlp_apply, mlp_init
from fn.models.pyramid import Backbone, backbone_apply, backbone_init, pyramid_init, squeezenet_backbone
from fn.models.resnet import basic_block_init, bottleneck_init, resnet_features, resnet_init, resnet_network
from fn.models.squeezenet import squeezenet_init
from fn.models.ssd import ssd
from fn.models.transformer import encoder_init, language_model_apply, language_model_init, vision_transformer_init
from fn.optim import adam_init, lr_by_prefix, sgd, sgd_init, sgd_update
from fn.rng import generator
from fn.train import TrainState, classification_loss, train_step
from fn.transfer import head_init

Given = dict[str, Any]
SMALL_BACKBONE = Backbone(partial(backbone_init, channels=1, widths=(2,) * 6), backbone_apply, (2, 2, 2))

WEIGHTS = {"w": torch.ones(2)}
PERCEPTRON = mlp_init(generator(0), 3, (5,), 4)[0]


def mlp_given(d_in: int) -> Given:
    return {"params": mlp_init(generator(0), d_in, (5,), 4)[0], "state": {}, "train": True, "layers": 2}


def cnn_given(channels: int, height: int, width: int) -> Given:
    params, state = cnn_init(generator(0), (channels, height, width), 4, (2, 3))
    return {"params": params, "state": state, "train": True, "blocks": 2}


TRANSFORMER: Given = {"layers": 1, "heads": 2, "d_ff": 5}


def language_given(seq: int) -> Given:
    sizes = TRANSFORMER | {"d_model": 6, "positions": "learned"}
    params, state = language_model_init(generator(0), seq, 4, **sizes)
    return {"params": params, "state": state}


def vision_given(*shape: int) -> Given:
    sizes = TRANSFORMER | {"d_model": 6, "positions": "learned"}
    params, state = vision_transformer_init(generator(0), shape, 4, patch_size=1, **sizes)
    return {"params": params, "state": state, "train": True, "patch_size": 1, "layers": 1, "heads": 2}


def detector_given(make: Callable, channels: int) -> Given:
    detector = make((channels, 16, 16), 2, width=3)
    params, state = detector.model.init(generator(0))
    return {"params": params, "state": state, "train": True} | dict(detector.model.apply.keywords)


def backbone_given(channels: int) -> Given:
    params, state = backbone_init(generator(0), channels, (2,) * 6)
    return {"params": params, "state": state, "train": True}


def pyramid_given(channels: int) -> Given:
    backbone = SMALL_BACKBONE._replace(init=partial(backbone_init, channels=channels, widths=(2,) * 6))
    params, state = pyramid_init(generator(0), backbone, 3, levels=2)
    return {"params": params, "state": state, "train": True, "backbone_apply": backbone_apply, "levels": 2}


def resnet_given(channels: int) -> Given:
    network = resnet_network(8, stages=2)
    params, state = resnet_init(generator(0), channels, 4, widths=(2, 3), **network)
    return {"params": params, "state": state, "train": True} | network


def block_given(init: Callable, channels: int) -> Given:
    params, state = init(generator(0), channels, 4, shortcut="projection")
    return {"params": params, "state": state, "modes": norm_modes(state, True), "shortcut": "projection"}


def pretrained_given(channels: int) -> Given:
    spec = BACKBONES["resnet8"]
    params, state = (cut(spec, part) for part in spec.model((channels, 8, 8), 4).init(generator(0)))
    return {"spec": spec, "params": params, "state": state}


def squeezenet_given(channels: int) -> Given:
    """For large images alone: three times pooled."""
    params, state = squeezenet_init(generator(0), channels, 4)
    return {"params": params, "state": state, "train": False}


def transfer_given(channels: int) -> Given:
    backbone, head = resnet_given(channels), head_init(generator(0), 3, 4)
    params, state = ({"backbone": backbone[k], "head": head[i]} for i, k in enumerate(("params", "state")))
    features = partial(resnet_features, **resnet_network(8, stages=2))
    return {"params": params, "state": state, "train": True, "features": features}


PERCEPTRON_AT_REST = TrainState(PERCEPTRON, {}, sgd_init(PERCEPTRON))
PERCEPTRON_STEP = partial(
    train_step, objective=partial(classification_loss, apply=partial(mlp_apply, layers=2)), optimizer=sgd(lr=0.1)
)


def ensemble_given(models: int, d_in: int) -> TrainState:
    params = mlp_given(d_in)["params"]
    return stack([TrainState(params, {}, sgd_init(params))] * models)


def batch_given(**rest: Any) -> Given:
    return {"x": torch.ones(2, 3), "y": torch.tensor([0, 3])} | rest


# Arguments that cannot be guessed, from the sizes of the axes.
GIVEN: dict[str, Callable[[Given], Given]] = {
    "fn.attention.multi_head_attention": lambda n: {
        "heads": 2,
        "out_proj": linear_init(generator(0), n["d_model"], n["d_model"]),
    },
    "fn.attention.split_heads": lambda n: {"heads": n["d_model"]},
    "fn.attention_tiled.tiled_attention": lambda n: {"block_size": 2},
    "fn.detection.average_precision.average_precision": lambda n: {"classes": 2},
    "fn.detection.boxes.batched_nms": lambda n: {"iou_threshold": 0.5},
    "fn.detection.boxes.box_convert": lambda n: {"in_fmt": "xyxy", "out_fmt": "xywh"},
    "fn.detection.boxes.clip_boxes_to_image": lambda n: {"size": (5, 5)},
    "fn.detection.boxes.nms": lambda n: {"iou_threshold": 0.5},
    "fn.detection.boxes.nms_naive": lambda n: {"iou_threshold": 0.5},
    "fn.detection.boxes.remove_small_boxes": lambda n: {"min_size": 1},
    "fn.conv.adaptive_avg_pool2d": lambda n: {"output_size": 3},
    "fn.conv.avg_pool2d": lambda n: {"kernel_size": 2},
    "fn.conv.max_pool2d": lambda n: {"kernel_size": 2},
    "fn.conv.max_pool2d_naive": lambda n: {"kernel_size": 2},
    "fn.conv.patches": lambda n: {"patch_size": 1},
    "fn.conv.axis_entries": lambda n: {"dim": -1, "kernel_size": 2},
    "fn.conv.windows": lambda n: {"kernel_size": 2},
    "fn.curvature.per_sample_grads": lambda n: {
        "objective": PERCEPTRON_STEP.keywords["objective"],
        "params": mlp_given(prod(n["shape"]))["params"],
        "state": {},
    },
    "fn.curvature.sharpness": lambda n: {"f": lambda params: params["w"].square().sum(), "params": WEIGHTS},
    "fn.data.sequences.decode": lambda n: {"vocabulary": "a"},
    "fn.data.sequences.next_characters": lambda n: {"seq": 2},
    "fn.data.scene_transforms.compose": lambda n: {"transforms": [random_flip]},
    "fn.data.scene_transforms.flip_boxes": lambda n: {"width": 5},
    "fn.data.scenes.canvas": lambda n: {"rng": generator(0), "size": 40},
    "fn.data.transforms.compose": lambda n: {"transforms": [random_horizontal_flip]},
    "fn.data.transforms.cutout": lambda n: {"size": 2},
    "fn.data.transforms.pad_crop": lambda n: {"padding": 2},
    "fn.detection.train.detection_loss": lambda n: {
        "params": WEIGHTS,
        "state": {},
        "apply": lambda params, state, x, train, key: ({"x": params["w"]}, state),
        "loss": lambda x, objects: {"part": x.sum()},
    },
    "fn.detection.train.evaluate_detections": lambda n: {
        "detections": Detections(torch.ones(1, 4), torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long()),
        "classes": 2,
    },
    "fn.detection.train.predict": lambda n: (
        {"detector": ssd((n["channels"], 16, 16), 2, width=3)}
        | {k: detector_given(ssd, n["channels"])[k] for k in ("params", "state")}
    ),
    "fn.ensemble.ensemble_eval": lambda n: {
        "params": ensemble_given(3, prod(n["shape"])).params,
        "state": {},
        "apply": partial(mlp_apply, layers=2),
    },
    "fn.ensemble.ensemble_step": lambda n: {
        "ts": ensemble_given(n["models"], prod(n["shape"])),
        "objective": PERCEPTRON_STEP.keywords["objective"],
        "optimizer": sgd,
    },
    "fn.generation.generate": lambda n: (
        language_given(n["seq"])
        | {"apply": partial(language_model_apply, layers=1, heads=2), "tokens": 1, "context": 2}
    ),
    "fn.detection.anchor_clusters.cluster_sizes": lambda n: {"k": 2, "rng": generator(0)},
    "fn.detection.anchor_clusters.split_by_level": lambda n: {"strides": (8, 16)},
    "fn.detection.heatmaps.center_cells": lambda n: {"height": 5, "width": 6},
    "fn.detection.heatmaps.center_heatmap": lambda n: {"classes": 2, "height": 5, "width": 6},
    "fn.layers.layer_norm": lambda n: {"normalized_shape": n["normalized_shape"]},
    "fn.layers.log_softmax": lambda n: {"dim": -1},
    "fn.layers.softmax": lambda n: {"dim": -1},
    "fn.metrics.top_k_accuracy": lambda n: {"k": 2},
    "fn.models.centernet.centernet_apply": lambda n: detector_given(centernet, n["channels"]),
    "fn.models.centernet.centernet_detect": lambda n: {"image_size": (20, 20)},
    "fn.models.centernet.centernet_loss": lambda n: {"image_size": (20, 20)},
    "fn.models.cnn.cnn_apply": lambda n: cnn_given(n["channels"], n["height"], n["width"]),
    "fn.models.mlp.mlp_apply": lambda n: mlp_given(prod(n["shape"])),
    "fn.models.pyramid.pyramid_apply": lambda n: pyramid_given(n["channels"]),
    "fn.models.pyramid.squeezenet_maps": lambda n: {
        "params": squeezenet_backbone(n["channels"]).init(generator(0))[0],
        "state": {},
        "train": True,
    },
    "fn.models.pyramid.backbone_apply": lambda n: backbone_given(n["channels"]),
    "fn.models.ssd.ssd_apply": lambda n: detector_given(ssd, n["channels"]),
    "fn.models.ssd.ssd_detect": lambda n: {"image_size": (20, 20)},
    "fn.models.resnet.basic_block": lambda n: block_given(basic_block_init, n["channels"]),
    "fn.models.resnet.bottleneck": lambda n: block_given(bottleneck_init, n["channels"]),
    "fn.models.resnet.resnet_apply": lambda n: resnet_given(n["channels"]),
    "fn.models.resnet.resnet_features": lambda n: resnet_given(n["channels"]),
    "fn.models.squeezenet.fire": lambda n: {
        "params": squeezenet_init(generator(0), n["channels"], 4)[0]["features"]["3"]
        | {"squeeze": conv2d_init(generator(0), n["channels"], 16, 1)}
    },
    "fn.models.squeezenet.squeezenet_apply": lambda n: squeezenet_given(n["channels"]),
    "fn.models.squeezenet.squeezenet_features": lambda n: squeezenet_given(n["channels"]),
    "fn.backbones.extract_features": lambda n: pretrained_given(n["channels"]),
    "fn.transfer.few_per_class": lambda n: {"classes": 2, "shots": 1, "seed": 0},
    "fn.transfer.head_apply": lambda n: dict(
        zip(("params", "state"), head_init(generator(0), n["features"], 4), strict=True), train=True
    ),
    "fn.transfer.transfer_apply": lambda n: transfer_given(n["channels"]),
    "fn.models.mlp.two_layer_grads": lambda n: {"params": mlp_given(n["d_in"])["params"]},
    "fn.models.transformer.encoder": lambda n: (
        encoder_init(generator(0), n["d_model"], **TRANSFORMER) | {"num_layers": 1, "heads": 2}
    ),
    "fn.models.transformer.feed_forward": lambda n: {
        "linear1": linear_init(generator(0), n["d_model"], 5),
        "linear2": linear_init(generator(0), 5, n["d_model"]),
    },
    "fn.models.transformer.encoder_layer": lambda n: (
        encoder_init(generator(0), n["d_model"], **TRANSFORMER)["layers"]["0"] | {"heads": 2}
    ),
    "fn.models.transformer.language_model_apply": lambda n: (
        language_given(n["seq"]) | {"train": True, "layers": 1, "heads": 2}
    ),
    "fn.models.transformer.vision_transformer_apply": lambda n: vision_given(n["channels"], n["height"], n["width"]),
    "fn.optim.adam_update": lambda n: {"params": WEIGHTS, "grads": WEIGHTS, "state": adam_init(WEIGHTS)},
    "fn.optim.lr_by_prefix": lambda n: {"optimizer": sgd, "scales": {"w": 0.1}},
    "fn.optim._init_by_prefix": lambda n: {"params": WEIGHTS, "optimizer": sgd, "scales": {"w": 0.1}},
    "fn.optim._update_by_prefix": lambda n: {
        "params": WEIGHTS,
        "grads": WEIGHTS,
        "state": lr_by_prefix(sgd, lr=0.1, scales={"w": 0.1}).init(WEIGHTS),
        "optimizer": sgd,
        "scales": {"w": 0.1},
    },
    "fn.optim._update_at_step": lambda n: {
        "params": WEIGHTS,
        "grads": WEIGHTS,
        "state": sgd_init(WEIGHTS),
        "update": sgd_update,
    },
    "fn.optim._rate_at": lambda n: {"step": 3},
    "fn.optim.adamw_update": lambda n: {"params": WEIGHTS, "grads": WEIGHTS, "state": adam_init(WEIGHTS)},
    "fn.optim.constant_schedule": lambda n: {"total_steps": 5},
    "fn.optim.cosine_schedule": lambda n: {"total_steps": 5},
    "fn.optim.one_cycle_schedule": lambda n: {"total_steps": 5},
    "fn.optim.sgd_update": lambda n: {"params": WEIGHTS, "grads": WEIGHTS, "state": sgd_init(WEIGHTS)},
    "fn.optim.warmup_schedule": lambda n: {"warmup_steps": 5},
    "fn.indices.is_counted": lambda n: {"ignore_index": -100},
    "fn.indices.require_indices": lambda n: {"rows": 1},
    "fn.draw.heat.attention_maps": lambda n: {"queries": ["a"] * n["queries"], "keys": ["b"] * n["keys"]},
    "fn.draw.outlines.boxes": lambda n: {"drawn": [[]] * n["images"], "columns": 4},
    "fn.draw.heat.heat_over": lambda n: {"titles": ["image"] + ["heat"] * n["maps"]},
    "fn.draw.heat.confusion": lambda n: {"classes": [str(i) for i in range(n["classes"])]},
    "fn.draw.images.photo_grid": lambda n: {"titles": ["?"] * n["images"]},
    "fn.draw.lines.spread": lambda n: {
        "x": range(1, n["x"] + 1),
        "xlabel": "",
        "ylabel": "",
        "marked": (1.0, 1.0, ""),
    },
    "fn.positions.add_positions": lambda n: {"positions": "learned"},
    "fn.rng.randint": lambda n: {"low": 0, "high": 5, "shape": (2, 3)},
    "fn.rng.uniform": lambda n: {"shape": (2, 3)},
    "fn.train_variants.accumulated": lambda n: {
        "objective": lambda params, state, x, y, key: (params["w"].sum(), ({"loss": x.mean()}, state)),
        "params": WEIGHTS,
        "state": {},
        "parts": 2,
    },
    "fn.train.classification_loss": lambda n: {
        "params": mlp_given(prod(n["shape"]))["params"],
        "state": {},
        "apply": partial(mlp_apply, layers=2),
    },
    "fn.train._checked_step": lambda n: batch_given(ts=PERCEPTRON_AT_REST, step=PERCEPTRON_STEP),
    "fn.train_variants.several_steps": lambda n: {
        "step": lambda ts, x, y, key: (ts, {"loss": x.sum()}),
        "ts": PERCEPTRON_AT_REST,
    },
    "fn.train_variants.accumulated_step": lambda n: batch_given(
        ts=PERCEPTRON_AT_REST, **PERCEPTRON_STEP.keywords, parts=1
    ),
    "fn.train.train_step": lambda n: batch_given(ts=PERCEPTRON_AT_REST, **PERCEPTRON_STEP.keywords),
    "fn.dtensors.split_step": lambda n: batch_given(ts=PERCEPTRON_AT_REST, **PERCEPTRON_STEP.keywords),
    "fn.distributed.add_in_pairs": lambda n: {"branches": [(1, torch.ones(n["shape"]))]},
    "fn.distributed.from_vector": lambda n: {"like": {"w": torch.ones(n["numbers"])}},
    "fn.distributed.part_gradient": lambda n: batch_given(
        weights=(PERCEPTRON, {}), objective=PERCEPTRON_STEP.keywords["objective"]
    ),
    "fn.distributed.part_shares": lambda n: {"parts": 2},
    "fn.distributed.parts_step": lambda n: batch_given(
        ts=PERCEPTRON_AT_REST,
        gradient=partial(part_gradient, objective=PERCEPTRON_STEP.keywords["objective"]),
        optimizer=PERCEPTRON_STEP.keywords["optimizer"],
        parts=1,
    ),
}
# Sizes that hang together in a way that no axis name says.
SIZES: dict[str, Given] = {
    "fn.data.scenes.canvas": {"digits": 3},
    "fn.draw.heat.attention_maps": {"layers": 2, "heads": 3},
    "fn.detection.train.predict": {"height": 16, "width": 16},
    "fn.layers.layer_norm": {"shape": (4, 3, 2), "normalized_shape": (3, 2)},
    "fn.models.centernet.centernet_apply": {"height": 16, "width": 16},
    "fn.models.pyramid.pyramid_apply": {"height": 16, "width": 17},
    "fn.models.pyramid.squeezenet_maps": {"height": 31, "width": 33},
    "fn.models.pyramid.backbone_apply": {"height": 16, "width": 17},
    "fn.models.ssd.ssd_apply": {"height": 16, "width": 16},
    "fn.models.squeezenet.squeezenet_apply": {"height": 20, "width": 19},
    "fn.models.squeezenet.squeezenet_features": {"height": 20, "width": 19},
    "fn.draw.outlines.boxes": {"images": 3, "channels": 3},
    "fn.draw.heat.heat_over": {"channels": 3, "maps": 2},
    "fn.positions.add_positions": {"seq": 3, "longest": 5},
    "fn.train.classification_loss": {"positions": ()},
}
ANY = (1, 1)
"""what an annotation leaves open"""
DTYPES = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
# Whatever a model reads and a loss compares: the functions that these are handed to check them; and what is only drawn.
STEPS = ("train._checked_step", "train.train_step", "train_variants.accumulated_step")
STEPS += ("distributed.part_gradient", "distributed.parts_step", "dtensors.split_step")
BARE = {f"fn.{step}": {"x", "y"} for step in STEPS} | {
    "fn.draw.heat.heat_maps": {"panels"},
    "fn.data.loader.batches": {"split"},
}
# What stands between the compiled steps, where a check would cost more than the work.
UNHOOKED = {
    "fn.checks.hangs_on_signature",
    "fn.checks.part_of",
    "fn.checks.remember",
    "fn.checks.sign",
    "fn.jit.compiler._count_donated",
    "fn.jit.compiler.flatten_call",
    "fn.jit.compiler.hollow",
    "fn.jit.compiler.lay",
    "fn.jit.compiler.rebuild",
    "fn.jit.contents._append",
    "fn.jit.contents._cell",
    "fn.jit.contents._parts",
    "fn.jit.contents._parts_of_code",
    "fn.jit.contents.append_contents",
    "fn.jit.disk.link.run",
    "fn.jit.fingerprint._tell",
    "fn.jit.fingerprint._tell_annotation",
    "fn.jit.fingerprint._tell_class",
    "fn.jit.fingerprint._tell_code",
    "fn.jit.fingerprint._tell_function",
    "fn.jit.fingerprint._tell_globals",
    "fn.jit.fingerprint._tell_in_c",
    "fn.jit.fingerprint._tell_parts",
    "fn.jit._require_apart",
    "fn.precision.upcast",
    "fn.tree._map",
    "fn.workarounds.torch_conv2d",  # conv2d, its caller, has checked
}
# Axes that two parameters must share, lest a name in an annotation gets lost, and its check with it.
TIES = {
    "fn.attention.attention_scores": {"batch", "queries", "keys", "d_head"},
    "fn.attention.attention_weights": {"batch", "queries", "keys", "d_head"},
    "fn.attention.multi_head_attention": {"batch", "queries", "keys", "d_model"},
    "fn.attention.native_attention": {"batch", "queries", "keys", "d_head"},
    "fn.attention.scaled_dot_product_attention": {"batch", "queries", "keys", "d_head"},
    "fn.attention.weighted_sum": {"batch", "keys"},
    "fn.attention_tiled.tiled_attention": {"batch", "queries", "keys", "d_head"},
    "fn.detection.anchors.decode": {"boxes"},
    "fn.detection.anchors.encode": {"boxes"},
    "fn.detection.anchors.hard_negatives": {"anchors"},
    "fn.detection.anchors.match_anchors": {"objects"},
    "fn.detection.average_precision.average_precision": {"detections", "objects"},
    "fn.detection.boxes.batched_nms": {"boxes"},
    "fn.detection.boxes.nms": {"boxes"},
    "fn.detection.boxes.nms_naive": {"boxes"},
    "fn.conv.conv2d": {"channels", "out_channels"},
    "fn.curvature.per_sample_grads": {"batch"},
    "fn.data.transforms.affine": {"batch"},
    "fn.data.transforms.compose": {"batch"},
    "fn.data.transforms.cutout": {"batch"},
    "fn.data.transforms.normalize": {"channels"},
    "fn.data.transforms.pad_crop": {"batch"},
    "fn.data.transforms.random_affine": {"batch"},
    "fn.data.transforms.random_crop": {"batch"},
    "fn.data.transforms.random_cutout": {"batch"},
    "fn.data.transforms.random_horizontal_flip": {"batch"},
    "fn.data.transforms.random_resized_crop": {"batch"},
    "fn.data.scene_transforms.compose": {"batch"},
    "fn.data.scene_transforms.random_flip": {"batch"},
    "fn.data.scene_transforms.random_zoom": {"batch"},
    "fn.data.scene_transforms.zoom": {"batch"},
    "fn.data.scenes.canvas": {"digits"},
    "fn.detection.train.detection_loss": {"batch"},
    "fn.ensemble.ensemble_eval": {"examples"},
    "fn.ensemble.ensemble_step": {"examples", "models"},
    "fn.detection.heatmaps.center_heatmap": {"objects"},
    "fn.layers.batch_norm": {"channels"},
    "fn.layers.layer_norm": {"normalized_shape"},
    "fn.layers.linear": {"d_in", "d_out"},
    "fn.losses.cross_entropy": {"batch", "classes", "positions"},
    "fn.losses.mse_loss": {"shape"},
    "fn.metrics.accuracy": {"batch", "positions"},
    "fn.metrics.exact_match": {"batch", "positions"},
    "fn.metrics.top_k_accuracy": {"batch", "positions"},
    "fn.models.mlp.two_layer_grads": {"batch"},
    "fn.positions.add_positions": {"d_model"},
    "fn.losses.penalty_reduced_focal_loss": {"shape"},
    "fn.losses.sigmoid_focal_loss": {"shape"},
    "fn.losses.smooth_l1_loss": {"shape"},
    "fn.models.centernet.centernet_detect": {"batch", "rows", "columns"},
    "fn.models.centernet.centernet_loss": {"batch", "rows", "columns"},
    "fn.models.ssd.ssd_detect": {"batch", "anchors"},
    "fn.models.ssd.ssd_loss": {"batch", "anchors"},
    "fn.rng.fold_in": {"keys"},
    "fn.train_variants.accumulated": {"batch"},
    "fn.train.classification_loss": {"batch"},
}


def name_of(f: Any) -> str:
    return f"{f.__module__}.{f.__qualname__}" if callable(f) else str(f)


def functions() -> Iterator[Callable]:
    for info in pkgutil.walk_packages(fn.__path__, "fn."):
        members = dict(vars(importlib.import_module(info.name)))
        members.pop("__annotate__", None)  # Python 3.14 adds it to a module that annotates a name
        yield from {f for f in members.values() if inspect.isfunction(f) and f.__module__ == info.name}


def members(f: Callable) -> Iterator[tuple[str, Any]]:
    """Yield (parameter, annotation), once for each member of a union."""
    for name, parameter in inspect.signature(f).parameters.items():
        words_of = parameter.annotation
        yield from (
            (name, a) for a in (get_args(words_of) if get_origin(words_of) in (Union, UnionType) else (words_of,))
        )


def tensors(f: Callable) -> dict[str, Any]:
    """Return the parameters of `f` with a jaxtyping annotation, of a union the first.

    UNIONS has others of another shape.
    """
    found: dict[str, Any] = {}
    for name, a in members(f):
        if inspect.isclass(a) and issubclass(a, AbstractArray):
            found.setdefault(name, a)
    return found


def axes(annotation: Any) -> list[tuple[str, set[str]]]:
    """Return the axes and the names in each.

    "*batch w//{n} 2" -> [("*batch", {"batch"}), ("w//{n}", {"w"}), ("2", set())]

    One that broadcasts, "#keys", is given its whole size.
    """
    words = annotation.dim_str.replace("#", "").split()
    return [(axis, set(re.findall(r"[a-z]\w*", re.sub("{.*?}", "", axis)))) for axis in words]


def names(annotation: Any) -> set[str]:
    return {name for _, words_of in axes(annotation) for name in words_of}


def takes_any(annotation: Any) -> bool:
    """Return whether an annotation leaves the dtype open, as Shaped does."""
    return not isinstance(getattr(annotation, "dtypes", ()), Iterable)


def make(f: Callable, parameter: str, shape: tuple[int, ...], *, wrong_dtype: bool = False) -> Tensor:
    """Return ones, and of whole numbers zeros, which are valid as indices; or of a dtype that is refused."""
    annotations = [a for name, a in members(f) if name == parameter]
    dtypes = [str(dtype) for a in annotations for dtype in (DTYPES if takes_any(a) else getattr(a, "dtypes", ()))]
    kinds = [kind for kind in DTYPES if any(dtype.startswith(kind) for dtype in dtypes) != wrong_dtype]
    return torch.full(shape, kinds[0] != "int", dtype=DTYPES[kinds[0]])


def shape(annotation: Any, sizes: Given, arguments: Given, grown: str = "") -> tuple[int, ...]:
    """Return the shape that an annotation asks for; the axis named `grown` is made one too large."""
    lengths: list[int] = []
    for axis, words_of in axes(annotation):
        starred = axis[0] in "*."
        lengths += sizes.get(axis[1:], ANY) if starred else [eval(axis.format(**arguments), dict(sizes))]
        lengths[-1] += grown in words_of
    return tuple(lengths)


def wrong_shapes(annotation: Any, right: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield an axis too many, one too few, another size where it is a number.

    Whatever the annotation refuses on its own.
    """
    star = [axis for axis, _ in axes(annotation) if axis[0] in "*."]
    fewest = len(axes(annotation)) - len(star)
    if not star:
        yield (1, *right)
        yield from (
            (*right[:i], right[i] + 1, *right[i + 1 :])
            for i, (_, words_of) in enumerate(axes(annotation))
            if not words_of
        )
    if fewest:
        yield right[: fewest - 1]


@cache
def valid(f: Callable) -> tuple[Given, Given]:
    """Return arguments that `f` accepts, and the size of each axis, falling so that kernels fit in images."""
    words = dict.fromkeys(axis for a in tensors(f).values() for axis, words_of in axes(a) if words_of)
    sizes = {w.removeprefix("*"): (12 - i, 2) if w[0] == "*" else 12 - i for i, w in enumerate(words) if "/" not in w}
    sizes |= SIZES.get(name_of(f), {})
    arguments = {p.name: p.default for p in inspect.signature(f).parameters.values() if p.default is not p.empty}
    arguments |= GIVEN.get(name_of(f), lambda n: {})(sizes)
    arguments |= {name: make(f, name, shape(a, sizes, arguments)) for name, a in tensors(f).items()}
    required = {p.name for p in inspect.signature(f).parameters.values() if p.kind is not p.VAR_KEYWORD}
    missing = required - arguments.keys()
    assert not missing, f"say in GIVEN what {name_of(f)} should get as {missing}"
    return arguments, sizes


class Watch(TorchDispatchMode):
    """Notes every operation on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran.append(func)
        return func(*args, **(kwargs or {}))


def assert_refused(f: Callable, blamed: str, arguments: Given) -> None:
    with Watch() as watch, pytest.raises(TypeCheckError) as refusal:
        f(**arguments)
    assert f"checking the parameters of {name_of(f)}.\n" in str(refusal.value)
    assert f"typechecking parameter '{blamed}'.\n" in str(refusal.value)
    assert not watch.ran, "it was refused, but not before this was computed"


@pytest.fixture(autouse=True, scope="module")
def few_numbers_are_printed() -> Iterator[None]:
    """A refusal holds the values of a tensor: to write them takes longer than all else here."""
    torch.set_printoptions(threshold=1, edgeitems=1)
    yield
    torch.set_printoptions(profile="default")


FUNCTIONS = sorted(functions(), key=name_of)
CHECKED = [f for f in FUNCTIONS if tensors(f) and f.__name__[0] != "_" and name_of(f) not in UNHOOKED]
PARAMETERS = [(f, p) for f in CHECKED for p in tensors(f)]
TYPED = [(f, p) for f, p in PARAMETERS if not takes_any(tensors(f)[p])]
SHAPED = [(f, p) for f, p in PARAMETERS if any(wrong_shapes(tensors(f)[p], (1,) * 9))]
SHARED = [
    (f, p, axis)
    for f, p in PARAMETERS
    for axis in sorted(names(tensors(f)[p]))
    if sum(axis in names(a) for a in tensors(f).values()) > 1
]


@pytest.mark.parametrize("f", [f for f in FUNCTIONS if name_of(f) not in UNHOOKED], ids=name_of)
def test_the_hook_wraps_every_function(f: Callable) -> None:
    inner = inspect.unwrap(f, stop=lambda g: "jaxtyping" in g.__code__.co_filename)
    assert "jaxtyping" in inner.__code__.co_filename


@pytest.mark.parametrize("f", [f for f in FUNCTIONS if f.__name__[0] != "_"], ids=name_of)
def test_no_tensor_goes_unchecked(f: Callable) -> None:
    """Not bare, nor inside a container, where one entry would be checked or none."""
    unchecked = {name for name, a in members(f) if a is Tensor or ("jaxtyping." in str(a) and name not in tensors(f))}
    assert unchecked <= BARE.get(name_of(f), set())


@pytest.mark.parametrize("f", CHECKED, ids=name_of)
def test_arguments_made_from_the_annotations_are_accepted(f: Callable) -> None:
    with Watch() as watch:
        f(**valid(f)[0])
    assert watch.ran


@pytest.mark.parametrize(("f", "parameter"), SHAPED, ids=name_of)
def test_wrong_rank_or_size_is_refused(f: Callable, parameter: str) -> None:
    arguments, _ = valid(f)
    annotation = tensors(f)[parameter]
    for wrong in wrong_shapes(annotation, tuple(arguments[parameter].shape)):
        assert_refused(f, parameter, arguments | {parameter: make(f, parameter, wrong)})


@pytest.mark.parametrize(("f", "parameter"), TYPED, ids=name_of)
def test_wrong_dtype_is_refused(f: Callable, parameter: str) -> None:
    arguments, _ = valid(f)
    wrong = make(f, parameter, tuple(arguments[parameter].shape), wrong_dtype=True)
    assert_refused(f, parameter, arguments | {parameter: wrong})


@pytest.mark.parametrize(("f", "parameter", "axis"), SHARED, ids=name_of)
def test_an_axis_that_differs_between_two_parameters_is_refused(f: Callable, parameter: str, axis: str) -> None:
    """Parameters are read from left to right: the first that does not fit those before it is the one named."""
    arguments, sizes = valid(f)
    grown = make(f, parameter, shape(tensors(f)[parameter], sizes, arguments, grown=axis))
    first, second, *_ = (name for name, a in tensors(f).items() if axis in names(a))
    assert_refused(f, second if parameter == first else parameter, arguments | {parameter: grown})


def test_the_walk_finds_the_functions_and_their_ties() -> None:
    assert len(CHECKED) >= 30
    found = {name_of(f): {axis for g, _, axis in SHARED if g is f} for f in CHECKED}
    assert {name: found.get(name) for name in TIES} == TIES


@pytest.mark.parametrize(
    ("leaf", "change", "op", "blamed"),
    [
        ("conv2.weight", lambda w: w.mT[..., 1:, :, :], "fn.conv.conv2d", "weight"),
        ("bn2.bias", lambda b: b[1:], "fn.layers.batch_norm", "bias"),
        ("fc.weight", lambda w: w.T, "fn.layers.linear", "weight"),
        ("fc.bias", lambda b: b.long(), "fn.layers.linear", "bias"),
        ("fc.weight", lambda w: None, "linear(", "weight"),
        ("fc.wait", lambda none: torch.ones(3), "linear(", "wait"),
    ],
)
def test_a_model_names_the_op_and_the_entry_that_do_not_fit(leaf: str, change: Callable, op: str, blamed: str) -> None:
    given = cnn_given(2, 4, 4)
    flat = tree.flatten(given["params"])
    flat = {name: x for name, x in (flat | {leaf: change(flat.get(leaf))}).items() if x is not None}
    with pytest.raises((TypeCheckError, TypeError)) as refusal:
        cnn_apply(**given | {"params": tree.unflatten(flat), "x": torch.ones(2, 2, 4, 4)})
    where = [str(refusal.value), *(str(entry.statement) for entry in refusal.traceback)]
    assert any(op in text for text in where)
    assert f"'{blamed}'" in str(refusal.value)


LOGITS = torch.ones(2, 3, 4)
# What another member of a union asks for, where the first asks for another shape.
UNIONS: list[tuple[Callable, str, Given]] = [
    (linear, "weight", {"x": torch.ones(2, 3), "weight": torch.ones(4)}),
    (cross_entropy, "target", {"input": LOGITS, "target": torch.zeros(2, 5).long()}),
    (cross_entropy, "target", {"input": LOGITS, "target": torch.zeros(3, 4).long()}),
    (cross_entropy, "target", {"input": LOGITS, "target": torch.zeros(2, 3, 4).long()}),
    (cross_entropy, "target", {"input": LOGITS, "target": torch.zeros(2, 4)}),
]


@pytest.mark.parametrize(("f", "blamed", "arguments"), UNIONS)
def test_a_shape_that_no_member_of_a_union_has_is_refused(f: Callable, blamed: str, arguments: Given) -> None:
    assert_refused(f, blamed, arguments)


def test_a_transposed_weight_of_a_perceptron_is_refused() -> None:
    params = PERCEPTRON | {"fc2": PERCEPTRON["fc2"] | {"weight": PERCEPTRON["fc2"]["weight"].T}}
    with pytest.raises(TypeCheckError, match=r"(?s)fn\.layers\.linear.*'weight'.*f32\[5,4\].*d_in=5"):
        mlp_apply(params, {}, torch.ones(2, 3), train=True, layers=2)
