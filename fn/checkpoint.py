"""Save and load checkpoints, without pickle; a file that is damaged or of another model is refused in one line.

A checkpoint is one file: tensors as safetensors, the rest as JSON in its header. Its name holds the step and the digest
of the content, `step-00000469-1f0c….safetensors`; the best so far is `best-…`. The file is written aside, flushed and
renamed: a crash at any instant leaves the previous checkpoint whole.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from beartype.door import is_bearable
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from fn import tree
from fn.domains import Count, Ordinal
from fn.files import is_sound, require_file, write_digested
from fn.tree import Params

KEY, VERSION = "functional-torch checkpoint", 1


class Progress(NamedTuple):
    """The state of a run besides its tensors."""

    step: Ordinal = 0
    """updates made"""
    epoch: Ordinal = 0
    """epochs completed"""
    batch: Ordinal = 0
    """batches done of the epoch under way; with the seed and the epoch, the position in the data"""
    totals: dict[str, Any] = {}  # noqa: RUF012
    """sums of the metrics over the examples of those batches, see `fn.metrics.add_examples`"""
    lines: Ordinal = 0
    """lines of the log written so far"""
    best: float | None = None
    """the least validation loss so far"""
    best_epoch: Ordinal = 0
    """the epoch with that loss, counted from 1; 0 if there is none"""
    generators: dict[str, Any] = {}  # noqa: RUF012
    """`fn.rng.global_state()`"""
    data: str = ""
    """a digest of the training data"""


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message is one line with the file and the reason."""


def save(folder: Path, tensors: Params, progress: Progress, *, keep: Count, best: bool = False) -> Path:
    """Write a checkpoint, then remove all but the last `keep`. `best` also writes it in place of the best so far.

    OSError if the disk is full; the earlier checkpoints are then still whole.
    """
    header = {KEY: json.dumps({"version": VERSION, "progress": progress._asdict()})}
    apart = tree.map(lambda x: x.detach().cpu().clone(memory_format=torch.contiguous_format), tensors)
    content = to_bytes(tree.flatten(apart), header)
    if best:  # first, as the other one counts on it
        newest = write_digested(folder, f"best-{progress.step:08d}", ".safetensors", content)
        for old in find(folder, "best"):
            if old != newest:
                old.unlink()
    path = write_digested(folder, f"step-{progress.step:08d}", ".safetensors", content)
    for old in find(folder, "step")[:-keep]:
        old.unlink()
    return path


def find(folder: Path, kind: str = "step") -> list[Path]:
    """Return a folder's checkpoints of a kind, "step", "best" or "*" for both, in order of steps; unchecked."""
    return sorted((path for path in folder.glob(f"{kind}-*.safetensors") if step_of(path) >= 0), key=step_of)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's file name; -1 for any other file name."""
    match = re.fullmatch(r"(?:step|best)-(\d{8,18})-[0-9a-f]{16}", path.stem)
    return int(match[1]) if match else -1


def load(path: Path, like: Params) -> tuple[Params, Progress]:
    """Load (tensors, progress). The tensors must have the names, shapes and dtypes of `like`, and go to its devices.

    CheckpointError for a damaged file, or one of other tensors. Nothing in a file is ever executed.
    """
    try:
        require_file(path, "tensor")
        if not path.stat().st_size:
            raise CheckpointError(f"{path} is empty")
        if _is_pickle(path):
            raise CheckpointError(f"{path} is a pickle, which could run code if it were opened: it was not")
        if not is_sound(path):
            raise CheckpointError(f"{path} is damaged: its content does not have the digest in its name")
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error})") from None
    progress = _progress(path, header)
    _require_like(path, flat, tree.flatten(like))
    return _fill(like, flat), progress


def _is_pickle(path: Path) -> bool:
    """Return whether the file starts like a pickle or a torch.save archive.

    A safetensors file starts with the length of its header.
    """
    with path.open("rb") as file:
        head = file.read(8)
    begins_so = head[:1] == b"\x80" or head[:2] == b"PK"
    return begins_so and (len(head) < 8 or int.from_bytes(head, "little") > path.stat().st_size)


def _progress(path: Path, header: Mapping[str, str]) -> Progress:
    if KEY not in header:
        raise CheckpointError(f"{path} holds tensors, but is not a checkpoint")
    try:
        content = json.loads(header[KEY])
        if content["version"] != VERSION:
            raise CheckpointError(f"{path} is of version {content['version']} of the format, not {VERSION}")
        progress = Progress(**{name: content["progress"][name] for name in Progress._fields})
    except (KeyError, TypeError, ValueError, RecursionError):
        raise CheckpointError(f"{path} does not say where its run stood") from None
    for (name, kind), value in zip(Progress.__annotations__.items(), progress, strict=True):
        numbers = value.values() if name == "totals" and isinstance(value, dict) else ()
        negative = isinstance(value, int) and value < 0
        if negative or not is_bearable(value, kind) or not all(isinstance(n, int | float) for n in numbers):
            raise CheckpointError(f"{path} says that {name} is {str(value)[:40]!r}")
    return progress


def _require_like(path: Path, flat: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    for name in sorted(flat.keys() | like.keys()):
        found, wanted = (_describe(tensors.get(name)) for tensors in (flat, like))
        if found != wanted:
            raise CheckpointError(f"{path} is of another model: {name} is {found} in it, {wanted} in this one")


def _describe(x: Tensor | None) -> str:
    return "missing" if x is None else f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def _fill(like: Params, flat: Mapping[str, Tensor], path: str = "") -> Params:
    """Return the tree `like`, empty sub-trees included, with the leaves of `flat`.

    The leaves are copies: a tensor in a mapped file starts at any byte, and sums may round otherwise off a 64-byte
    boundary.
    """
    tensors: Params = {}
    for name, value in like.items():
        branch = isinstance(value, dict)
        tensors[name] = (
            _fill(value, flat, f"{path}{name}.") if branch else flat[path + name].to(value.device, copy=True)
        )
    return tensors


def load_newest(folder: Path, like: Params) -> tuple[Params, Progress]:
    """Load the last checkpoint of a folder. CheckpointError if it is damaged, which names the newest sound one."""
    if not find(folder):
        raise CheckpointError(f"{folder} holds no checkpoint")
    *older, newest = find(folder)
    try:
        return load(newest, like)
    except CheckpointError as error:
        sound = next((path for path in reversed(older) if _loads(path, like)), None)
        offer = f"the newest sound one is {sound}" if sound else "none of the others is sound"
        raise CheckpointError(f"{error}; {offer}") from None


def _loads(path: Path, like: Params) -> bool:
    try:
        load(path, like)
    except CheckpointError:
        return False
    return True
