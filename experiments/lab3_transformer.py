"""Lab 3: the transformer, from one dot product to a language model.

It learns to reverse digits, and shows what it looks at. --task sort, copy and add are other toys; --task text reads a
text character by character and then writes some of its own.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from experiments.shared import cli, show
from experiments.shared.attention_parity import beside_torch, one_query
from experiments.shared.attention_pictures import draw_attention, draw_positions, print_attention
from experiments.shared.shapes import show_shapes
from fn import draw, tree
from fn.data.loader import batches, endless
from fn.data.sequences import (
    IGNORED,
    TOY_VOCABULARY,
    TOYS,
    Sequences,
    decode,
    encode,
    next_characters,
    read_text,
    toy_examples,
)
from fn.generation import generate
from fn.metrics import exact_match
from fn.models import Model
from fn.models.transformer import transformer
from fn.optim import adam_init
from fn.positions import Positions
from fn.rng import generator
from fn.rng import key as rng_key
from fn.trace import trace
from fn.train import Metrics, TrainState, eval_one_epoch, init, one_cycle_adamw, train_one_epoch

UNSEEN = 5000
PUBLISHED = {"86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed": 1.88}
"""validation loss of nanoGPT on tinyshakespeare after 2,000 steps on a CPU, by the text's SHA-256"""

MaybeText = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]


class Recipe(NamedTuple):
    layers: int
    heads: int
    d_model: int
    batch_size: int
    steps: int
    lr: float
    seeds: int = 5
    exact: float = 1.0


RECIPES = {
    "reverse": Recipe(layers=1, heads=2, d_model=64, batch_size=64, steps=200, lr=1e-2),
    "copy": Recipe(layers=1, heads=2, d_model=64, batch_size=64, steps=200, lr=1e-2),
    "sort": Recipe(layers=2, heads=4, d_model=64, batch_size=64, steps=2000, lr=3e-3),
    "add": Recipe(layers=2, heads=4, d_model=64, batch_size=64, steps=2000, lr=3e-3, exact=0.99),
    "text": Recipe(layers=4, heads=4, d_model=128, batch_size=12, steps=2000, lr=4e-3, seeds=1),
}
BLOCK = 64


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/lab3")
    """the folder for pictures and summary.json"""
    task: Literal["reverse", "copy", "sort", "add", "text"] = "reverse"
    """what it learns"""
    positions: Positions = "learned"
    """how it is told where a token stands"""
    layers: cli.MaybeInt = None
    """how many blocks of attention and perceptron (each task has its own)"""
    heads: cli.MaybeInt = None
    """of each layer (the task's own)"""
    d_model: cli.MaybeInt = None
    """width of the residual stream (the task's own)"""
    batch_size: cli.MaybeInt = None
    """examples per step (the task's own)"""
    steps: cli.MaybeInt = None
    """updates (the task's own)"""
    lr: cli.MaybeFloat = None
    """the highest learning rate (the task's own)"""
    file: cli.MaybePath = None
    """what --task text reads, in UTF-8 (the topics of Python's help)"""
    block: int = BLOCK
    """how many characters --task text sees at once"""
    prompt: MaybeText = None
    """what --task text goes on from (a line break, or in a text without any its first character by code)"""
    length: int = 400
    """how many characters it writes"""
    temperature: float = 0.8
    """below 1 it plays safe; 0 takes the likeliest character every time"""
    top_k: cli.MaybeInt = None
    """draw from so many of the likeliest characters (from all)"""

    def compile_pays(self) -> bool:
        return self.task == "text"


