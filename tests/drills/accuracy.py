"""accuracy with argmax."""


def accuracy(input, target):
    right, counted = input.argmax(dim=1) == target, target != -100
    return right.sum() / counted.sum()


WRONG = {
    "over the batch": ("dim=1", "dim=0", "size of tensor"),
    "a sum": ("right.sum() / counted.sum()", "right.sum().float()", "factor"),
    "in percent": ("right.sum() / counted.sum()", "100 * right.sum() / counted.sum()", "factor of 100"),
    "the least": ("input.argmax", "input.argmin", "wrong in"),
    "any of equal scores": (
        "input.argmax(dim=1) == target",
        "input.gather(1, target.clamp(min=0)[:, None])[:, 0] == input.amax(dim=1)",
        "differ",
    ),
    "over the last axis": ("dim=1", "dim=-1", "raised"),
    "the mean of the batch": ("counted.sum()", "len(target)", "differ"),
    "the ignored count": ("counted.sum()", "target.numel()", "differ"),
}
