"""accuracy with argmax."""


def accuracy(input, target):
    return (input.argmax(dim=1) == target).float().mean()


WRONG = {
    "over the batch": ("dim=1", "dim=0", "size of tensor"),
    "a sum": (".float().mean()", ".float().sum()", "factor"),
    "in percent": (".float().mean()", ".float().mean() * 100", "factor of 100"),
    "the least": ("input.argmax", "input.argmin", "wrong in"),
    "any of equal scores": (
        "input.argmax(dim=1) == target",
        "input.gather(1, target[:, None])[:, 0] == input.amax(dim=1)",
        "differ",
    ),
}
