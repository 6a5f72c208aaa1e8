"""Text from a language model, a token at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fn.rng import fold_in, uniform
from fn.tree import Params


def sample(
    logits: Float[Tensor, " classes"], key: Int64[Tensor, ""], *, temperature: float = 1.0, top_k: int | None = None
) -> Int64[Tensor, ""]:
    """A class drawn from softmax(logits / temperature), of the `top_k` largest if given; at temperature 0 the largest.

    argmax(logits / temperature + g) with Gumbel noise g = -log(-log u) has that distribution. Gumbel 1954. ValueError
    for a negative temperature, or a `top_k` that is not between 1 and the number of classes.
    """
    if top_k is not None:
        if not 1 <= top_k <= len(logits):
            raise ValueError(f"sample: top_k {top_k} is not between 1 and {len(logits)}, the number of classes")
        logits = torch.where(logits < logits.topk(top_k).values[-1], -torch.inf, logits)
    if temperature < 0:
        raise ValueError(f"sample: temperature {temperature} is negative")
    if temperature == 0:
        return logits.argmax()
    noise = -torch.log(-torch.log(uniform(key, logits.shape)))
    return (logits / temperature + noise).argmax()


@torch.no_grad()
def generate(
    params: Params,
    state: Params,
    prompt: Int64[Tensor, " seq"],
    *,
    apply: Callable,
    tokens: int,
    context: int,
    key: Int64[Tensor, ""],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int64[Tensor, " tokens"]:
    """`tokens` more after the prompt, each from the `context` before it; token t is drawn under fold_in(key, t)."""
    written = prompt
    for t in range(tokens):
        logits, _ = apply(params, state, written[None, -context:], train=False)
        token = sample(logits[0, :, -1], fold_in(key, t), temperature=temperature, top_k=top_k)
        written = torch.cat([written, token[None]])
    return written[len(prompt) :]
