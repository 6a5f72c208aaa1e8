"""Text from a language model, one token at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch._subclasses import FakeTensor

from fn.domains import Count, Natural, NonNegative
from fn.rng import fold_in, uniform
from fn.tree import Params
from fn.workarounds import unwrap


def sample(
    logits: Float[Tensor, " classes"],
    key: Int64[Tensor, ""],
    *,
    temperature: NonNegative = 1.0,
    top_k: Count | None = None,
) -> Int64[Tensor, ""]:
    """Draw a class from softmax(logits / temperature).

    Only the `top_k` largest take part, if given, of equal ones the first; temperature 0 takes the largest, and an
    infinite one draws from all alike. With Gumbel noise g = -log(-log u), argmax(logits / temperature + g) has that
    distribution. Gumbel 1954. A class whose logit is -infinity is never drawn. ValueError for a `top_k` above the
    number of classes, and for logits that are no distribution, see `require_logits`.

    >>> logits = torch.tensor([0.0, 3.0, 1.0])
    >>> sample(logits, torch.tensor(0), temperature=0)
    tensor(1)
    >>> sample(logits, torch.tensor(0), temperature=10.0)
    tensor(0)
    """
    require_logits(logits)
    if top_k is not None:
        if top_k > len(logits):
            raise ValueError(f"sample: top_k {top_k} is more than {len(logits)} classes")
        kept = logits.argsort(descending=True, stable=True)[:top_k]
        logits = torch.full_like(logits, -torch.inf).scatter(0, kept, logits[kept])
    if temperature == 0:
        return logits.argmax()
    below = logits - logits.max()
    unscaled = (below == 0) | (below == -torch.inf)  # 0 / 0 and -inf / inf would be NaN
    u = uniform(key, logits.shape).clamp(min=2.0**-25)  # log 0 would rule a class out
    return (torch.where(unscaled, below, below / temperature) - torch.log(-torch.log(u))).argmax()


def require_logits(logits: Float[Tensor, " classes"]) -> None:
    """Raise ValueError unless softmax of the logits is a distribution: none NaN or +infinity, and one above -infinity.

    While a step is traced there are no numbers to look at, and under `vmap` the last of the three is not looked at.

    >>> require_logits(torch.tensor([0.0, -torch.inf]))
    """
    numbers = unwrap(logits)
    if isinstance(numbers, FakeTensor):
        return
    if not (numbers < torch.inf).all() or (numbers.ndim == 1 and not (numbers > -torch.inf).any()):
        raise ValueError("logits must not be NaN, +infinity, all -infinity, or none")


@torch.no_grad()
def generate(
    params: Params,
    state: Params,
    prompt: Int64[Tensor, " seq"],
    *,
    apply: Callable,
    tokens: Natural,
    context: Count,
    key: Int64[Tensor, ""],
    temperature: NonNegative = 1.0,
    top_k: Count | None = None,
) -> Int64[Tensor, " tokens"]:
    """Return the next `tokens` tokens. Token t sees the `context` tokens before it and is drawn under fold_in(key, t).

    ValueError for an empty prompt, or logits that are no distribution.

    >>> count = lambda params, state, x, train: (torch.nn.functional.one_hot((x + 1) % 5, 5).mT.float(), state)
    >>> zero, prompt = torch.tensor(0), torch.tensor([1, 2])
    >>> generate({}, {}, prompt, apply=count, tokens=4, context=2, key=zero, temperature=0)
    tensor([3, 4, 0, 1])
    """
    if not len(prompt):
        raise ValueError("generate: prompt is empty; the first token has nothing to follow")
    written = prompt
    for t in range(tokens):
        logits, _ = apply(params, state, written[None, -context:], train=False)
        token = sample(logits[0, :, -1], fold_in(key, t), temperature=temperature, top_k=top_k)
        written = torch.cat([written, token[None]])
    return written[len(prompt) :]
