"""Optimizers and schedules beside torch.optim's, step by step, and the laws of a pure update."""

import inspect
import math
from functools import partial

import pytest
import torch
from torch.func import grad, vmap
from torch.optim import lr_scheduler

from fn import tree
from fn.optim import (
    Optimizer,
    adam,
    adam_init,
    adam_update,
    adamw,
    adamw_update,
    clip_by_global_norm,
    clip_grad_norm,
    cosine_schedule,
    global_norm,
    one_cycle_schedule,
    sgd,
    sgd_init,
    sgd_update,
    warmup_schedule,
)

# (init, update, torch's class, options by the names that both know)
CASES = {
    "sgd": (sgd_init, sgd_update, torch.optim.SGD, {"lr": 0.1}),
    "momentum": (sgd_init, sgd_update, torch.optim.SGD, {"lr": 0.03, "momentum": 0.9}),
    "nesterov": (sgd_init, sgd_update, torch.optim.SGD, {"lr": 0.03, "momentum": 0.8, "nesterov": True}),
    "sgd with decay": (sgd_init, sgd_update, torch.optim.SGD, {"lr": 0.03, "momentum": 0.8, "weight_decay": 0.1}),
    "all of sgd": (
        sgd_init,
        sgd_update,
        torch.optim.SGD,
        {"lr": 0.03, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": (adam_init, adam_update, torch.optim.Adam, {"lr": 0.05}),
    "adam with eps": (adam_init, adam_update, torch.optim.Adam, {"lr": 0.05, "eps": 0.1, "betas": (0.8, 0.95)}),
    "adam with L2": (adam_init, adam_update, torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.1}),
    "adamw": (adam_init, adamw_update, torch.optim.AdamW, {"lr": 0.05}),
    "adamw with decay": (adam_init, adamw_update, torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.5}),
}
ADAMS = [name for name in CASES if name.startswith("adam")]
each_case = pytest.mark.parametrize(("init", "update", "reference", "options"), CASES.values(), ids=CASES)


def draw(seed: int) -> tree.Params:
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"fc1": {"weight": normal(4, 3), "bias": normal(4)}, "deep": {"er": {"scale": normal(())}}}


def assert_equal(tree1: tree.Params, tree2: tree.Params, **tolerance: float) -> None:
    tree.map(partial(torch.testing.assert_close, **tolerance), tree1, tree2)


def follow(update, steps, init, reference, options, *, atol):
    """Take the same steps as torch's optimizer; the parameters are the same after each."""
    params, tensors = draw(0), tree.map(lambda p: p.clone().requires_grad_(), draw(0))
    optimizer, state = reference(tree.leaves(tensors), **options), init(params)
    for step in range(steps):
        noise, rate = draw(step + 1), options["lr"] / (1 + step % 3)
        params, state = update(params, tree.map(torch.add, params, noise), state, **options | {"lr": rate})
        for p, n in zip(tree.leaves(tensors), tree.leaves(noise), strict=True):
            p.grad = p.detach() + n
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert_equal(params, tree.map(torch.Tensor.detach, tensors), rtol=0, atol=atol)
    assert state["step"] == steps


@each_case
def test_follows_torch_for_100_steps(under_test, steps, init, update, reference, options):
    follow(under_test(update), steps, init, reference, options, atol=1e-12)


@pytest.mark.parametrize(("init", "update", "reference", "options"), [CASES[c] for c in ADAMS], ids=ADAMS)
def test_follows_torch_to_four_digits(under_test, steps, init, update, reference, options):
    """The main test of a drill asks for no more: in float32, 1 - 0.999ᵗ has four digits."""
    follow(under_test(update), min(steps, 20), init, reference, options, atol=1e-4)


@each_case
def test_nothing_given_is_changed(under_test, init, update, reference, options):
    update = under_test(update)
    params, grads, state = draw(0), draw(1), init(draw(0))
    for _ in range(2):
        before = tree.map(torch.clone, {"params": params, "grads": grads, "state": state})
        after = update(params, grads, state, **options)
        assert_equal({"params": params, "grads": grads, "state": state}, before, rtol=0, atol=0)
        assert not {x.data_ptr() for x in tree.leaves(after[0])} & {x.data_ptr() for x in tree.leaves(params)}
        params, state = after