class Lesson(NamedTuple):
    """What there is to learn, and by whom."""

    model: Model
    vocabulary: str
    seen: Sequences
    unseen: Sequences
    published: float | None = None
    """the validation loss that others report of this text"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    """All that can be wrong with the flags is found before the first line is printed."""
    recipe = settle(config)
    lesson = (a_text if config.task == "text" else a_toy)(config, recipe, device)
    one_query()
    checks = beside_torch(config, device)
    checks += [shapes(config, recipe, lesson), guess_evenly(config, lesson)]
    runs = [fit(config, recipe, lesson, seed) for seed in cli.seeds(config, recipe.seeds)]
    losses = {f"seed {config.seed + i}": [m["loss"] for m in history] for i, (_, history) in enumerate(runs)}
    draw.save(draw.curves({"loss": losses}, log=["loss"]), config.out / "training.png")
    trained = [ts for ts, _ in runs]
    judge = judge_text if config.task == "text" else judge_toy
    checks += judge(config, lesson, trained)
    draw_positions(trained[0].params, lesson.seen.inputs.shape[1], config.out / "positions.png")
    return checks + sanity(lesson, trained)


def settle(config: Config) -> Recipe:
    """The task's recipe, with what the flags say instead; UsageError for what cannot be."""
    given = {name: getattr(config, name) for name in Recipe._fields if getattr(config, name, None) is not None}
    recipe = RECIPES[config.task]._replace(**given)
    least = recipe._asdict() | {
        "block": config.block,
        "length": config.length,
        "top_k": 1 if config.top_k is None else config.top_k,
    }
    for name in ("layers", "heads", "d_model", "batch_size", "steps", "block", "length", "top_k"):
        if least[name] < 1:
            raise cli.UsageError(f"--{name.replace('_', '-')} {least[name]}: at least 1 is needed")
    if not 0 < recipe.lr < math.inf:
        raise cli.UsageError(f"--lr {recipe.lr}: a learning rate is a number above 0")
    if not 0 <= config.temperature < math.inf:
        raise cli.UsageError(f"--temperature {config.temperature} is negative or not a number")
    defaults = Config()
    for name in ("file", "block", "prompt", "length", "temperature", "top_k"):
        if config.task != "text" and getattr(config, name) != getattr(defaults, name):
            raise cli.UsageError(f"--{name.replace('_', '-')} is for --task text, not for {config.task}")
    return recipe


def build(config: Config, recipe: Recipe, seq: int, classes: int, *, layers: int | None = None) -> Model:
    """UsageError for sizes that do not go together."""
    model = transformer(
        (seq,),
        classes,
        d_model=recipe.d_model,
        layers=layers or recipe.layers,
        heads=recipe.heads,
        positions=config.positions,
    )
    try:
        params, state = model.init(generator(config.seed))
        model.apply(params, state, torch.zeros(1, seq, dtype=torch.int64), train=False)
    except ValueError as error:
        raise cli.UsageError(str(error)) from None
    return model


def a_toy(config: Config, recipe: Recipe, device: torch.device) -> Lesson:
    toy = TOYS[config.task]
    every = toy_examples(toy, min(50_000 + UNSEEN, 10**toy.digits), seed=config.seed)
    every = Sequences(*(part.to(device) for part in every))
    model = build(config, recipe, every.inputs.shape[1], len(TOY_VOCABULARY))
    return Lesson(model, TOY_VOCABULARY, every.part(slice(UNSEEN, None)), every.part(slice(UNSEEN)))


