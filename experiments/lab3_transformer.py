"""Lab 3: the transformer, from one dot product to a language model.

It learns to reverse digits and shows what each token looks at. --task sort, copy and add are other toy tasks; --task
text reads a text character by character and then writes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from experiments.lab_helpers.lab3.attention_measures import causal_leaks, mirrored_share
from experiments.lab_helpers.lab3.attention_parity import compare_with_torch, show_query
from experiments.lab_helpers.lab3.attention_pictures import draw_positions, show_attention
from experiments.lab_helpers.lab3.flags import Flags, Recipe, apply_flags
from experiments.lab_helpers.lab3.language_tasks import Task, require_sizes, text_task, toy_task
from experiments.lab_helpers.lab3.written_text import check_text, question_length, show_answers, show_continuations
from experiments.shared import cli, show
from experiments.shared.shapes import trace_shapes
from experiments.shared.training_pictures import draw_losses
from fn import draw, tree
from fn.attention import attention_weights, weighted_sum
from fn.data.loader import batches, endless
from fn.data.sequences import TOYS, Sequences, decode
from fn.gradcheck import largest, smallest
from fn.metrics import Metric, count_examples, exact_match
from fn.models import Model
from fn.models.transformer import transformer
from fn.optim import adamw, one_cycle_schedule
from fn.positions import Positions
from fn.rng import generator
from fn.train import Metrics, TrainState, check_finite, classifier_step, eval_one_epoch, init_train_state, run_key

RECIPES = {
    "reverse": Recipe(layers=1, heads=2, d_model=64, batch_size=64, steps=200, lr=1e-2),
    "copy": Recipe(layers=1, heads=2, d_model=64, batch_size=64, steps=200, lr=1e-2),
    "sort": Recipe(layers=2, heads=4, d_model=64, batch_size=64, steps=2000, lr=3e-3),
    "add": Recipe(layers=2, heads=4, d_model=64, batch_size=64, steps=2000, lr=3e-3, exact=0.99),
    "text": Recipe(layers=4, heads=4, d_model=128, batch_size=12, steps=2000, lr=4e-3, seeds=1),
}


@dataclass(frozen=True)
class Config(Flags):
    out: Path = Path("runs/lab3")
    """the folder for pictures and summary.json"""
    task: Literal["reverse", "copy", "sort", "add", "text"] = "reverse"
    """what it learns"""
    positions: Positions = "learned"
    """how it is told where a token stands"""

    def compile_pays(self) -> bool:
        return self.task == "text"


def main(config: Config, device: torch.device) -> list[cli.Check]:
    """Run the lab; bad flags are refused before the first line is printed."""
    recipe = apply_flags(RECIPES[config.task], config, config.task)
    is_text = config.task == "text"
    task = text_task(config, device) if is_text else toy_task(config.task, seed=config.seed, device=device)
    model = build(config, recipe, task)
    require_sizes(model, task)

    one_query()
    checks = compare_with_torch(config, device)
    alike = f"; the model has {recipe.layers} like it" if recipe.layers > 1 else ""
    one_layer = build(config, recipe._replace(layers=1), task)
    title = f"Shapes of one example in one layer{alike}"
    checks.append(trace_shapes(one_layer, task.test.inputs[:1], title, seed=config.seed, inside="encoder.layers.0."))
    checks.append(check_untrained(config, model, task))
    trained = train(config, recipe, model, task)
    checks += (evaluate_text if is_text else evaluate_toy)(config, model, task, trained)
    show.parameters(trained[0].params, "The transformer of the first seed, trained")
    draw_positions(trained[0].params, task.train.inputs.shape[1], config.out / "positions.png")
    return checks + check_attention(model, task, trained)


def one_query() -> None:
    """Attend with one query to four keys: softmax(q·k / √2) weighs their values."""
    keys = {"north": (0.0, 3.0), "north-east": (2.1, 2.1), "east": (3.0, 0.0), "south": (0.0, -3.0)}
    query, key = torch.tensor([[1.0, 2.0]]), torch.tensor(list(keys.values()))
    value = torch.arange(1.0, 5.0)[:, None]
    products, weights = query @ key.T, attention_weights(query, key)
    show_query(keys, products, weights, value, weighted_sum(weights, value))


def build(config: Config, recipe: Recipe, task: Task) -> Model:
    seq, classes = task.train.inputs.shape[1], len(task.vocabulary)
    d_model, layers, heads = recipe.d_model, recipe.layers, recipe.heads
    return transformer((seq,), classes, d_model=d_model, layers=layers, heads=heads, positions=config.positions)


def check_untrained(config: Config, model: Model, task: Task) -> cli.Check:
    """Check that an untrained model gives every token about the probability 1 / classes: a loss of ln(classes)."""
    params, state = (tree.to(part, task.test.inputs.device) for part in model.init(generator(config.seed)))
    loss = evaluate(model, TrainState(params, state, {}), task.test.part(slice(1000)))["loss"]
    error = abs(loss / math.log(len(task.vocabulary)) - 1)
    return cli.check("untrained: |loss / ln(vocabulary) - 1|", error, "<=", 0.05)


def train(config: Config, recipe: Recipe, model: Model, task: Task) -> list[TrainState]:
    """Train a model per seed, on so many batches of an endless stream, in a new order every epoch; draw the losses."""
    device = task.train.inputs.device
    optimizer = adamw(lr=partial(one_cycle_schedule, lr=recipe.lr, total_steps=recipe.steps))
    step = check_finite(cli.compiled(config, classifier_step(model, optimizer), recipe.batch_size))
    trained, losses = [], []
    for seed in cli.seeds(config, recipe.seeds):
        ts, key, history = init_train_state(model, optimizer, seed=seed, device=device), run_key(seed), []
        with show.progress(recipe.steps, f"{config.task}, seed {seed}") as advance:
            for x, y in islice(endless(task.train, recipe.batch_size, seed=seed), recipe.steps):
                ts, metrics = step(ts, x, y, key=key)
                history.append(metrics["loss"])
                advance(metrics["loss"])
        trained.append(ts)
        losses.append(history)
    draw_losses({"": draw.Seeds(losses)}, config.out / "training.png")
    return trained


def evaluate(model: Model, ts: TrainState, examples: Sequences) -> Metrics:
    """Return the loss, and the share of the examples of which every token is right."""
    metrics = {"exact": Metric(exact_match, count_examples)}
    return eval_one_epoch(ts.params, ts.state, batches(examples, 500), apply=model.apply, metrics=metrics)


@torch.no_grad()
def attention_of(model: Model, ts: TrainState, inputs: Tensor) -> Tensor:
    """Return the attention weights: (layers, batch, heads, queries, keys)."""
    (_, weights), _ = model.apply(ts.params, ts.state, inputs, train=False, need_weights=True)
    return weights


def evaluate_toy(config: Config, model: Model, task: Task, trained: Sequence[TrainState]) -> list[cli.Check]:
    """Check the share of the test problems that every model solves; show answers and attention of the first."""
    first, shown = trained[0], task.test.inputs[:1]
    show_answers(model, first, task)
    weights, characters = attention_of(model, first, shown)[:, 0], decode(shown[0], task.vocabulary)
    title = f"{config.task}: a row is what a token looks at, the darker the more"
    show_attention(weights, characters, title, config.out / "attention.png", first_row=question_length(task) - 1)

    exact, target = [evaluate(model, ts, task.test)["exact"] for ts in trained], RECIPES[config.task].exact
    name = f"{config.task}: {len(task.test.inputs):,} unseen problems solved, worst of {len(trained)} seeds"
    checks = [cli.check(name, smallest(exact), ">=" if target < 1 else "==", target)]
    if config.task == "reverse":
        digits, inputs = TOYS["reverse"].digits, task.test.inputs[:500]
        shares = [mirrored_share(attention_of(model, ts, inputs), digits) for ts in trained]
        name = "reverse: queries that look at the mirrored digit, best head"
        checks.append(cli.check(name, smallest(shares), ">=", 0.9))
    return checks


def evaluate_text(config: Config, model: Model, task: Task, trained: Sequence[TrainState]) -> list[cli.Check]:
    """Compare the loss on the text's last tenth with that of a table of pairs; show text and attention."""
    first, shown = trained[0], task.test.inputs[:1, :24]
    show_continuations(config, model, first, task)
    weights, characters = attention_of(model, first, shown)[:, 0], decode(shown[0], task.vocabulary)
    show_attention(weights, characters, "A row is what a character looks at", config.out / "attention.png")
    return check_text(task, evaluate(model, first, task.test)["loss"])


def check_attention(model: Model, task: Task, trained: Sequence[TrainState]) -> list[cli.Check]:
    """Check what holds of any causal attention, trained or not: rows sum to 1, and the future changes nothing."""
    inputs = task.test.inputs[:4]
    off = largest((attention_of(model, ts, inputs).sum(dim=-1) - 1).abs().max() for ts in trained)
    params, state, _ = trained[0]
    leaks = causal_leaks(lambda x: model.apply(params, state, x, train=False)[0], inputs, len(task.vocabulary))
    return [
        cli.check("attention: largest distance of a row's sum from 1", off, "<=", 1e-5),
        cli.check("causal: positions whose past changed with the future", leaks, "==", 0),
    ]


if __name__ == "__main__":
    cli.run(Config, main)
