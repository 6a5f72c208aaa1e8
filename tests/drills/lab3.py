"""The whole of Lab 3: attention with views and transposes, the loop with a counter in place of islice."""

from functools import partial

import torch
from torch import Tensor

from experiments.lab3_transformer import Config, Recipe
from experiments.lab_helpers.lab3.language_tasks import Task
from experiments.shared import cli
from experiments.shared.training_pictures import draw_losses
from fn import draw
from fn.attention import scaled_dot_product_attention
from fn.data.loader import endless
from fn.data.sequences import Sequences
from fn.layers import linear
from fn.losses import cross_entropy
from fn.metrics import exact_match
from fn.models import Model
from fn.optim import adamw, one_cycle_schedule
from fn.positions import rotary_encoding
from fn.train import Metrics, TrainState, check_finite, classifier_step, init_train_state, run_key


def causal_mask(queries, keys, device=None):
    i, j = torch.arange(queries, device=device), torch.arange(keys, device=device)
    return j[None, :] <= i[:, None]


def attention_weights(query, key, attn_mask=None, is_causal=False, scale=None):
    if is_causal and attn_mask is not None:
        raise ValueError("two masks")
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = causal_mask(query.shape[-2], key.shape[-2], query.device)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1).nan_to_num(0.0)


def multi_head_attention(
    query, key, value, heads, in_proj_weight, in_proj_bias, out_proj, attn_mask=None, dropout_p=0.0, is_causal=False,
    *, rotary=False, need_weights=False, dropout_key=None, attention=scaled_dot_product_attention,
):  # fmt: skip
    width = query.shape[-1]
    if width % heads:
        raise ValueError("heads that do not divide the width")
    q, k, v = (
        linear(x, in_proj_weight[i * width : (i + 1) * width], in_proj_bias[i * width : (i + 1) * width])
        .unflatten(-1, (heads, -1))
        .transpose(-2, -3)
        for i, x in enumerate((query, key, value))
    )
    if rotary:
        q, k = rotary_encoding(q), rotary_encoding(k)
    y = attention(q, k, v, attn_mask, dropout_p, is_causal, dropout_key=dropout_key)
    weights = attention_weights(q, k, attn_mask, is_causal) if need_weights else None
    return linear(y.transpose(-2, -3).flatten(-2), **out_proj), weights


def train(config: Config, recipe: Recipe, model: Model, task: Task) -> list[TrainState]:
    optimizer = adamw(lr=partial(one_cycle_schedule, lr=recipe.lr, total_steps=recipe.steps))
    step = check_finite(classifier_step(model, optimizer))
    trained, losses = [], []
    for seed in cli.seeds(config, recipe.seeds):
        ts, history = init_train_state(model, optimizer, seed=seed), []
        for x, y in endless(task.train, recipe.batch_size, seed=seed):
            ts, metrics = step(ts, x, y, key=run_key(seed))
            history.append(metrics["loss"])
            if len(history) == recipe.steps:
                break
        trained.append(ts)
        losses.append(history)
    draw_losses({"": draw.Seeds(losses)}, config.out / "training.png")
    return trained


@torch.no_grad()
def evaluate(model: Model, ts: TrainState, examples: Sequences) -> Metrics:
    logits = [model.apply(ts.params, ts.state, x, train=False)[0] for x in examples.inputs.split(500)]
    logits = torch.cat(logits)
    return {
        "loss": cross_entropy(logits, examples.targets).item(),
        "exact": exact_match(logits, examples.targets).item(),
    }


def attention_of(model: Model, ts: TrainState, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        output, _ = model.apply(ts.params, ts.state, inputs, train=False, need_weights=True)
    return output[1]


WRONG = {
    "the future": ("j[None, :] <= i[:, None]", "j[None, :] >= i[:, None]", "compare_with_torch", "beside torch: "),
    "no scale": (
        "(query.shape[-1] ** -0.5 if scale is None else scale)",
        "(1.0 if scale is None else scale)",
        "compare_with_torch",
        "beside torch: ",
    ),
}
