"""Every way to train that is timed takes the same step; what is counted is right. No time is asserted."""

import json
import subprocess
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import cast

import pytest
import torch
from PIL import Image
from torch.func import grad_and_value

from experiments.bench import __main__ as bench
from experiments.bench import gpt, jax_steps, report, worker
from experiments.bench.timing import Lost, Result, Timing, measure
from experiments.bench.timing import worker as begin_worker
from experiments.bench.torch_steps import Start, Task, Variant, begin, flop, ours
from experiments.bench.worker import VARIANTS, peak_bytes, tasks
from experiments.bench.workloads import WORKLOADS
from experiments.shared.registry import resolve
from experiments.sweep.run import in_dtype
from fn import tree
from fn.detection.train import detection_loss
from fn.models import Detector
from fn.train import TrainState

COMPILES = ("jit", "compiled", "jax", "Equinox")
MEASURED = [
    (name, variant)
    for name in WORKLOADS
    for _, variant in tasks(name)[0]
    # what is compiled of these is compiled as of the cnn, and takes minutes
    if not (
        name in ("resnet20", "ssd", "centernet")
        and variant.startswith(("jit", "nn.Module"))
        and any(w in variant for w in COMPILES)
    )
]


def small(workload: str) -> Start:
    """In float64, as Adam's first step divides every gradient by its own size, be it rounding error or not."""
    start = begin(Task(workload, "", batch=8, scale=0.25))
    x = start.x.double() if start.x.is_floating_point() else start.x
    return start._replace(ts=in_dtype(start.ts, torch.float64), x=x)


def parameters(variant: str, start: Start, calls: int) -> tuple[int, list[torch.Tensor]]:
    """(the steps of one call, what so many calls make of the parameters)"""
    made = VARIANTS[variant](start)
    carry = made.carry
    for _ in range(calls):
        carry = made.advance(carry)
    return made.steps, [torch.as_tensor(leaf.tolist(), dtype=torch.float64) for leaf in made.parameters(carry)]


