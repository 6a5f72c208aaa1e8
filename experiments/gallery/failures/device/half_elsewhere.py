"""Half of the model was moved to the device, half was not

Expect: The second layer is moved to another device, the input is not.
Which line complains, and what of?

Cause: An operation wants all its tensors on one device; nothing is moved
for you. A layer made later, or kept in a list, is not in .to(device).

Find: {name: p.device for name, p in model.named_parameters()} has one
value, or you have found it. Without a GPU the device "meta" does as well:
it has shapes and no numbers.

Fix: Move the whole model once, after it is complete, and each batch.

Checks: blind: an annotation tells shape and dtype, never the device. The
error is torch's own.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import message, mlp, perceptron
from fn import tree


def broken(seed: int, elsewhere: str = "meta") -> Seen:
    params = perceptron(seed)
    params["fc2"] = tree.to(params["fc2"], elsewhere)
    x = torch.randn(8, 1, 8, 8)
    return {
        "images on": str(x.device),
        "error": message(lambda: mlp(params, x)),
    }


def fixed(seed: int, elsewhere: str = "meta") -> Seen:
    params = tree.to(perceptron(seed), elsewhere)
    x = torch.randn(8, 1, 8, 8).to(elsewhere)
    return {
        "images on": str(x.device),
        "error": message(lambda: mlp(params, x)),
    }


def shows(seen: Seen) -> bool:
    """A network whose layers fit each other stops in its second layer,
    with an error about devices."""
    return "RuntimeError" in seen["error"] and "device" in seen["error"]


def solves(seen: Seen) -> bool:
    """Compute the logits of 8 images on another device."""
    return seen["error"] == "no error" and seen["images on"] != "cpu"


def checked(seed: int) -> None:
    params = perceptron(seed)
    params["fc2"] = tree.to(params["fc2"], "meta")
    mlp(params, torch.randn(8, 1, 8, 8))
