"""classic_loop with zero_grad first."""

import copy

import torch
import torch.nn.functional as F
from torch.optim import SGD


def classic_loop(module, x, y, steps):
    optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


WRONG = {
    "gradients never zeroed": ("        optimizer.zero_grad()\n", "", "wrong"),
    "zeroed before the step": (
        "        loss.backward()\n",
        "        loss.backward()\n        optimizer.zero_grad()\n",
        "wrong",
    ),
    "the step before backward": (
        "        loss.backward()\n        optimizer.step()\n",
        "        optimizer.step()\n        loss.backward()\n",
        "wrong",
    ),
    "a copy is trained": (
        "    optimizer = SGD(",
        "    module = copy.deepcopy(module)\n    optimizer = SGD(",
        "gradient descent by hand",
    ),
    "softmax twice": ("module(x), y", "module(x).softmax(1), y", "differ"),
    "no momentum": (", momentum=0.9", "", "wrong"),
    "a new optimizer every step": (
        "        optimizer.zero_grad()\n",
        "        optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)\n        optimizer.zero_grad()\n",
        "wrong",
    ),
    "the loss after the step": (
        "losses.append(loss.item())",
        "losses.append(float(F.cross_entropy(module(x), y)))",
        "differ",
    ),
    "backward twice": (
        "        loss.backward()\n",
        "        loss.backward(retain_graph=True)\n        loss.backward()\n",
        "wrong",
    ),
}
