"""The lesson of Lab 4 on cached features: the head under the frozen backbone, beside the head on stored features."""

import time
from functools import partial

from experiments.lab_helpers.lab4 import transfer_report
from experiments.lab_helpers.lab4.transfer_task import Recipe, Task
from experiments.shared import cli, show
from fn import tree
from fn.backbones import extract_features
from fn.data.datasets import Split
from fn.data.loader import batches
from fn.gradcheck import relative_error
from fn.optim import adamw, one_cycle_schedule
from fn.rng import generator
from fn.train import check_finite, classifier_step, count_steps, init_train_state, run_key
from fn.transfer import batch_size_of, freeze, unfreeze


def cache_features(task: Task, recipe: Recipe, seed: int) -> list[cli.Check]:
    """Train the head on all images under the frozen backbone, then on features computed once: the same head, sooner."""
    images, labels = task.dataset.train
    lr = recipe.ways["head"].lr
    batch_size, states, seconds = batch_size_of(len(labels), recipe.batch_share), {}, {}
    for way in ("images", "features"):
        for epochs in (1, recipe.timed_epochs):  # the first steps of a process take seconds: they are not timed
            began = time.perf_counter()
            if way == "images":
                model, data = freeze(task.whole, ["head"]), images
            else:
                model, data = task.head, extract_features(task.spec, *task.weights, images)
            total = count_steps(len(labels), epochs=epochs, batch_size=batch_size)
            optimizer = adamw(lr=partial(one_cycle_schedule, lr=lr, total_steps=total))
            step = check_finite(classifier_step(model, optimizer))
            ts, key = init_train_state(model, optimizer, seed=seed, device=images.device), run_key(seed)
            for epoch in range(epochs):
                for x, y in batches(Split(data, labels), batch_size, seed=seed, epoch=epoch):
                    ts, _ = step(ts, x, y, key=key)
            states[way], seconds[way] = ts, time.perf_counter() - began
    show.console.print(
        f"The head, {recipe.timed_epochs} epochs of {len(labels):,} images: {seconds['images']:.1f} s under the "
        f"backbone, {seconds['features']:.1f} s on its features, computed once",
        soft_wrap=True,
    )
    under, alone = states["images"], states["features"]
    before = [tree.to(part, images.device) for part in task.whole.init(generator(seed))]
    held = tree.size(under.opt_state["mean"]) - tree.size(before[0]["head"])
    return [
        transfer_report.check_moved("head only", before, unfreeze(under.params, under.state), ["head"]),
        cli.check("head only: numbers the optimizer holds for frozen leaves", held, "==", 0),
        cli.check(
            "cached features: relative gap of the head", relative_error(under.params["head"], alone.params), "<=", 1e-3
        ),
        cli.check("cached features: how many times faster", seconds["images"] / seconds["features"], ">=", 2),
    ]
