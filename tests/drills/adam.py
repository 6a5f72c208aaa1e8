"""adam_update leaf by leaf, as Kingma and Ba's algorithm 1 has it."""

from fn import tree


def adam_update(params, grads, state, *, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    b1, b2 = betas
    t = state["step"] + 1
    names = ("p", params), ("g", grads), ("m", state["mean"]), ("s", state["square"])
    flat = {name: tree.flatten(part) for name, part in names}
    new, mean, square = {}, {}, {}
    for name, p in flat["p"].items():
        g = flat["g"][name] + weight_decay * p
        mean[name] = b1 * flat["m"][name] + (1 - b1) * g
        square[name] = b2 * flat["s"][name] + (1 - b2) * g**2
        m = mean[name] / (1 - b1 ** t.double())
        s = square[name] / (1 - b2 ** t.double())
        new[name] = p - lr * m / (s.sqrt() + eps)
    return tree.unflatten(new), {"step": t, "mean": tree.unflatten(mean), "square": tree.unflatten(square)}


WRONG = {
    "no bias correction": (
        "mean[name] / (1 - b1 ** t.double())",
        "mean[name]",
        "square[name] / (1 - b2 ** t.double())",
        "square[name]",
        "result[1] is right; result[0] is not",
    ),
    "1 - βᵗ in float32": (
        "(1 - b1 ** t.double())",
        "(1 - b1**t)",
        "(1 - b2 ** t.double())",
        "(1 - b2**t)",
        "computed in float32",
    ),
    "eps inside the root": ("(s.sqrt() + eps)", "(s + eps).sqrt()", "where `eps` is not 1e-08"),
    "no root": ("(s.sqrt() + eps)", "(s + eps)", "wrong"),
    "betas swapped": ("b1, b2 = betas", "b2, b1 = betas", "result[1]"),
    "steps counted from 0": ("1 - b1 ** t.double()", "1 - b1 ** (t - 1).double()", "result[0]"),
    "the gradient's mean, squared": (
        "(1 - b2) * g**2",
        "(1 - b2) * mean[name] ** 2",
        "result[0], result[1].square are not",
    ),
    "decoupled decay": (
        'flat["g"][name] + weight_decay * p',
        'flat["g"][name]',
        "p - lr * m",
        "p - lr * weight_decay * p - lr * m",
        "`weight_decay=0.0`, as far as result[1] goes",
    ),
}
