"""Text that a language model writes: the answers to toy problems, and the continuation of a prompt; its checks."""

import torch
from torch import Tensor

from experiments.lab_helpers.lab3.flags import Flags, text_prompt
from experiments.lab_helpers.lab3.language_tasks import Task, bigram_loss
from experiments.shared import cli, show
from fn.data.sequences import IGNORED, decode, encode
from fn.generation import generate
from fn.models import Model
from fn.rng import key as rng_key
from fn.train import TrainState


def question_length(task: Task) -> int:
    """Return how many tokens of a toy problem come before its answer."""
    return int((task.test.targets[0] == IGNORED).sum()) + 1


def show_answers(model: Model, ts: TrainState, task: Task) -> None:
    """Show five problems of the test set, and what the model writes after each, always the likeliest digit."""
    asked = question_length(task)
    rows = []
    for tokens, targets in zip(task.test.inputs[:5], task.test.targets[:5], strict=True):
        answer = targets[asked - 1 :]
        written = write(model, ts, task, tokens[:asked], tokens=len(answer), temperature=0.0)
        right = "right" if torch.equal(written, answer) else "wrong"
        rows.append((decode(tokens[:asked], task.vocabulary), decode(written, task.vocabulary), right))
    show.table("Answers, digit by digit, to problems of the test set", ("asked", "written", ""), rows)


def show_continuations(flags: Flags, model: Model, ts: TrainState, task: Task) -> None:
    """Show how the model goes on from the prompt: always with the likeliest character, and drawn as the flags say."""
    prompt = text_prompt(flags, task.vocabulary)
    tokens = encode(prompt, task.vocabulary).to(task.test.inputs.device)
    drawn = f"at temperature {flags.temperature:g}" + (f", from the {flags.top_k} likeliest" if flags.top_k else "")
    options = {"tokens": flags.length, "seed": flags.seed}
    continuations = {
        "always the likeliest": write(model, ts, task, tokens, temperature=0.0, **options),
        drawn: write(model, ts, task, tokens, temperature=flags.temperature, top_k=flags.top_k, **options),
    }
    for title, written in continuations.items():
        text = f"{prompt}{decode(written, task.vocabulary)}"
        show.console.print(f"\n--- {title} ---\n{text}", markup=False, soft_wrap=True)


def check_text(task: Task, loss: float) -> list[cli.Check]:
    """Check the loss on the text's last tenth against that of a table of pairs, and against one that was published."""
    pairs = bigram_loss(task)
    show.console.print(f"\nValidation loss {loss:.3f}; of a table of pairs {pairs:.3f}")
    checks = [cli.check("validation loss / that of a table of pairs", loss / pairs, "<", 1)]
    if task.published_loss:
        checks.append(cli.check("validation loss", loss, "<=", task.published_loss))
    return checks


def write(
    model: Model,
    ts: TrainState,
    task: Task,
    prompt: Tensor,
    *,
    tokens: int,
    temperature: float,
    top_k: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the tokens that the model writes after the prompt, see `fn.generation.generate`."""
    return generate(
        ts.params,
        ts.state,
        prompt,
        apply=model.apply,
        tokens=tokens,
        context=task.train.inputs.shape[1],
        key=rng_key(seed).to(prompt.device),
        temperature=temperature,
        top_k=top_k,
    )
