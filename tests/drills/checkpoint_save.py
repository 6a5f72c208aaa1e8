"""save with the old ones listed first."""

import json

from safetensors.torch import save as to_bytes

from fn import tree
from fn.checkpoint import KEY, VERSION, find
from fn.files import write_digested


def save(folder, tensors, progress, *, keep, best=False):
    content = {name: x.detach().clone().contiguous() for name, x in tree.flatten(tensors).items()}
    header = {KEY: json.dumps({"version": VERSION, "progress": progress._asdict()})}
    data = to_bytes(content, header)
    if best:
        old = find(folder, "best")
        new = write_digested(folder, f"best-{progress.step:08d}", ".safetensors", data)
        for path in old:
            if path != new:
                path.unlink()
    path = write_digested(folder, f"step-{progress.step:08d}", ".safetensors", data)
    steps = find(folder, "step")
    for path_ in steps[: max(len(steps) - keep, 0)]:
        path_.unlink()
    return path


WRONG = {
    "not contiguous": (".detach().clone().contiguous()", "", "raised"),
    "the first ones are kept": (
        "steps[: max(len(steps) - keep, 0)]",
        "steps[keep:]",
        "the last few and the best are kept",
    ),
    "nothing is removed": ("        path_.unlink()", "        pass", "the last few and the best are kept"),
    "the best are piled up": (
        "                path.unlink()",
        "                pass",
        "the last few and the best are kept",
    ),
    "removed before written": (
        '    if best:\n        old = find(folder, "best")',
        '    for path in find(folder):\n        path.unlink()\n    if best:\n        old = find(folder, "best")',
        "kept",
    ),
    "the parameters alone": ("tree.flatten(tensors)", 'tree.flatten({"params": tensors.get("params", {})})', "missing"),
    "the progress is lost": ("progress._asdict()}", "{}}", "does not say where its run stood"),
}