@each_case
def test_three_learning_rates_on_three_models_at_once(init, update, reference, options):
    rates = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    models, grads = [draw(i) for i in range(3)], [draw(i + 3) for i in range(3)]
    step = lambda p, g, s, lr: update(p, g, s, **options | {"lr": lr})  # noqa: E731
    params, state = tree.stack(*models), vmap(init)(tree.stack(*models))
    singles = [(p, init(p)) for p in models]
    for _ in range(3):
        params, state = vmap(step)(params, tree.stack(*grads), state, rates)
        singles = [step(p, g, s, lr) for (p, s), g, lr in zip(singles, grads, rates, strict=True)]
    assert_equal(params, tree.stack(*(p for p, _ in singles)))
    assert_equal(state, tree.stack(*(s for _, s in singles)))
    assert state["step"].tolist() == [3, 3, 3]


OPTIMIZERS = {
    "sgd": sgd(lr=1e-3, momentum=0.9),
    "nesterov": sgd(lr=1e-3, momentum=0.9, nesterov=True),
    "adam": adam(lr=0.1),
    "adamw": adamw(lr=0.1, weight_decay=0.0),
    "adamw, clipped": clip_by_global_norm(adamw(lr=0.1, weight_decay=0.0), 1.0),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


@pytest.mark.parametrize("optimizer", [o for name, o in OPTIMIZERS.items() if "clipped" not in name])
@pytest.mark.parametrize("valley", ["parabola", pytest.param("Rosenbrock", marks=pytest.mark.slow)])
def test_converges(optimizer: Optimizer, valley):
    """(a, b) = (1, 1) is the lowest point of both."""
    valleys = {
        "parabola": lambda p: (p["a"] - 1) ** 2 + 3 * (p["b"] - 1) ** 2,
        "Rosenbrock": lambda p: (1 - p["a"]) ** 2 + 100 * (p["b"] - p["a"] ** 2) ** 2,
    }
    slope = grad(valleys[valley])
    params = {"a": torch.tensor(-1.0, dtype=torch.float64), "b": torch.tensor(2.0, dtype=torch.float64)}
    state = optimizer.init(params)
    for _ in range(500 if valley == "parabola" else 1500):
        params, state = optimizer.update(params, slope(params), state)
    assert_equal(params, tree.map(torch.ones_like, params), rtol=0, atol=0.05)


@each_optimizer
def test_an_optimizer_makes_the_state_that_its_update_wants(optimizer: Optimizer):
    """Whatever the optimizer, init and update fit together, and an update keeps the structure of the state."""
    params, state = draw(0), optimizer.init(draw(0))
    after, next_state = optimizer.update(params, draw(1), state)
    tree.map(lambda old, new: None, {"params": params, "state": state}, {"params": after, "state": next_state})
    assert next_state["step"] == 1


@pytest.mark.parametrize(("optimizer", "other"), [(sgd, adam), (adam, sgd), (adamw, sgd)])
def test_the_state_of_another_optimizer_is_refused(optimizer, other):
    with pytest.raises(ValueError, match=r"state holds step, .*; this optimizer's own init makes step, "):
        optimizer(lr=0.1).update(draw(0), draw(1), other(lr=0.1).init(draw(0)))


PAIRS = {
    "sgd": (sgd, sgd_update, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "adam": (adam, adam_update, {"betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.1}),
    "adamw": (adamw, adamw_update, {"betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.5}),
}


@each_optimizer
def test_no_two_parts_of_a_state_share_memory(optimizer):
    """A donated state is overwritten."""
    state = optimizer.init({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float16)})
    places = [leaf.data_ptr() for leaf in tree.leaves(state)]
    assert len({*places}) == len(places)


@pytest.mark.parametrize(("make", "update", "options"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_an_optimizer_is_its_equation_at_the_rate_of_the_schedule(make, update, options, max_norm):
    optimizer = make(lr=ramp_then_cosine, **options)
    optimizer = optimizer if max_norm is None else clip_by_global_norm(optimizer, max_norm)
    params, state = draw(0), optimizer.init(draw(0))
    expected, expected_state = params, state
    for step in range(4):
        params, state = optimizer.update(params, draw(step + 1), state)
        grads = draw(step + 1) if max_norm is None else clip_grad_norm(draw(step + 1), max_norm)[0]
        expected, expected_state = update(expected, grads, expected_state, lr=ramp_then_cosine(step), **options)
        assert_equal({"p": params, "s": state}, {"p": expected, "s": expected_state}, rtol=0, atol=0)


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e3])
def test_clip_grad_norm_is_torchs(clip_grad_norm, max_norm):
    grads, tensors = draw(0), tree.map(torch.empty_like, draw(0))
    for p, g in zip(tree.leaves(tensors), tree.leaves(draw(0)), strict=True):
        p.grad = g
    norm = torch.nn.utils.clip_grad_norm_(tree.leaves(tensors), max_norm)
    clipped, before = clip_grad_norm(grads, max_norm)
    assert_equal(clipped, tree.map(lambda p: p.grad, tensors), rtol=1e-12, atol=0)
    torch.testing.assert_close(before, norm)
    torch.testing.assert_close(global_norm(clipped), norm.clamp(max=max_norm), rtol=1e-4, atol=0)
    assert_equal(grads, draw(0), rtol=0, atol=0)


LR = 0.5


def ramp_then_cosine(step, warmup=warmup_schedule):
    return warmup(step, lr=cosine_schedule(step, lr=LR, total_steps=20), warmup_steps=5)


STEEP = {"total_steps": 33, "pct_start": 0.5, "div_factor": 4.0, "final_div_factor": 10.0}
one_cycle_lr = partial(lr_scheduler.OneCycleLR, max_lr=LR, cycle_momentum=False)

# (schedule, torch's scheduler, how many steps agree)
SCHEDULES = {
    "cosine": (partial(cosine_schedule, lr=LR, total_steps=9), partial(lr_scheduler.CosineAnnealingLR, T_max=9), 10),
    "cosine above a floor": (
        partial(cosine_schedule, lr=LR, total_steps=7, min_lr=0.1),
        partial(lr_scheduler.CosineAnnealingLR, T_max=7, eta_min=0.1),
        8,
    ),
    "one cycle": (partial(one_cycle_schedule, lr=LR, total_steps=40), partial(one_cycle_lr, total_steps=40), 40),
    "steep cycle": (partial(one_cycle_schedule, lr=LR, **STEEP), partial(one_cycle_lr, **STEEP), 33),
    "warm-up": (
        partial(warmup_schedule, lr=LR, warmup_steps=6),
        partial(lr_scheduler.LinearLR, start_factor=1 / 6, total_iters=5),
        12,
    ),
    "no warm-up": (partial(warmup_schedule, lr=LR, warmup_steps=1), partial(lr_scheduler.ConstantLR, factor=1.0), 3),
    "warm-up, then cosine": (
        partial(ramp_then_cosine, warmup=warmup_schedule),
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda s: min(1, (s + 1) / 5) * (1 + math.cos(math.pi * s / 20)) / 2),
        21,
    ),
}


@pytest.mark.parametrize("pct_start", [0.0, 0.05, 0.3, 0.5, 0.77, 1.0])
def test_one_cycle_is_torchs_however_short_the_run(pct_start):
    for total in range(1, 51):
        peak = pct_start * total - 1
        ours = [float(one_cycle_schedule(s, lr=LR, total_steps=total, pct_start=pct_start)) for s in range(total)]
        if peak == 0:  # there torch divides by zero
            assert ours[0] == pytest.approx(LR)
            continue
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
        scheduler = one_cycle_lr(optimizer, total_steps=total, pct_start=pct_start)
        for rate in ours:
            assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-5, abs=1e-7 * LR)
            optimizer.step()
            if scheduler.last_epoch < total - 1:
                scheduler.step()


@pytest.mark.parametrize(("schedule", "reference", "steps"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedule_is_torchs_at_every_step(under_test, schedule, reference, steps):
    schedule = under_test(schedule)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
    scheduler = reference(optimizer)
    for step in range(steps):
        expected = torch.tensor(scheduler.get_last_lr()[0])
        for form in (step, torch.tensor(step), torch.tensor(step, dtype=torch.int32)):
            torch.testing.assert_close(schedule(form), expected, rtol=1e-6, atol=1e-7 * LR)
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()
    at_once = vmap(schedule)(torch.arange(steps))
    torch.testing.assert_close(at_once, torch.stack([schedule(step) for step in range(steps)]))


def test_cosine_stays_at_its_end(cosine_schedule):
    assert [float(cosine_schedule(step, lr=1.0, total_steps=5, min_lr=0.25)) for step in (5, 6, 10)] == [0.25] * 3


@pytest.mark.parametrize(("make", "update"), [(make, update) for make, update, _ in PAIRS.values()], ids=PAIRS)
def test_an_optimizer_has_the_defaults_of_its_equation(make, update):
    ours, of_equation = (inspect.signature(f).parameters for f in (make, update))
    assert {name: p.default for name, p in ours.items()} == {name: of_equation[name].default for name in ours}


@pytest.mark.parametrize("grad", [torch.ones(3), torch.ones(4, 2, 3), torch.ones(2, 3, dtype=torch.int64)])
@pytest.mark.parametrize(
    ("update", "init"), [(sgd_update, sgd_init), (adam_update, adam_init), (adamw_update, adam_init)]
)
def test_a_gradient_unlike_its_parameter_is_refused(update, init, grad):
    params = {"w": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=r"w: gradient .* for parameter \(2, 3\) torch.float32"):
        update(params, {"w": grad}, init(params), lr=0.1)
