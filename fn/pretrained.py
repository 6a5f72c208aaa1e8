"""Published weights as parameter dicts, and back: a state_dict unflattens into (params, state).

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
from fn.files import require_file, write_atomic
from fn.tree import Params

COUNT = "num_batches_tracked"
"""of torch's batch norm: an integer without a gradient, which no formula here needs"""
IMAGENET_STATS = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
"""mean and standard deviation of red, green and blue, from 0 to 255, in the images of torchvision's weights"""


class PretrainedError(Exception):
    """Weights that cannot be read, or do not fit: one line that names the file, the key or the shape."""


class Weights(NamedTuple):
    params: Params
    state: Params
    counts: Params
    """torch's `num_batches_tracked`, kept for `to_state_dict`"""


def from_state_dict(state_dict: Mapping[str, Tensor], params: Params, state: Params) -> Weights:
    """Return the tensors in the structure of `params` and `state`. PretrainedError unless all names and shapes agree.

    >>> params, state = {"fc": {"weight": torch.zeros(2, 3)}}, {}
    >>> from_state_dict({"fc.weight": torch.ones(2, 3)}, params, state).params["fc"]["weight"].shape
    torch.Size([2, 3])
    """
    counts = {name: x for name, x in state_dict.items() if name.rpartition(".")[2] == COUNT}
    given = {name: x for name, x in state_dict.items() if name not in counts}
    expected = tree.flatten(params) | tree.flatten(state)
    for name in sorted(expected.keys() - given.keys()):
        nearest = _nearest(name, given.keys() - expected.keys())
        raise PretrainedError(f"{name} {_shape(expected[name])} is missing{nearest}")
    for name in sorted(given.keys() - expected.keys()):
        raise PretrainedError(f"{name} {_shape(given[name])} has no place in this model{_nearest(name, expected)}")
    for name, x in given.items():
        if x.shape != expected[name].shape:
            raise PretrainedError(f"{name} is {_shape(x)}, this model has {_shape(expected[name])}")
        if not x.is_floating_point():
            raise PretrainedError(f"{name} is of {x.dtype}, not of floating point")
    params, state = (tree.unflatten({name: given[name] for name in tree.flatten(part)}) for part in (params, state))
    return Weights(params, state, tree.unflatten(counts))


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _nearest(name: str, others: Mapping[str, Tensor] | set[str]) -> str:
    nearest = difflib.get_close_matches(name, others, n=1)
    return f"; the nearest is {nearest[0]}" if nearest else ""


def to_state_dict(params: Params, state: Params, counts: Params) -> dict[str, Tensor]:
    """Return the state_dict for torch, the inverse of `from_state_dict`; without `counts` torch counts from 0.

    >>> to_state_dict({"fc": {"weight": torch.zeros(2, 3)}}, {"bn": {"running_mean": torch.zeros(2)}}, {}).keys()
    dict_keys(['fc.weight', 'bn.running_mean'])
    """
    return tree.flatten(params) | tree.flatten(state) | tree.flatten(counts)


def read(path: Path, *, renamed: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return the state_dict of a safetensors file, or of one by torch.save, of which only tensors are read.

    It may lie in an entry `state_dict`, and its names below `module`, as DataParallel has them. `renamed` replaces
    first names: {"linear": "fc"}. Where a file's name has a digest, as resnet18-f37072fd.pth, the content must have the
    same SHA-256. PretrainedError for a file that cannot be read, is damaged, or holds more than tensors.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(Path(folder) / "one.safetensors", {"linear.weight": torch.zeros(2, 3)})
    ...     read(Path(folder) / "one.safetensors", renamed={"linear": "fc"})["fc.weight"].shape
    torch.Size([2, 3])
    """
    try:
        require_file(path, "tensor")
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
    """Return the tensors, and containers of them, that torch.save wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the pickle's protocol, which the reader of a published file cannot change
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
    """Write a safetensors file, whole or not at all.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(Path(folder) / "one.safetensors", {"weight": torch.zeros(2, 3)})
    ...     [path.name for path in Path(folder).iterdir()]
    ['one.safetensors']
    """
    write_atomic(path, save({name: x.contiguous() for name, x in state_dict.items()}))


def download(name: str, folder: Path) -> Path:
    """Return the path of torchvision's weights for `name`, downloaded into the folder, with progress, if missing.

    PretrainedError if the download fails, or has another digest than its name; `read` checks a file that was there.

    >>> download("resnet18", Path("weights"))  # doctest: +SKIP
    PosixPath('weights/resnet18-f37072fd.pth')
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