def marks(variant: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if any(word in variant for word in COMPILES) else []


@pytest.mark.parametrize(("workload", "variant"), [pytest.param(*task, marks=marks(task[1])) for task in MEASURED])
def test_every_variant_takes_our_step(workload, variant, monkeypatch):
    compiles = variant.startswith("jit") or "compiled" in variant
    monkeypatch.setattr(gpt, "LAYERS", 1 if compiles else 2)  # which take a quarter of the time
    start = small(workload)
    advance, ts = ours(start)[:2]
    with double_precision(variant):
        steps, _ = parameters(variant, start, calls=0)
        for _ in range(steps):
            ts = advance(ts)
        _, expected = parameters(variant, start._replace(ts=ts), calls=0)
        _, stepped = parameters(variant, start, calls=1)
    assert len(stepped) == len(tree.leaves(start.ts.params))
    for a, b in zip(stepped, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["ssd", "centernet"])
def test_jax_detectors_have_our_loss_gradients_and_statistics(workload):
    """Each gradient to 1e-12 of the largest of its leaf. Two objects of the first image want one anchor."""
    jax = pytest.importorskip("jax")
    start = small(workload)
    start = start._replace(y=start.y.double())
    start.y[0, :2] = torch.tensor([[10, 10, 30, 30, 1], [11, 11, 31, 31, 2]])
    objective = partial(detection_loss, apply=start.model.apply, loss=cast(Detector, start.made).loss)
    found = grad_and_value(objective, has_aux=True)(start.ts.params, start.ts.state, start.x, start.y)
    grads, (loss, (_, state)) = found
    with jax.enable_x64():
        params, old, x, y = jax_steps.for_jax(start)
        expected, moved, *_ = jax_steps.for_jax(start._replace(ts=TrainState(grads, state, {})))
        of_jax = partial(
            jax_steps.jax_objective,
            apply=resolve(start.row.jax),
            loss=resolve(start.row.jax_loss),
        )
        (value, new), slopes = jax.value_and_grad(of_jax, has_aux=True)(params, old, x, y)
        assert float(value) == pytest.approx(float(loss), rel=1e-12)
        for ours, theirs in ((expected, slopes), (moved, new)):
            assert jax.tree.structure(ours) == jax.tree.structure(theirs)
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                assert float(abs(a - b).max()) <= 1e-12 * float(abs(a).max())


def double_precision(variant: str) -> AbstractContextManager:
    if variant not in ("jax.jit", "Equinox, optax"):
        return nullcontext()
    return pytest.importorskip("jax").enable_x64()


@pytest.mark.parametrize("op", ["NMS", "NMS of 10 classes"])
def test_both_ways_of_suppression_keep_the_same_boxes(monkeypatch, op):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # of the tests after this one
    kept = [make(Task("NMS", way)).advance(None) for way, make in worker.OPS[op].items()]
    assert torch.equal(*kept)
    assert 400 < len(kept[0]) < 4000


def test_what_is_written_out_is_held_to_its_bound(monkeypatch):
    times = {task: timed(1.0) for task in bench.OPS} | {("NMS", "written out"): timed(6.0)}
    monkeypatch.setattr(bench, "measure", lambda tasks, rounds, *flags: {task: times[task] for task in tasks})
    _, checks = bench.time_ops(1, [])
    assert [(check.name, check.value, check.target, check.ok) for check in checks] == [
        ("convolution: unfold / native", 1, "<= 3", True),
        ("NMS: written out / torchvision", 6, "<= 5", False),
        ("NMS of 10 classes: written out / torchvision", 1, "<= 5", True),
    ]


def test_peak_bytes_of_known_sizes():
    kept = [torch.zeros(1_000_000)]
    before = peak_bytes(lambda: None, "cpu")

    def step() -> torch.Tensor:
        first = kept[0].clone()  # 4 MB more than before
        second = first.clone()  # 8 MB
        del first  # 4 MB
        third = second[:500_000].clone()  # 6 MB
        return torch.cat([third, third])  # 10 MB

    assert peak_bytes(step, "cpu") - before == 10_000_000
    assert peak_bytes(lambda: torch.zeros(2_000_000), "cpu") - before == 8_000_000
    kept.clear()
    assert before - peak_bytes(lambda: None, "cpu") == 4_000_000


def test_flop_of_the_mlp_by_hand():
    fc1, fc2 = 64 * 64 * 128, 64 * 128 * 10
    assert flop(begin(Task("mlp", ""))) == 2 * (2 * fc1 + 3 * fc2)


def test_flop_of_the_transformer_by_hand():
    """Of each layer the projections, 12 d_model², and twice queries · keys · d_model; the embedding as last layer."""
    tokens, d_model = 12 * 64, 128
    forward = tokens * (4 * (12 * d_model**2 + 2 * 64 * d_model) + 65 * d_model)
    assert flop(begin(Task("gpt", ""))) == 2 * 3 * forward


def timed(*seconds: float, peak_bytes: int | None = None) -> Timing:
    return Timing(list(seconds), peak_bytes, 1.0, {})


def test_seconds_are_per_step_however_many_a_call_makes(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(ticks))
    waited = []
    variant, seconds = worker.run(Variant(lambda n: n + 1, 0, wait=waited.append, steps=4), 2.5)  # a tick per call
    assert variant.carry == 3
    assert waited == [1, 2, 3]
    assert seconds == 3 / 12


def test_a_ratio_is_the_median_of_those_within_a_round():
    slow, fast = timed(2.0, 30.0, 4.0), timed(1.0, 10.0, 4.0)
    assert slow.over(fast) == 2
    assert fast.median == 4
    assert fast.quartiles == (2.5, 7.0)
    assert timed(3.0).quartiles == (3.0, 3.0)


def result(**ways: Timing) -> Result:
    named = {"jit": timed(1.0, peak_bytes=100), "nn.Module": timed(2.0, peak_bytes=100)}
    return Result("mlp", 10**9, timed(0.2), named | ways)


def test_claims_are_about_what_was_measured():
    fused = {"nn.Module, fused": timed(1.2, peak_bytes=90)}
    checks = {check.name: check for check in bench.judge(result(**fused))}
    assert checks["mlp: fastest nn.Module / jit"].value == 1.2
    assert not checks["mlp: fastest nn.Module / jit"].ok
    assert checks["mlp: nn.Module / jit"].value == 2
    assert checks["mlp: memory of jit, donated / fastest nn.Module"].value == 100 / 90
    assert len(checks) == 3
    more = {"jit, unchecked": timed(0.5), "jax.jit": timed(0.7), "jit, donated": timed(1.0, peak_bytes=45)}
    found = {check.name: check.value for check in bench.judge(result(**fused, **more))}
    assert found["mlp: jit with checks / without"] == 2
    assert found["mlp: jax.jit / jit"] == 0.7
    assert found["mlp: memory of jit, donated / fastest nn.Module"] == 0.5
    assert len(found) == 5


def test_only_what_is_called_unchecked_runs_without_checks(monkeypatch):
    given = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **_: given.update({command[4]: env}) or nullcontext())
    for way in ("jit", "jit, unchecked"):
        with suppress(AttributeError), begin_worker(("mlp", way), []):
            pass
    assert {way: env.get("JAXTYPING_DISABLE") for way, env in given.items()} == {"jit": None, "jit, unchecked": "1"}


