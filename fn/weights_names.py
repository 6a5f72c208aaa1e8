"""Find a network's tensors among the names that training scripts give them: below an entry, behind a prefix.

ValueError with the reason, to follow the file's name.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fn import tree
from fn.weights_files import one_line, require_few

WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema_model", "ema", "model_state_dict")
WRAPPERS += ("state_dict", "model", "net", "params", "network", "weights")
"""entries that training scripts keep a state_dict in; the averages of an EMA first, as they are what is evaluated

Another entry is read only if it is the only one that holds a state_dict."""
TORCHS = ("module", "_orig_mod")
"""names that DataParallel and torch.compile put before those of a module, at any level"""
AVERAGED = "n_averaged"
"""of torch's AveragedModel: how many models its averages are of"""


def state_dict_of(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Return (the first dict of tensors alone, without torch's prefixes; what was unwrapped). ValueError if none is.

    >>> state_dict_of({"epoch": 3, "model": {"module.fc.bias": torch.zeros(2)}})
    ({'fc.bias': tensor([0., 0.])}, ['read from its entry model', 'module. taken off its names'])
    """
    found = next(_state_dicts(content), None)
    if found is None and isinstance(content, dict):
        held = [f"{one_line(name, 30)} ({type(x).__name__})" for name, x in content.items()]
        several = any(next(_state_dicts(x), None) for _, x in _dicts(content))
        raise ValueError(
            f"holds {'several state_dicts' if several else 'no state_dict'}: its entries are {listed(held)}"
        )
    if found is None:
        raise ValueError(f"holds no state_dict, but a {type(content).__name__}")
    tensors, entry = found
    require_few(len(tensors))
    if odd := [one_line(name) for name, x in tensors.items() if x.is_meta or x.layout != torch.strided]:
        raise ValueError(f"holds {odd[0]} as a sparse tensor, or without its numbers")
    parts = {name: str(name).split(".") for name in tensors if name != AVERAGED}
    off = [part for part in TORCHS if any(part in name for name in parts.values())]
    state_dict = {".".join(part for part in parts[name] if part not in TORCHS): tensors[name] for name in parts}
    if len(state_dict) < len(parts):
        raise ValueError(f"holds two tensors of one name, without {' and '.join(off)}")
    said = [f"read from its entry {entry}"] * bool(entry) + [f"{part}. taken off its names" for part in off]
    return state_dict, said


def _state_dicts(content: Any, entry: str = "", depth: int = 0) -> Iterator[tuple[dict[Any, Tensor], str]]:
    if isinstance(content, dict) and all(isinstance(x, Tensor) for x in content.values()):
        yield content, entry
    elif isinstance(content, dict) and depth < 4:
        held = {name: list(_state_dicts(x, f"{entry}.{name}".strip("."), depth + 1)) for name, x in _dicts(content)}
        holding = [name for name in held if held[name]]
        known = [name for name in WRAPPERS if name in holding]
        for name in known or holding[: len(holding) == 1]:  # of another name only if no two could be meant
            yield from held[name]


def _dicts(content: dict[Any, Any]) -> list[tuple[str, dict[Any, Any]]]:
    """List the entries that may hold a state_dict: not the optimizer's."""
    dicts = [(name, x) for name, x in content.items() if isinstance(name, str) and isinstance(x, dict) and x]
    return [(name, x) for name, x in dicts if "param_groups" not in x]


def matched(
    state_dict: Mapping[str, Tensor], expected: Collection[str], cut_off: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return (the tensors by the model's names, without the branches that are cut off; what was unwrapped).

    A prefix goes that stands before the names of the model, and all that lies beside it. Where the head is cut off, a
    branch that the model does not have is a head too. Other names stay, for the caller to refuse.

    >>> weights = {"net.fc.bias": torch.zeros(2), "net.top.bias": torch.zeros(3)}
    >>> matched(weights, ["fc.bias"], cut_off=["head"])
    ({'fc.bias': tensor([0., 0.])}, ['net. taken off its names', 'net.top.bias left out'])
    """
    prefix = _prefix(state_dict, expected)
    branches = {name.partition(".")[0] for name in expected}
    given, beside = {}, []
    for name, x in state_dict.items():
        ours = name.removeprefix(prefix)
        if not name.startswith(prefix) or (cut_off and ours.partition(".")[0] not in {*branches, *cut_off}):
            beside.append(one_line(name))
        elif not any(tree.below(ours, branch) for branch in cut_off):
            given[ours] = x
    said = [f"{one_line(prefix)} taken off its names"] * bool(prefix) + [f"{listed(beside)} left out"] * bool(beside)
    return given, said


def _prefix(names: Iterable[str], expected: Collection[str]) -> str:
    """Return what stands before the model's names, if at least half of them follow it; of several, that of an EMA."""
    found = Counter(name[: -len(rest)] for name in names for rest in _rests(name) if rest in expected)
    most = max(found.values(), default=0)
    best = sorted(prefix for prefix, count in found.items() if count == most)
    if 2 * most < len(expected) or "" in best:
        return ""
    averages = [prefix for prefix in best if "ema" in re.split(r"[._]", prefix)]
    if len(best) > 1 and len(averages) != 1:
        raise ValueError(f"it holds this model several times, below {listed([one_line(prefix) for prefix in best])}")
    return (averages or best)[0]


def _rests(name: str) -> Iterator[str]:
    """Yield a name and what follows each of its dots."""
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))


def listed(texts: Sequence[str]) -> str:
    """Return the first five texts with commas between.

    >>> listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, e, …'
    """
    return ", ".join([*texts[:5], *["…"] * (len(texts) > 5)])
