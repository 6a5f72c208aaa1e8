"""A tensor in a plain attribute is not moved by .to

Expect: A module standardises its input by a mean of its own, and the whole
of it is moved to another device. Is the mean?

Cause: Module.to moves parameters, buffers and the modules within. A tensor
in an attribute is none of these. Nor is it in the state_dict: saving loses
it as well.

Find: Compare what vars(module) holds with named_parameters() and
named_buffers().

Fix: self.register_buffer("mean", …).

Checks: blind to devices. But a dict of state has no attributes to forget:
tree.to(state, device) moves every leaf.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import message
from fn.data.transforms import normalize
from torch import Tensor, nn


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.mean = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x - self.mean)


class CentredByBuffer(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x - self.mean)


def broken(seed: int, elsewhere: str = "meta") -> Seen:
    model = Centred().to(elsewhere)
    x = torch.ones(8, 4, device=elsewhere)
    return {
        "in the state_dict": ", ".join(model.state_dict()),
        "error": message(lambda: model(x)),
    }


def fixed(seed: int, elsewhere: str = "meta") -> Seen:
    model = CentredByBuffer().to(elsewhere)
    x = torch.ones(8, 4, device=elsewhere)
    return {
        "in the state_dict": ", ".join(model.state_dict()),
        "error": message(lambda: model(x)),
    }


def shows(seen: Seen) -> bool:
    """Model and input were both moved with .to(device), and still there is
    an error about devices."""
    return "RuntimeError" in seen["error"] and "device" in seen["error"]


def solves(seen: Seen) -> bool:
    """Move a model to another device, and compute there; the state_dict
    holds all that a copy of the model needs."""
    return (
        seen["error"] == "no error" and "mean" in seen["in the state_dict"]
    )


def checked(seed: int) -> None:
    x = torch.ones(8, 1, 4, 4, device="meta")
    normalize(x, torch.zeros(1), torch.ones(1))
