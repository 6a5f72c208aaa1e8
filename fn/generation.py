"""Text from a language model, one token at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fn.rng import fold_in, uniform
from fn.tree import Params


def sample(
    logits: Float[Tensor, " classes"], key: Int64[Tensor, ""], *, temperature: float = 1.0, top_k: int | None = None
) -> Int64[Tensor, ""]:
    """Draw a class from softmax(logits / temperature).

    Only the `top_k` largest take part, if given; temperature 0 takes the largest. With Gumbel noise g = -log(-log u),
    argmax(logits / temperature + g) has that distribution. Gumbel 1954. ValueError for a negative temperature, or a
    `top_k` that is not between 1 and the number of classes.

    >>> logits = torch.tensor([0.0, 3.0, 1.0])
    >>> sample(logits, torch.tensor(0), temperature=0)
    tensor(1)
    >>> sample(logits, torch.tensor(0), temperature=10.0)
    tensor(0)
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
    """Return the next `tokens` tokens. Token t sees the `context` tokens before it and is drawn under fold_in(key, t).

    >>> count = lambda params, state, x, train: (torch.nn.functional.one_hot((x + 1) % 5, 5).mT.float(), state)
    >>> zero, prompt = torch.tensor(0), torch.tensor([1, 2])
    >>> generate({}, {}, prompt, apply=count, tokens=4, context=2, key=zero, temperature=0)
    tensor([3, 4, 0, 1])
    """
    written = prompt
    for t in range(tokens):
        logits, _ = apply(params, state, written[None, -context:], train=False)
        token = sample(logits[0, :, -1], fold_in(key, t), temperature=temperature, top_k=top_k)
        written = torch.cat([written, token[None]])
    return written[len(prompt) :]