def test_ways_are_what_they_are_called():
    assert cast(partial, VARIANTS["jit, donated"]).keywords["wrap"].keywords == {"donate": True}
    modules = {way: cast(partial, make).keywords for way, make in VARIANTS.items() if way.startswith("nn.Module, ")}
    for way, keywords in modules.items():
        kept = {"model": ", compiled", "step": ", step compiled", "": ", fused" if keywords.get("fused") else ""}
        last = ", NHWC" if keywords.get("memory_format") == torch.channels_last else ""
        assert way == "nn.Module" + kept[keywords.get("compile", "")] + last


def test_picture_and_json(tmp_path):
    results, ops = [result(), result()], {("loader", "by batch"): timed(0.1, 0.2)}
    report.draw_steps(results, tmp_path / "steps.png")
    report.save(bench.Config(out=tmp_path), results, ops, load=0.0)
    with Image.open(tmp_path / "steps.png") as picture:
        assert len(picture.convert("L").getcolors(256) or []) > 2
    numbers = json.loads((tmp_path / "bench.json").read_text())
    assert numbers["workloads"]["mlp"]["ways"]["nn.Module"]["over_jit"] == 2
    assert numbers["workloads"]["mlp"]["fastest_module"] == "nn.Module"
    assert numbers["machine"]["cpu"]


def test_growth_leaves_out_what_was_lost(monkeypatch, tmp_path):
    def measured(tasks, rounds, *flags):
        return {task: timed(float(task[-1])) for task in tasks if (task[1], task[-1]) != ("jit", "16")}

    monkeypatch.setattr(bench, "measure", measured)
    grown = bench.grow(result(), ["--seed", "1"])
    assert list(grown) == ["batch", "hidden"]
    assert [n for way, n in grown["batch"] if way == "jit"] == [64, 256, 1024]
    assert [n for way, n in grown["batch"] if way == "nn.Module"] == [16, 64, 256, 1024]
    assert grown["hidden"]["jit", 512].median == 4
    report.draw_growth([result(), result()], [grown, grown], tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert len(picture.convert("L").getcolors(256) or []) > 2


def test_without_jax_its_rows_are_missing(monkeypatch):
    monkeypatch.setattr(worker, "find_spec", lambda name: None)
    found, missing = tasks("mlp")
    assert missing == ["jax", "equinox", "optax"]
    assert not {"jax.jit", "Equinox, optax"} & {variant for _, variant in found}


@pytest.mark.slow
def test_a_worker_that_dies_is_left_out(capsys):
    wanted = [("mlp", "unheard of"), ("loader", "by batch")]
    timings = measure(wanted, 2)
    assert list(timings) == [("loader", "by batch")]
    assert len(timings["loader", "by batch"].seconds) == 2
    assert "mlp: unheard of: left out (KeyError: 'unheard of')" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_was_killed_is_lost():
    with begin_worker(("loader", "by batch"), []) as process:
        process.ask()
        process.process.kill()
        process.process.wait()
        with pytest.raises(Lost):
            process.ask("time 0.1")
