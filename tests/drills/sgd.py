"""sgd_update leaf by leaf."""

from fn import tree


def sgd_update(params, grads, state, *, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    flat = {name: tree.flatten(part) for name, part in (("p", params), ("g", grads), ("v", state["velocity"]))}
    new, velocity = {}, {}
    for name, p in flat["p"].items():
        g = flat["g"][name] + weight_decay * p
        v = momentum * flat["v"][name] + g
        velocity[name] = v
        move = g + momentum * v if nesterov else v
        new[name] = p - lr * move
    return tree.unflatten(new), {"step": state["step"] + 1, "velocity": tree.unflatten(velocity)}


WRONG = {
    "up the hill": ("p - lr * move", "p + lr * move", "opposite direction"),
    "the rate in the velocity": (
        'flat["v"][name] + g',
        'flat["v"][name] + lr * g',
        "g + momentum * v if",
        "lr * g + momentum * v if",
        "p - lr * move",
        "p - move",
        "result[1]",
    ),
    "in place": ("new[name] = p - lr * move", "new[name] = p.sub_(lr * move)", "in place"),
    "dampened": (
        'momentum * flat["v"][name] + g',
        'momentum * flat["v"][name] + (1 - momentum) * g',
        "where `momentum` is not 0.0",
    ),
    "decay forgotten": ('flat["g"][name] + weight_decay * p', 'flat["g"][name]', "`weight_decay=0.0`"),
    "the old velocity moves": (
        'flat["v"][name] + g\n        velocity[name] = v',
        'flat["v"][name] + g\n        velocity[name], v = v, flat["v"][name]',
        "result[1] is right; result[0] is not",
    ),
    "Nesterov ignored": ("g + momentum * v if nesterov else v", "v", "`nesterov=False`"),
    "the step is not counted": ('state["step"] + 1', 'state["step"]', "result[1].step"),
}
