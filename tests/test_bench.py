"""Every way to train that is timed takes the same step; what is counted is right. No time is asserted."""

import json
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from PIL import Image

from experiments import bench, bench_variants
from experiments.bench_variants import VARIANTS, Start, Task, begin, flop, ours, peak_bytes, tasks
from experiments.sweeping import in_dtype
from fn import tree

MEASURED = [task for name in bench.WORKLOADS for task in tasks(name)[0]]
COMPILES = ("jit", "compiled", "jax", "Equinox")


def small(workload: str) -> Start:
    """In float64, as Adam's first step divides every gradient by its own size, be it rounding error or not."""
    start = begin(Task(workload, "", batch=8, scale=0.25))
    return start._replace(ts=in_dtype(start.ts, torch.float64), x=start.x.double())


def parameters(variant: str, start: Start, steps: int) -> list[torch.Tensor]:
    advance, carry, leaves, _ = VARIANTS[variant](start)
    for _ in range(steps):
        carry = advance(carry)
    return [torch.as_tensor(leaf.tolist(), dtype=torch.float64) for leaf in leaves(carry)]


def marks(variant: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if any(word in variant for word in COMPILES) else []


@pytest.mark.parametrize(("workload", "variant"), [pytest.param(*task, marks=marks(task[1])) for task in MEASURED])
def test_every_variant_takes_our_step(workload, variant):
    start = small(workload)
    advance, ts, *_ = ours(start)
    ahead = start._replace(ts=advance(ts))
    with double_precision(variant):
        stepped, expected = parameters(variant, start, steps=1), parameters(variant, ahead, steps=0)
    assert len(stepped) == len(tree.leaves(start.ts.params))
    for a, b in zip(stepped, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def double_precision(variant: str) -> AbstractContextManager:
    if variant not in ("jax.jit", "Equinox, optax"):
        return nullcontext()
    return pytest.importorskip("jax").enable_x64()


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


def timing(*seconds: float, peak_bytes: int | None = None) -> bench.Timing:
    return bench.Timing(list(seconds), peak_bytes, 1.0, {})


def test_a_ratio_is_the_median_of_those_within_a_round():
    slow, fast = timing(2.0, 30.0, 4.0), timing(1.0, 10.0, 4.0)
    assert slow.over(fast) == 2
    assert fast.median == 4
    assert fast.quartiles == (2.5, 7.0)
    assert timing(3.0).quartiles == (3.0, 3.0)


def result(**ways: bench.Timing) -> bench.Result:
    named = {"jit": timing(1.0, peak_bytes=100), "nn.Module": timing(2.0, peak_bytes=100)}
    return bench.Result("mlp", 10**9, timing(0.2), named | ways)


def test_claims_are_about_what_was_measured():
    fused = {"nn.Module, fused": timing(1.2, peak_bytes=90)}
    checks = {check.name: check for check in bench.judge(result(**fused))}
    assert checks["mlp: fastest nn.Module / jit"].value == 1.2
    assert not checks["mlp: fastest nn.Module / jit"].ok
    assert checks["mlp: nn.Module / jit"].value == 2
    assert checks["mlp: memory of jit / fastest nn.Module"].value == 100 / 90
    assert len(checks) == 3
    more = {"jit, unchecked": timing(1.0), "jax.jit": timing(0.7)}
    assert {check.name for check in bench.judge(result(**fused, **more))} - checks.keys() == {
        "mlp: jit with checks / without",
        "mlp: jax.jit / jit",
    }


def test_picture_and_json(tmp_path):
    results, ops = [result(), result()], {("loader", "by batch"): timing(0.1, 0.2)}
    bench.draw_steps(results, tmp_path / "steps.png")
    bench.save(bench.Config(out=tmp_path), results, ops, load=0.0)
    with Image.open(tmp_path / "steps.png") as picture:
        assert len(picture.convert("L").getcolors(256) or []) > 2
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["workloads"]["mlp"]["ways"]["nn.Module"]["over_jit"] == 2
    assert report["workloads"]["mlp"]["fastest_module"] == "nn.Module"
    assert report["machine"]["cpu"]


def test_growth_leaves_out_what_was_lost(monkeypatch, tmp_path):
    def measured(config, device, tasks, rounds, *flags):
        return {task: timing(float(flags[1])) for task in tasks if (task[1], flags[1]) != ("jit", "16")}

    monkeypatch.setattr(bench, "measure", measured)
    bench.draw_growth(bench.Config(out=tmp_path), torch.device("cpu"), [result(), result()])
    with Image.open(tmp_path / "growth.png") as picture:
        assert len(picture.convert("L").getcolors(256) or []) > 2


def test_without_jax_its_rows_are_missing(monkeypatch):
    monkeypatch.setattr(bench_variants, "find_spec", lambda name: None)
    found, missing = tasks("mlp")
    assert missing == ["jax", "equinox", "optax"]
    assert not {"jax.jit", "Equinox, optax"} & {variant for _, variant in found}


@pytest.mark.slow
def test_a_worker_that_dies_is_left_out(capsys):
    wanted = [("mlp", "unheard of"), ("loader", "by batch")]
    timings = bench.measure(bench.Config(), torch.device("cpu"), wanted, rounds=2)
    assert list(timings) == [("loader", "by batch")]
    assert len(timings["loader", "by batch"].seconds) == 2
    assert "mlp: unheard of: left out (KeyError: 'unheard of')" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_was_killed_is_lost():
    with bench.worker(("loader", "by batch"), []) as worker:
        worker.ask()
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(bench.Lost):
            worker.ask("time 0.1")
