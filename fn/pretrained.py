"""Published weights as parameter dicts, and back: a state_dict unflattens into (params, state).

Nothing in a file is ever executed. PretrainedError says in one line which file, key or shape does not fit.
"""

import difflib
import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from fn import tree
from fn.files import require_file, write_atomic
from fn.tree import Params
from fn.weights_files import load_tensors, one_line
from fn.weights_names import matched, state_dict_of

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


def from_state_dict(
    state_dict: Mapping[str, Tensor], params: Params, state: Params, *, cut_off: Sequence[str] = ()
) -> Weights:
    """Return the tensors in the structure and the dtypes of `params` and `state`, without gradients.

    The branches `cut_off` are not read; a head there may have any shape, and any name. A prefix of all names, as
    "backbone.", is taken off, and what lies beside it left out. A warning says so. PretrainedError unless all other
    names and shapes agree.

    >>> params, state = {"fc": {"weight": torch.zeros(2, 3)}}, {}
    >>> from_state_dict({"fc.weight": torch.ones(2, 3)}, params, state).params["fc"]["weight"].shape
    torch.Size([2, 3])
    """
    params, state = ({name: part[name] for name in part if name not in cut_off} for part in (params, state))
    expected = tree.flatten(params) | tree.flatten(state)
    try:
        given, said = matched(state_dict, expected, cut_off)
    except ValueError as error:
        raise PretrainedError(str(error)) from None
    for name in sorted(expected.keys() - given.keys()):
        nearest = _nearest(name, given.keys() - expected.keys())
        raise PretrainedError(f"{name} {_shape(expected[name])} is missing{nearest}")
    counts = {name: x for name, x in given.items() if _is_count(name, expected)}
    for name in sorted(given.keys() - expected.keys() - counts.keys()):
        nearest = _nearest(name, expected)
        raise PretrainedError(f"{one_line(name)} {_shape(given[name])} has no place in this model{nearest}")
    for name in expected:
        if given[name].shape != expected[name].shape:
            raise PretrainedError(f"{name} is {_shape(given[name])}, this model has {_shape(expected[name])}")
        if not given[name].is_floating_point():
            raise PretrainedError(f"{name} is of {given[name].dtype}, not of floating point")
    if said:
        warnings.warn(f"weights: {', '.join(said)}", stacklevel=2)
    cast = {name: _bare(given[name]).to(expected[name].dtype) for name in expected}
    params, state = (tree.unflatten({name: cast[name] for name in tree.flatten(part)}) for part in (params, state))
    return Weights(params, state, tree.unflatten({name: _bare(x) for name, x in counts.items()}))


def _is_count(name: str, expected: Mapping[str, Tensor]) -> bool:
    norm, _, leaf = name.rpartition(".")
    return leaf == COUNT and f"{norm}.running_mean" in expected


def _bare(x: Tensor) -> Tensor:
    """Return a tensor that is no parameter and asks for no gradient: `x` itself if it is one."""
    return x.detach() if x.requires_grad or type(x) is not Tensor else x


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _nearest(name: str, others: Mapping[str, Tensor] | Set[str]) -> str:
    nearest = difflib.get_close_matches(name, others, n=1)
    return f"; the nearest is {one_line(nearest[0])}" if nearest else ""


def to_state_dict(params: Params, state: Params, counts: Params) -> dict[str, Tensor]:
    """Return the state_dict for torch, the inverse of `from_state_dict`; without `counts` torch counts from 0.

    >>> to_state_dict({"fc": {"weight": torch.zeros(2, 3)}}, {"bn": {"running_mean": torch.zeros(2)}}, {}).keys()
    dict_keys(['fc.weight', 'bn.running_mean'])
    """
    return tree.flatten(params) | tree.flatten(state) | tree.flatten(counts)


def read(path: Path, *, renamed: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return the state_dict of a safetensors file, or of one by torch.save, of which only tensors are read.

    It may lie in an entry of WRAPPERS, and its names below `module` or `_orig_mod`, as DataParallel and torch.compile
    have them; a warning says what was unwrapped. `renamed` replaces first names: {"linear": "fc"}. A file of
    torchvision's must have the SHA-256 that its name gives. PretrainedError for a file that cannot be read, is damaged,
    or holds more than tensors.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(Path(folder) / "one.safetensors", {"linear.weight": torch.zeros(2, 3)})
    ...     read(Path(folder) / "one.safetensors", renamed={"linear": "fc"})["fc.weight"].shape
    torch.Size([2, 3])
    """
    try:
        require_file(path, "tensor")
        _require_digest(path)
        state_dict, said = state_dict_of(load_tensors(path))
    except OSError as error:
        raise PretrainedError(f"{path} cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise PretrainedError(f"{path} {error}") from None
    if said:
        warnings.warn(f"{path}: {', '.join(said)}", stacklevel=2)
    return {_renamed(name, renamed or {}): _bare(x) for name, x in state_dict.items()}


def _renamed(name: str, renamed: Mapping[str, str]) -> str:
    first, dot, rest = name.partition(".")
    return renamed.get(first, first) + dot + rest


def _require_digest(path: Path) -> None:
    """Raise ValueError for a file that is named as one of torchvision's and holds something else."""
    named = re.fullmatch(r".*-([0-9a-f]{8})", path.stem)
    if named and path.name in _torchvisions():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(named[1]):
            raise ValueError(
                f"is damaged, or only part of its download: its SHA-256 begins with {digest[:8]}, not {named[1]}"
            )


def _torchvisions() -> set[str]:
    """Return the names of all files of weights that torchvision publishes."""
    from torchvision.models import get_model_weights, list_models  # here, not above: it takes seconds to import

    return {weights.url.rpartition("/")[2] for name in list_models() for weights in get_model_weights(name)}


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
