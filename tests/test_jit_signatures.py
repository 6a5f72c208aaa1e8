"""The wider signatures that ours share with torch, compiled: one step with all of them gives what it gives as it is."""

import pytest
import torch
from torch import Tensor
from torch.func import grad

from fn import attention, conv, layers, losses
from fn.jit import jit
from fn.rng import generator

SHAPES = {
    "logits": (5, 4),
    "table": (4, 3),
    "vector": (4,),
    "image": (2, 4, 4),
    "kernel": (3, 2, 3, 3),
    "query": (2, 4, 5, 3),
    "key": (2, 2, 6, 3),
    "value": (2, 2, 6, 3),
}


def wide(params: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the result of each way to call an op that its torch namesake has too."""
    logits, image, query, key, value = (params[name] for name in ("logits", "image", "query", "key", "value"))
    attend = attention.scaled_dot_product_attention
    return {
        "class weights": losses.cross_entropy(logits, given["target"], given["weights"], label_smoothing=0.1),
        "probabilities": losses.cross_entropy(logits, given["mixed"], given["weights"]),
        "enable_gqa, scale, a broadcast mask": attend(query, key, value, given["mask"], scale=0.3, enable_gqa=True),
        "unbatched, a mask of one row": attend(query[0, 0], key[0, 0], value[0, 0], given["bias"]),
        "padding_idx": layers.embedding(given["index"], params["table"], padding_idx=-1),
        "a vector as weight": layers.linear(logits, params["vector"]),
        "an unbatched image": conv.conv2d(image, params["kernel"]),
        "an unbatched image, max": conv.max_pool2d(image, 2),
        "divisor_override": conv.avg_pool2d(image, 2, divisor_override=3),
        "None in an adaptive size": conv.adaptive_avg_pool2d(image, (None, 2)),
    }


def step(params: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (gradients, results) of a sum that no result is linear in."""

    def total(params: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        results = wide(params, given)
        return torch.stack([y.sin().sum() for y in results.values()]).sum(), results

    return grad(total, has_aux=True)(params)


@pytest.mark.slow
def test_what_the_wider_signatures_take_is_the_same_compiled():
    rng = generator(0)
    params = {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in SHAPES.items()}
    given = {
        "target": torch.tensor([0, 3, -100, 1, 2]),
        "index": torch.tensor([[0, 3, 1], [2, 3, 3]]),
        "weights": torch.rand(4, generator=rng, dtype=torch.float64),
        "mixed": torch.rand(5, 4, generator=rng, dtype=torch.float64).softmax(dim=1),
        "mask": torch.rand(5, 6, generator=rng) > 0.3,
        "bias": torch.randn(1, 6, generator=rng, dtype=torch.float64),
    }
    (grads, results), (compiled_grads, compiled_results) = (f(params, given) for f in (step, jit(step)))
    torch.testing.assert_close(compiled_results, results, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compiled_grads, grads, rtol=1e-11, atol=1e-12)
    assert all(g.abs().max() > 0 for g in grads.values())
    assert not grads["table"][-1].any()
