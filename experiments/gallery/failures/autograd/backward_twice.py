"""A state kept from step to step drags its graph along

Expect: A long series is read in pieces of ten; the state goes from one
piece to the next, and each piece ends in backward and a step. How far does
it come?

Cause: The state that is handed on is a result of the piece before, and
hangs on its graph. The second backward goes on into that graph, whose
saved tensors the first one has freed.

Find: Follow what outlives a step, and print its grad_fn: anything but None
is a graph carried along.

Fix: h.detach() between the pieces. retain_graph=True, which the message
offers, only moves the error: the step has changed the weights in place
that the old graph has saved; without that, every step would cost more.

Checks: blind: a state has the same shape with a graph and without. With
torch.func.grad a graph ends where the function that is differentiated ends.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import message
from fn.losses import mse_loss
from torch import Tensor, nn, optim


def start(seed: int) -> tuple[nn.RNN, nn.Linear, optim.Optimizer]:
    torch.manual_seed(seed)
    reader, head = nn.RNN(1, 16), nn.Linear(16, 1)
    weights = [*reader.parameters(), *head.parameters()]
    return reader, head, optim.Adam(weights, lr=0.01)


def wave() -> list[tuple[Tensor, Tensor]]:
    """A sine in 40 pieces of 10 numbers, each with the ten next ones"""
    x = torch.sin(torch.arange(401) / 4).unsqueeze(1)
    return [(x[i : i + 10], x[i + 1 : i + 11]) for i in range(0, 400, 10)]


def broken(seed: int) -> Seen:
    reader, head, optimizer = start(seed)
    h, losses, error = torch.zeros(1, 16), [], "no error"
    for x, y in wave():
        out, h = reader(x, h)
        loss = mse_loss(head(out), y)
        optimizer.zero_grad()
        error = message(loss.backward)
        if error != "no error":
            break
        optimizer.step()
        losses.append(loss.item())
    return {"loss": losses, "steps": len(losses), "error": error}


def fixed(seed: int) -> Seen:
    reader, head, optimizer = start(seed)
    h, losses, error = torch.zeros(1, 16), [], "no error"
    for x, y in wave():
        out, h = reader(x, h.detach())
        loss = mse_loss(head(out), y)
        optimizer.zero_grad()
        error = message(loss.backward)
        if error != "no error":
            break
        optimizer.step()
        losses.append(loss.item())
    return {"loss": losses, "steps": len(losses), "error": error}


def shows(seen: Seen) -> bool:
    """A network reads a series piece by piece. The first step is made, and
    the second stops with an error of backward."""
    return seen["steps"] == 1 and "second time" in seen["error"]


def solves(seen: Seen) -> bool:
    """Learn to foretell a sine, read in 40 pieces of ten numbers: a step
    for each, the state handed on, and a loss that at least halves."""
    return seen["steps"] == 40 and seen["loss"][-1] < seen["loss"][0] / 2