def a_text(config: Config, recipe: Recipe, device: torch.device) -> Lesson:
    """The first nine tenths of it to learn from, the rest to be judged by, a block after the other."""
    try:
        text = read_text(config.file)
    except ValueError as error:
        raise cli.UsageError(f"--file {error}") from None
    vocabulary = "".join(sorted(set(text)))
    if len(vocabulary) < 2:
        raise cli.UsageError(f"--file: all of the text is {vocabulary!r}, and there is nothing to tell it from")
    try:
        prompt = encode(opening(config, vocabulary), vocabulary)
    except ValueError as error:
        raise cli.UsageError(f"--prompt: {error}, the characters of the text") from None
    if not 1 <= len(prompt) <= config.block:
        raise cli.UsageError(f"--prompt has {len(prompt)} characters; the model has positions for 1 to {config.block}")
    if config.top_k and config.top_k > len(vocabulary):
        raise cli.UsageError(f"--top-k {config.top_k}: the text has only {len(vocabulary)} different characters")
    tokens = encode(text, vocabulary).to(device)
    first, rest = tokens.tensor_split([len(tokens) * 9 // 10])
    if len(rest) <= config.block:
        raise cli.UsageError(f"--block {config.block} does not fit into a tenth of a text of {len(text)} characters")
    unseen = next_characters(rest, config.block).part(slice(None, None, config.block))
    model = build(config, recipe, config.block, len(vocabulary))
    published = PUBLISHED.get(hashlib.sha256(text.encode()).hexdigest())
    return Lesson(model, vocabulary, next_characters(first, config.block), unseen, published)


def opening(config: Config, vocabulary: str) -> str:
    """The prompt, or one that the text has"""
    if config.prompt is not None:
        return config.prompt
    return "\n" if "\n" in vocabulary else vocabulary[0]


def shapes(config: Config, recipe: Recipe, lesson: Lesson) -> cli.Check:
    """Of one example in a model of one layer, as the others are like it."""
    example = lesson.unseen.inputs[:1]
    model = build(config, recipe, example.shape[1], len(lesson.vocabulary), layers=1)
    params, state = (tree.to(part, example.device) for part in model.init(generator(config.seed)))
    _, calls = trace(params, model.apply, params, state, example, train=False)
    alike = f"; the model has {recipe.layers} like it" if recipe.layers > 1 else ""
    return show_shapes(calls, params, f"Shapes of one example in one layer{alike}", inside="encoder.layers.0.")


def guess_evenly(config: Config, lesson: Lesson) -> cli.Check:
    """Whoever knows nothing gives every token the probability 1 / classes, which costs ln(classes)."""
    ts = init(lesson.model, adam_init, seed=config.seed, device=lesson.unseen.inputs.device)
    loss = evaluate(lesson, ts, lesson.unseen.part(slice(1000)))["loss"]
    return cli.check(
        "untrained: |loss / ln(vocabulary) - 1|", abs(loss / math.log(len(lesson.vocabulary)) - 1), "<=", 0.05
    )


def fit(config: Config, recipe: Recipe, lesson: Lesson, seed: int) -> tuple[TrainState, list[Metrics]]:
    """(the trained model, the metrics of every step)"""
    optimizer = one_cycle_adamw(lr=recipe.lr, total_steps=recipe.steps)
    step = cli.classifier_step(config, lesson.model, optimizer, recipe.batch_size)
    first = init(lesson.model, adam_init, seed=seed, device=lesson.seen.inputs.device)
    data = islice(endless(lesson.seen, recipe.batch_size, seed=seed), recipe.steps)
    run = partial(train_one_epoch, first, data, step=step, seed=seed)
    (ts, _), history = show.follow(run, recipe.steps, f"{config.task}, seed {seed}")
    return ts, history


def evaluate(lesson: Lesson, ts: TrainState, examples: Sequences) -> Metrics:
    metrics = {"exact": exact_match}
    return eval_one_epoch(ts.params, ts.state, batches(examples, 500), apply=lesson.model.apply, metrics=metrics)


def judge_toy(config: Config, lesson: Lesson, trained: Sequence[TrainState]) -> list[cli.Check]:
    """Problems that it has not seen: how many it solves, a few of them, and where it looks."""
    recipe, digits = RECIPES[config.task], TOYS[config.task].digits
    exact = [evaluate(lesson, ts, lesson.unseen)["exact"] for ts in trained]
    asked = int((lesson.unseen.targets[0] == IGNORED).sum()) + 1
    show_answers(lesson, trained[0], asked)
    weights = look(lesson, trained[0], lesson.unseen.inputs[:1])[:, 0]
    characters = decode(lesson.unseen.inputs[0], lesson.vocabulary)
    draw_attention(weights, characters, f"{config.task}: what each token looks at", config.out / "attention.png")
    print_attention(weights, characters, first=asked - 1)
    name = f"{config.task}: {UNSEEN:,} unseen problems solved, worst of {len(trained)} seeds"
    checks = [cli.check(name, min(exact), ">=" if recipe.exact < 1 else "==", recipe.exact)]
    if config.task == "reverse":
        mirrored = min(mirrored_share(look(lesson, ts, lesson.unseen.inputs[:500]), digits) for ts in trained)
        checks.append(cli.check("reverse: queries that look at the mirrored digit, best head", mirrored, ">=", 0.9))
    return checks


def show_answers(lesson: Lesson, ts: TrainState, asked: int) -> None:
    rows = []
    for tokens, targets in zip(lesson.unseen.inputs[:5], lesson.unseen.targets[:5], strict=True):
        answer = targets[asked - 1 :]
        written = go_on(lesson, ts, tokens[:asked], tokens=len(answer), temperature=0.0)
        right = "right" if torch.equal(written, answer) else "wrong"
        rows.append((decode(tokens[:asked], lesson.vocabulary), decode(written, lesson.vocabulary), right))
    show.table("What it writes, digit by digit, for questions that it has not seen", ("asked", "written", ""), rows)


def go_on(lesson: Lesson, ts: TrainState, prompt: Tensor, *, tokens: int, seed: int = 0, **how: Any) -> Tensor:
    context = lesson.seen.inputs.shape[1]
    options = {"tokens": tokens, "context": context, "key": rng_key(seed).to(prompt.device)}
    return generate(ts.params, ts.state, prompt, apply=lesson.model.apply, **options, **how)


@torch.no_grad()
def look(lesson: Lesson, ts: TrainState, inputs: Tensor) -> Tensor:
    """The attention weights, asked for: (layers, batch, heads, queries, keys)"""
    (_, weights), _ = lesson.model.apply(ts.params, ts.state, inputs, train=False, need_weights=True)
    return weights


def mirrored_share(weights: Tensor, digits: int) -> float:
    """Of the best head. Digit j of the answer is written at query `digits` + j, and wants digit `digits` - 1 - j."""
    looked_at = weights[..., digits:, :].argmax(dim=-1)
    wanted = torch.arange(digits - 1, -1, -1, device=weights.device)
    return float((looked_at == wanted).float().mean(dim=(1, 3)).max())


@torch.no_grad()
def sanity(lesson: Lesson, trained: Sequence[TrainState]) -> list[cli.Check]:
    """What must hold of any causal attention, trained or not."""
    inputs, classes, leaks = lesson.unseen.inputs[:4], len(lesson.vocabulary), 0
    off = max(float((look(lesson, ts, inputs).sum(dim=-1) - 1).abs().max()) for ts in trained)
    read = partial(lesson.model.apply, trained[0].params, trained[0].state, train=False)
    before, _ = read(inputs)
    for t in range(1, inputs.shape[1]):
        other_future = torch.cat([inputs[:, :t], (inputs[:, t:] + 1) % classes], dim=1)
        leaks += not torch.equal(before[..., :t], read(other_future)[0][..., :t])
    return [
        cli.check("attention: largest distance of a row's sum from 1", off, "<=", 1e-5),
        cli.check("causal: positions whose past changed with the future", leaks, "==", 0),
    ]


def judge_text(config: Config, lesson: Lesson, trained: Sequence[TrainState]) -> list[cli.Check]:
    """What it writes, and its loss on what it has not read, beside that of a table of pairs."""
    ts, unseen = trained[0], lesson.unseen
    prompt = opening(config, lesson.vocabulary)
    tokens = encode(prompt, lesson.vocabulary).to(unseen.inputs.device)
    drawn = f"at temperature {config.temperature:g}" + (f", from the {config.top_k} likeliest" if config.top_k else "")
    ways = {"always the likeliest": (0.0, None), drawn: (config.temperature, config.top_k)}
    for name, (temperature, top_k) in ways.items():
        how = {"temperature": temperature, "top_k": top_k, "seed": config.seed}
        written = go_on(lesson, ts, tokens, tokens=config.length, **how)
        text = f"{prompt}{decode(written, lesson.vocabulary)}"
        show.console.print(f"\n--- {name} ---\n{text}", markup=False, soft_wrap=True)
    stretch = unseen.inputs[:1, :24]
    weights, characters = look(lesson, ts, stretch)[:, 0], decode(stretch[0], lesson.vocabulary)
    draw_attention(weights, characters, "what each character looks at", config.out / "attention.png")
    print_attention(weights, characters)
    loss, pairs = evaluate(lesson, ts, unseen)["loss"], bigram_loss(lesson)
    show.console.print(f"\nValidation loss {loss:.3f}; of a table of pairs {pairs:.3f}")
    checks = [cli.check("validation loss / that of a table of pairs", loss / pairs, "<", 1)]
    return checks + ([cli.check("validation loss", loss, "<=", lesson.published)] if lesson.published else [])


def bigram_loss(lesson: Lesson) -> float:
    """The loss of whoever knows how often each character follows each, and looks no further back."""
    classes, block = len(lesson.vocabulary), lesson.seen.inputs.shape[1]
    pairs = [
        part.inputs * classes + part.targets for part in (lesson.seen.part(slice(None, None, block)), lesson.unseen)
    ]
    counts, asked = (pair.flatten().bincount(minlength=classes**2).reshape(classes, classes) for pair in pairs)
    p = (counts + 1) / (counts + 1).sum(dim=1, keepdim=True)
    return float(-(asked * p.log()).sum() / asked.sum())


if __name__ == "__main__":
    cli.run(Config, main)
