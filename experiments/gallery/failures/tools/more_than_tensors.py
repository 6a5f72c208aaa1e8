"""weights_only loads tensors; the checkpoint holds more

Expect: A checkpoint holds the weights and the options of the run, as
argparse gives them. It is written without complaint. Can it be read?

Cause: A pickle can run any code as it is read. Since torch 2.6 torch.load
has weights_only=True unless told otherwise: tensors, numbers, texts, lists
and dicts, and a few more. Namespace, dataclass, Path, NumPy's scalars are
refused; reading is where one learns it, after the training.

Find: The message names the class. Read a checkpoint back right after the
first is written.

Fix: Write plain values: vars(options), str(path), float(best).
weights_only=False would do as well, and run whatever the file says.

Checks: blind: a file has no shape. fn.checkpoint writes safetensors, which
hold tensors and texts alone.
"""

import io
import re
from argparse import Namespace

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import message
from torch import nn


def short(error: str) -> str:
    """Return the part of torch's long message that names the class"""
    named = re.search(r"Unsupported \w+: \w+ [\w.]+", error)
    return f"{error.split(':')[0]}: {named[0]}" if named else error


def broken(seed: int) -> Seen:
    torch.manual_seed(seed)
    model, options = nn.Linear(4, 2), Namespace(lr=0.125, epochs=5)
    file, loaded = io.BytesIO(), {}
    torch.save({"model": model.state_dict(), "options": options}, file)
    file.seek(0)
    return {
        "error": short(
            message(
                lambda: loaded.update(torch.load(file, weights_only=True))
            )
        ),
        "read": ", ".join(loaded) or "nothing",
        "options": str(loaded.get("options")),
    }


def fixed(seed: int) -> Seen:
    torch.manual_seed(seed)
    model, options = nn.Linear(4, 2), Namespace(lr=0.125, epochs=5)
    file, loaded = io.BytesIO(), {}
    torch.save(
        {"model": model.state_dict(), "options": vars(options)}, file
    )
    file.seek(0)
    return {
        "error": short(
            message(
                lambda: loaded.update(torch.load(file, weights_only=True))
            )
        ),
        "read": ", ".join(loaded) or "nothing",
        "options": str(loaded.get("options")),
    }


def shows(seen: Seen) -> bool:
    """A checkpoint is written without complaint, and reading it, right
    after, is an error."""
    return seen["error"] != "no error" and seen["read"] == "nothing"


def solves(seen: Seen) -> bool:
    """Write weights and options to a file, and read both back with
    torch.load as it is by default, which runs no code of the file."""
    both = "model" in seen["read"] and "options" in seen["read"]
    return both and "0.125" in seen["options"]
