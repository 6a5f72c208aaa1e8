"""The concepts that are spaced, and what each is practised with: drills, failures of the gallery, a question."""

from functools import cache
from typing import NamedTuple

from experiments.gallery.failures import gallery
from experiments.gallery.mine import case
from experiments.since.pairs import pairs


class Concept(NamedTuple):
    title: str
    question: str
    drills: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """what it rests on directly: whoever knows this one knows these too"""


# the easiest first, in the order of the labs
CONCEPTS = {
    "tensors": Concept(
        "axes and broadcasting",
        "broadcasting",
        failures=("silent_broadcast", "flattened_batch", "channels_last"),
    ),
    "linear": Concept("linear maps", "linear", ("linear",), ("zero_init",), ("tensors",)),
    "relu": Concept("activations", "relu", ("relu",), ("dead_relus", "gradients_vanish"), ("linear",)),
    "softmax": Concept("softmax", "softmax", ("softmax",), ("softmax_wrong_axis",), ("tensors",)),
    "losses": Concept("losses", "cross_entropy", ("cross_entropy",), ("double_softmax", "float_labels"), ("softmax",)),
    "metrics": Concept("accuracy", "accuracy", ("accuracy", "top_k_accuracy"), (), ("tensors",)),
    "gradients": Concept(
        "gradients", "gradients", ("two_layer_grads", "numerical_grad"), ("detached_loss",), ("relu", "losses")
    ),
    "optimizers": Concept(
        "optimizers",
        "optimizers",
        ("sgd", "adam", "clip_grad_norm"),
        ("rate_too_high", "rate_too_low", "decayed_norms"),
        ("gradients",),
    ),
    "loops": Concept(
        "the training loop",
        "loops",
        ("classic_loop", "functional_loop"),
        ("gradients_pile_up",),
        ("gradients",),
    ),
    "norms": Concept("norms", "norms", ("layer_norm", "batch_norm"), ("batch_norm_trains",), ("tensors",)),
    "convolution": Concept(
        "convolution", "convolution", ("max_pool2d", "conv2d_naive", "conv2d_unfold"), (), ("linear",)
    ),
    "dropout": Concept("dropout", "dropout", ("dropout",), ("dropout_on",), ("tensors",)),
    "schedules": Concept(
        "schedules", "schedules", ("cosine_schedule", "warmup_schedule"), ("no_warmup",), ("optimizers",)
    ),
    "training": Concept(
        "the trainer",
        "training",
        ("train_one_epoch", "eval_one_epoch", "train_step", "accumulated"),
        ("per_batch_mean",),
        ("loops", "optimizers"),
    ),
    "checkpoints": Concept(
        "checkpoints", "checkpoints", ("checkpoint_save",), ("wrong_checkpoint", "more_than_tensors"), ("loops",)
    ),
    "attention": Concept(
        "attention",
        "attention",
        ("causal_mask", "scaled_dot_product_attention", "multi_head_attention"),
        ("wrong_axis", "mask_added_twice"),
        ("softmax", "linear"),
    ),
    "positions": Concept("positions", "positions", ("sinusoidal_encoding",), (), ("attention",)),
    "transfer": Concept("freezing", "transfer", ("freeze",), ("frozen_statistics",), ("norms", "loops")),
    "boxes": Concept(
        "boxes and anchors",
        "boxes",
        ("box_iou", "encode", "decode", "nms", "batched_nms", "match_anchors"),
        (),
        ("tensors",),
    ),
    "average_precision": Concept(
        "average precision", "average_precision", ("average_precision",), (), ("boxes", "metrics")
    ),
    "data": Concept(
        "data",
        "data",
        ("Examples", "batches"),
        ("unshuffled", "labels_misaligned", "normalised_twice", "test_leak", "workers_alike"),
    ),
    "processes": Concept(
        "many processes",
        "processes",
        ("all_reduce_mean", "zero1_update", "data_parallel_step"),
        (),
        ("training", "data"),
    ),
    "numbers": Concept(
        "number formats",
        "numbers",
        failures=("integer_input", "float64_creeps_in", "bf16_vanishes", "fp16_overflow"),
    ),
    "devices": Concept("devices", "devices", failures=("buffer_left_behind", "half_elsewhere")),
    "idioms": Concept("today's idioms", "idioms"),
}
OF_KIND = {
    "shape": "tensors",
    "device": "devices",
    "dtype": "numbers",
    "optimisation": "optimizers",
    "data": "data",
    "evaluation": "metrics",
    "autograd": "gradients",
    "tools": "idioms",
}
"""the concept of a failure that no row names, by its folder in the gallery"""


def all_needs(name: str) -> set[str]:
    """Return the concepts that a concept rests on, directly or not."""
    needs = CONCEPTS[name].needs
    return set(needs).union(*map(all_needs, needs))


def hardest_first() -> list[str]:
    """Return the concepts in the order in which a placement asks: those that rest on the most first."""
    return sorted(CONCEPTS, key=lambda name: -len(all_needs(name)))


@cache
def failures_of(name: str) -> tuple[str, ...]:
    """Return the failures of the gallery that belong to a concept."""
    named = {failure for concept in CONCEPTS.values() for failure in concept.failures}
    others = [f.name for f in gallery().values() if f.name not in named and OF_KIND.get(f.kind) == name]
    return tuple(f for f in CONCEPTS[name].failures if f in gallery()) + tuple(others)


@cache
def rewrites() -> tuple[str, ...]:
    """Return the old idioms to rewrite."""
    return tuple(pairs())


@cache
def concept_of(task: str) -> str | None:
    """Return the concept that a task practises: a drill, or question:…, failure:…, bug:…"""
    kind, _, rest = task.rpartition(":")
    for name, concept in CONCEPTS.items():
        if not kind and rest in concept.drills:
            return name
        if kind == "question" and rest == concept.question:
            return name
        if kind in ("failure", "bug") and rest in map(case, failures_of(name)):
            return name
    return {"shape": "convolution", "rewrite": "idioms", "concept": rest if rest in CONCEPTS else None}.get(kind)
