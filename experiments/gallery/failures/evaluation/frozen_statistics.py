"""requires_grad=False does not freeze running statistics

Expect: The body is frozen, the head is fine-tuned on inverted digits. Is
the body still the same for those who use it?

Cause: Running mean and variance are buffers; they move with every forward
pass in training mode, whether or not there are gradients.

Find: Compare the whole state_dict before and after, buffers included.

Fix: body.eval() as well, after every model.train(). Here a frozen norm
keeps its statistics, unless freeze is told otherwise.

Checks: blind: new statistics have the shape of the old.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import digits
from fn.models.cnn import cnn
from fn.rng import generator
from fn.transfer import freeze
from torch import nn


def body_and_head(seed: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU()
    )
    return body, nn.Linear(32, 10)


def broken(seed: int) -> Seen:
    body, head = body_and_head(seed)
    before = {k: v.clone() for k, v in body.state_dict().items()}
    body.requires_grad_(False)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    (x, y), losses = digits()[0], []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(body(-x)), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = body.state_dict()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    return {
        "loss": losses,
        "changed in the frozen body": ", ".join(changed) or "nothing",
    }


def fixed(seed: int) -> Seen:
    body, head = body_and_head(seed)
    before = {k: v.clone() for k, v in body.state_dict().items()}
    body.requires_grad_(False).eval()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    (x, y), losses = digits()[0], []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(body(-x)), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = body.state_dict()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    return {
        "loss": losses,
        "changed in the frozen body": ", ".join(changed) or "nothing",
    }


def shows(seen: Seen) -> bool:
    """No parameter of the frozen body has changed, and yet the body is not
    the same as before."""
    changed = seen["changed in the frozen body"]
    return "running_mean" in changed and "weight" not in changed


def solves(seen: Seen) -> bool:
    """Train a head on inverted digits, and leave the body under it as it
    was, to the bit."""
    same = seen["changed in the frozen body"] == "nothing"
    return same and seen["loss"][-1] < 2.25


def checked(seed: int) -> None:
    model = freeze(cnn((1, 8, 8), 10), ["fc"], keep_statistics=False)
    params, state = model.init(generator(seed))
    model.apply(params, state, digits()[0].images, train=True)
