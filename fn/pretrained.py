"""Published weights as parameter dicts, and back: a state_dict unflattens straight into (params, state).

Nothing in a file is ever executed. PretrainedError says in one line which file, key or shape does not fit.
"""

import difflib
import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fn import tree
from fn.files import write_atomic
from fn.tree import Params

COUNT = "num_batches_tracked"
"""of torch's batch norm: an integer, which no gradient goes through and no formula here needs"""
IMAGENET_STATS = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
"""mean and standard deviation of red, green and blue, from 0 to 255, that torchvision's weights expect"""


class PretrainedError(Exception):
    """Says in one line what is wrong with which weights."""


class Weights(NamedTuple):
    params: Params
    state: Params
    counts: Params
    """torch's `num_batches_tracked`, kept for the way back"""


def from_state_dict(state_dict: Mapping[str, Tensor], params: Params, state: Params) -> Weights:
    """The tensors in the structure of `params` and `state`, whose names and shapes they must have to the last one."""
    counts = {name: x for name, x in state_dict.items() if name.rpartition(".")[2] == COUNT}
    found = {name: x for name, x in state_dict.items() if name not in counts}
    wanted = tree.flatten(params) | tree.flatten(state)
    for name in sorted(wanted.keys() - found.keys()):
        raise PretrainedError(f"{name} {_shape(wanted[name])} is missing{_nearest(name, found.keys() - wanted.keys())}")
    for name in sorted(found.keys() - wanted.keys()):
        raise PretrainedError(f"{name} {_shape(found[name])} has no place in this model{_nearest(name, wanted)}")
    for name, x in found.items():
        if x.shape != wanted[name].shape:
            raise PretrainedError(f"{name} is {_shape(x)}, this model has {_shape(wanted[name])}")
        if not x.is_floating_point():
            raise PretrainedError(f"{name} is of {x.dtype}, not of floating point")
    params, state = (tree.unflatten({name: found[name] for name in tree.flatten(part)}) for part in (params, state))
    return Weights(params, state, tree.unflatten(counts))


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _nearest(name: str, others: Mapping[str, Tensor] | set[str]) -> str:
    nearest = difflib.get_close_matches(name, others, n=1)
    return f"; the nearest is {nearest[0]}" if nearest else ""


def to_state_dict(params: Params, state: Params, counts: Params) -> dict[str, Tensor]:
    """The inverse of `from_state_dict`. Without `counts` torch takes it too, and counts from 0."""
    return tree.flatten(params) | tree.flatten(state) | tree.flatten(counts)


def read(path: Path, *, renamed: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The state_dict of a safetensors file, or of one by torch.save, of which only tensors are read.

    It may lie in an entry `state_dict`, and its names below `module`, as DataParallel has them. `renamed` gives a
    leading name another: {"linear": "fc"}. A name such as resnet18-f37072fd.pth must tell the content's SHA-256.
    """
    try:
        _require_digest(path)
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except OSError as error:
        raise PretrainedError(f"{path} cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise PretrainedError(f"{path} is not a whole safetensors file ({error})") from None
    except PretrainedError:
        raise
    except Exception as error:  # damage surfaces as UnpicklingError, EOFError, RuntimeError, KeyError, …
        if other := re.search(r"GLOBAL (\S+)", str(error)):
            raise PretrainedError(
                f"{path} holds more than tensors: {other[1]}, which is not run; a state_dict alone would be read"
            ) from None
        said = str(error).rpartition("WeightsUnpickler error:")[2]  # before it torch tells how to run the file
        reason = next(iter(said.strip().splitlines()), type(error).__name__)
        raise PretrainedError(f"{path} is damaged, or holds more than tensors ({reason[:80]})") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise PretrainedError(f"{path} holds no state_dict")
    names = {name: str(name).removeprefix("module.").split(".", 1) for name in content}
    renamed = renamed or {}
    return {".".join([renamed.get(first, first), *rest]): content[name] for name, (first, *rest) in names.items()}


def _unpickled(path: Path) -> Any:
    """The tensors, and containers of them, that torch.save wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle's protocol, which is the file's own affair
        return torch.load(path, "cpu", weights_only=True)


def _require_digest(path: Path) -> None:
    if named := re.fullmatch(r".*-([0-9a-f]{8})", path.stem):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(named[1]):
            raise PretrainedError(
                f"{path} is damaged, or only part of its download: its SHA-256 begins with {digest[:8]}, not {named[1]}"
            )


def write(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """As safetensors, whole or not at all."""
    write_atomic(path, save({name: x.contiguous() for name, x in state_dict.items()}))


def download(name: str, folder: Path) -> Path:
    """The file of torchvision's own weights for `name`, fetched into the folder, with progress, if it is not there.

    What was fetched must have the digest in its name; whether a file that was there does, `read` finds out.
    """
    from torchvision.models import get_model_weights  # here, not above: it takes seconds to import

    url = get_model_weights(name).DEFAULT.url  # pyright: ignore[reportAttributeAccessIssue]
    path = folder / url.rpartition("/")[2]
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:  # the second for another digest
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise PretrainedError(
                f"the weights of {name} are not in {path} and could not be downloaded ({reason}): put {url} there"
            ) from None
    return path
