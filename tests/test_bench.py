"""Every variant that is timed takes the same training step, and the counts are right. No test asserts a time."""

import json
import subprocess
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from itertools import product
from typing import cast

import pytest
import torch
from PIL import Image
from torch.func import grad_and_value

from experiments.bench import __main__ as bench
from experiments.bench import gpt, grid, grid_report, jax_steps, ops, processes, report, worker
from experiments.bench.compare import compare
from experiments.bench.memory import peak_bytes
from experiments.bench.timing import Lost, Result, Timing, measure
from experiments.bench.timing import worker as begin_worker
from experiments.bench.torch_steps import Start, Task, Variant, begin, flop, ours, part
from experiments.bench.worker import VARIANTS, tasks
from experiments.bench.workloads import WORKLOADS
from experiments.shared import cli
from experiments.shared.collectives import Cost, nccl_cost, step_seconds
from experiments.shared.registry import resolve
from fn import tree
from fn.detection.train import detection_loss
from fn.models import Detector
from fn.train import TrainState

COMPILES = ("jit", "compiled", "jax", "Equinox")
DEEP = {"resnet20", "ssd", "centernet"}
"""the workloads that take minutes to compile, by the same code as the cnn"""
COVERED = {("gpt", "jit, donated"), ("cnn", "nn.Module, compiled"), ("cnn", "nn.Module, step compiled")}
"""what the mlp, and the cnn with channels last, try too; it takes half a minute each to compile"""


def is_tried(workload: str, variant: str) -> bool:
    """Return whether a variant is compared: once where several run the same code."""
    if variant.endswith(", unchecked"):  # the same function: what differs is the environment of its process
        return False
    compiles = variant.startswith(("jit", "nn.Module")) and any(word in variant for word in COMPILES)
    return not (workload in DEEP and compiles) and (workload, variant) not in COVERED


MEASURED = [(name, variant) for name in WORKLOADS for _, variant in tasks(name)[0] if is_tried(name, variant)]


def small_start(workload: str) -> Start:
    """Return the start of a small network, in float64.

    Adam's first step divides every gradient, rounding errors included, by
    its own size."""
    start = begin(Task(workload, "", batch=8, scale=0.25))
    ts = TrainState(*(tree.map(to_double, part) for part in start.ts))
    return start._replace(ts=ts, x=to_double(start.x))


def to_double(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float64; an integer tensor as it is."""
    return x.double() if x.is_floating_point() else x


def parameters_after(variant: str, start: Start, calls: int) -> tuple[int, list[torch.Tensor]]:
    """Return (the steps of one call, the parameters after so many calls)"""
    built = VARIANTS[variant](start)
    carry = built.carry
    for _ in range(calls):
        carry = built.advance(carry)
    return built.steps, [torch.as_tensor(leaf.tolist(), dtype=torch.float64) for leaf in built.parameters(carry)]


def slow_if_compiled(variant: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a variant's test."""
    return [pytest.mark.slow, pytest.mark.longest] if any(word in variant for word in COMPILES) else []


@pytest.mark.parametrize(
    ("workload", "variant"), [pytest.param(*task, marks=slow_if_compiled(task[1])) for task in MEASURED]
)
def test_every_variant_takes_our_step(workload, variant, monkeypatch):
    compiles = variant.startswith("jit") or "compiled" in variant
    monkeypatch.setattr(gpt, "LAYERS", 1 if compiles else 2)  # a layer takes a quarter of the time
    start = small_start(workload)
    advance, ts = ours(start)[:2]
    with double_precision(variant):
        steps, _ = parameters_after(variant, start, calls=0)
        for _ in range(steps):
            ts = advance(ts)
        _, expected = parameters_after(variant, start._replace(ts=ts), calls=0)
        _, stepped = parameters_after(variant, start, calls=1)
    assert len(stepped) == len(tree.leaves(start.ts.params))
    for a, b in zip(stepped, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["ssd", "centernet"])
def test_jax_detectors_have_our_loss_gradients_and_statistics(workload):
    """Each gradient to 1e-12 of the largest of its leaf. Two objects of the first image want one anchor."""
    jax = pytest.importorskip("jax")
    start = small_start(workload)
    start = start._replace(y=start.y.double())
    start.y[0, :2] = torch.tensor([[10, 10, 30, 30, 1], [11, 11, 31, 31, 2]])
    objective = partial(detection_loss, apply=start.model.apply, loss=cast(Detector, start.network).loss)
    result = grad_and_value(objective, has_aux=True)(start.ts.params, start.ts.state, start.x, start.y)
    grads, (loss, (_, state)) = result
    with jax.enable_x64():
        params, old, x, y = jax_steps.for_jax(start)
        expected, moved, *_ = jax_steps.for_jax(start._replace(ts=TrainState(grads, state, {})))
        apply, jax_loss = part(start.workload.jax), resolve(start.workload.jax_loss)
        jax_objective = partial(jax_steps.jax_objective, apply=apply, loss=jax_loss)
        (value, new), jax_grads = jax.value_and_grad(jax_objective, has_aux=True)(params, old, x, y)
        assert float(value) == pytest.approx(float(loss), rel=1e-12)
        for own, other in ((expected, jax_grads), (moved, new)):
            assert jax.tree.structure(own) == jax.tree.structure(other)
            for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True):
                assert float(abs(a - b).max()) <= 1e-12 * float(abs(a).max())


def double_precision(variant: str) -> AbstractContextManager:
    """Return a context in which the variant computes in float64."""
    if variant not in ("jax.jit", "Equinox, optax"):
        return nullcontext()
    return pytest.importorskip("jax").enable_x64()


@pytest.mark.parametrize("op", ["NMS", "NMS of 10 classes"])
def test_both_ways_of_suppression_keep_the_same_boxes(monkeypatch, op):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # it would last beyond this test
    kept = [build(Task("NMS", way)).advance(None) for way, build in ops.OPS[op].items()]
    assert torch.equal(*kept)
    assert 400 < len(kept[0]) < 4000


def test_our_operations_are_checked_against_their_bounds(monkeypatch):
    times = {task: timing(1.0) for task in bench.OPS} | {("NMS", "written out"): timing(6.0)}
    monkeypatch.setattr(bench, "measure", lambda tasks, rounds, *flags: {task: times[task] for task in tasks})
    _, checks = bench.time_ops(1, [])
    assert [(check.name, check.value, check.target, check.ok) for check in checks] == [
        ("convolution: unfold / native", 1, "<= 3", True),
        ("NMS: written out / torchvision", 6, "<= 5", False),
        ("NMS of 10 classes: written out / torchvision", 1, "<= 5", True),
    ]


@pytest.mark.slow
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


def timing(*seconds: float, peak_bytes: int | None = None) -> Timing:
    """Return a Timing with a round for each of these seconds."""
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
    slow, fast = timing(2.0, 30.0, 4.0), timing(1.0, 10.0, 4.0)
    assert slow.over(fast) == 2
    assert fast.median == 4
    assert fast.quartiles == (2.5, 7.0)
    assert timing(3.0).quartiles == (3.0, 3.0)


def result(**ways: Timing) -> Result:
    """Return a Result of the mlp with jit at 1 s, nn.Module at 2 s, and more ways or others."""
    named = {"jit": timing(1.0, peak_bytes=100), "nn.Module": timing(2.0, peak_bytes=100)}
    return Result("mlp", 10**9, timing(0.2), named | ways)


def test_only_measured_ways_are_checked():
    fused = {"nn.Module, fused": timing(1.2, peak_bytes=90)}
    checks = {check.name: check for check in bench.evaluate(result(**fused))}
    assert checks["mlp: fastest nn.Module / jit"].value == 1.2
    assert not checks["mlp: fastest nn.Module / jit"].ok
    assert checks["mlp: nn.Module / jit"].value == 2
    assert checks["mlp: memory of jit, donated / fastest nn.Module"].value == 100 / 90
    assert len(checks) == 3
    more = {"jit, unchecked": timing(0.5), "jax.jit": timing(0.7), "jit, donated": timing(1.0, peak_bytes=45)}
    values = {check.name: check.value for check in bench.evaluate(result(**fused, **more))}
    assert values["mlp: jit with checks / without"] == 2
    assert values["mlp: jax.jit / jit"] == 0.7
    assert values["mlp: memory of jit, donated / fastest nn.Module"] == 0.5
    assert len(values) == 5


def test_only_a_variant_called_unchecked_runs_without_checks(monkeypatch):
    environments = {}
    record = lambda command, env, **_: environments.update({command[4]: env}) or nullcontext()  # noqa: E731
    monkeypatch.setattr(subprocess, "Popen", record)
    for way in ("jit", "jit, unchecked"):
        with suppress(AttributeError), begin_worker(("mlp", way), []):
            pass
    disabled = {way: environment.get("JAXTYPING_DISABLE") for way, environment in environments.items()}
    assert disabled == {"jit": None, "jit, unchecked": "1"}


def test_the_name_of_a_variant_says_its_options():
    assert cast(partial, VARIANTS["jit, donated"]).keywords["wrap"].keywords == {"donate": True}
    modules = {way: cast(partial, f).keywords for way, f in VARIANTS.items() if way.startswith("nn.Module, ")}
    for way, keywords in modules.items():
        middle = {"model": ", compiled", "step": ", step compiled", "": ", fused" if keywords.get("fused") else ""}
        end = ", NHWC" if keywords.get("memory_format") == torch.channels_last else ""
        assert way == "nn.Module" + middle[keywords.get("compile", "")] + end


def test_picture_and_json(tmp_path):
    results, op_timings = [result(), result()], {("loader", "by batch"): timing(0.1, 0.2)}
    report.draw_steps(results, tmp_path / "steps.png")
    report.save(tmp_path / "bench.json", bench.Config(out=tmp_path), results, op_timings, load=0.0)
    with Image.open(tmp_path / "steps.png") as picture:
        assert len(picture.convert("L").getcolors(256) or []) > 2
    numbers = json.loads((tmp_path / "bench.json").read_text())
    assert numbers["workloads"]["mlp"]["ways"]["nn.Module"]["over_jit"] == 2
    assert numbers["workloads"]["mlp"]["fastest_module"] == "nn.Module"
    assert numbers["machine"]["cpu"]


@pytest.fixture
def run_bench(monkeypatch, capsys):
    """Run the bench in this process: run_bench(*flags) -> (exit status, stdout, stderr)"""

    def run_bench(*flags: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["bench", *flags])
        with pytest.raises(SystemExit) as stop:
            cli.run(bench.Config, bench.main, bench.parse)
        return stop.value.code, *capsys.readouterr()

    return run_bench


def test_two_files_are_set_side_by_side(tmp_path, monkeypatch, run_bench):
    """Return the figures that --json keeps; the other one is twice as slow, and its nn.Module within the quartiles."""
    runs = [result(), result(jit=timing(2, 2.1, 2.2), **{"nn.Module": timing(2, 2.1, 1.9)})]
    monkeypatch.setattr(bench, "time_ops", lambda *_: ({}, []))
    for name, one in zip("ab", runs, strict=True):
        monkeypatch.setattr(bench, "time_steps", lambda *_, one=one: one)
        file = tmp_path / "new" / name
        status, out, _ = run_bench("--workloads", "mlp", "--json", str(file), "--out", str(tmp_path / name))
        assert status in (0, 1), out
        assert json.loads(file.read_text()) == json.loads((tmp_path / name / "bench.json").read_text())
    status, out, _ = run_bench("--compare", *(str(tmp_path / "new" / name) for name in "ab"))
    assert status == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip().startswith(("jit", "nn.Module"))}
    assert rows["jit"][1:5] == ["1e+03", "2.1e+03", "2.10×", "slower"]
    assert "slower" not in rows["nn.Module"]


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"machine": {}, "workloads": {"mlp": {"ways": {"jit": 3}}}}']
)
def test_a_file_without_figures_is_refused_in_a_line(tmp_path, run_bench, content):
    file = tmp_path / "figures.json"
    if content is not None:
        file.write_text(content)
    status, _, err = run_bench("--compare", str(file), str(file), "--out", str(tmp_path))
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "figures.json" in err


@pytest.mark.parametrize("flags", [("--workloads", "mlp"), ("--growth",), ("--processes",)], ids=" ".join)
def test_a_grid_takes_no_other_work(run_bench, tmp_path, flags):
    status, _, err = run_bench("--grid", "2", *flags, "--out", str(tmp_path))
    assert (status, err.count("\n")) == (2, 1)
    assert "--grid draws networks of its own" in err


def test_json_that_cannot_be_written_is_refused_before_the_work(tmp_path, run_bench):
    (tmp_path / "file").touch()
    for where, said in ((tmp_path, "is a folder"), (tmp_path / "file" / "figures.json", "cannot be written to")):
        status, _, err = run_bench("--json", str(where), "--out", str(tmp_path))
        assert (status, err.count("\n")) == (2, 1)
        assert f"--json {where} {said}" in err


def test_growth_leaves_out_a_lost_worker(monkeypatch, tmp_path):
    def measured(tasks, rounds, *flags):
        return {task: timing(float(task[-1])) for task in tasks if (task[1], task[-1]) != ("jit", "16")}

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
    available, missing = tasks("mlp")
    assert missing == ["jax", "equinox", "optax"]
    assert not {"jax.jit", "Equinox, optax"} & {variant for _, variant in available}


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


NETWORKS = [grid.draw(0, index) for index in range(400)]


def test_the_grid_draws_every_kind_of_network():
    convs = [conv for network in NETWORKS for conv in network.convs]
    assert {conv.kernel for conv in convs} == set(range(1, 8))
    assert {conv.stride for conv in convs} == {1, 2}
    assert {conv.groups for conv in convs} == {1, 2, 4}
    assert {(conv.norm, conv.pool, conv.padding > 0) for conv in convs} == set(product((False, True), repeat=3))
    assert any(conv.channels % 8 for conv in convs)
    assert any(network.d_model for network in NETWORKS)
    assert any(network.hidden for network in NETWORKS)
    assert min(network.batch for network in NETWORKS) == 1
    assert max(network.batch for network in NETWORKS) > 400


def test_a_network_of_the_grid_is_a_function_of_seed_and_index():
    assert grid.draw(0, 7) == grid.draw(0, 7)
    assert len({grid.draw(seed, 0) for seed in range(50)}) == 50


@pytest.mark.parametrize("index", range(12))
def test_the_module_of_a_network_of_the_grid_takes_our_step(index):
    start = begin(Task(f"grid 0 {index}", "", batch=4))
    ts = TrainState(*(tree.map(to_double, part) for part in start.ts))
    start = start._replace(ts=ts, x=to_double(start.x))
    (_, mine), (_, theirs) = (parameters_after(variant, start, 2) for variant in ("eager", "nn.Module, fused"))
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("index", range(12))
def test_a_network_of_the_grid_takes_our_step_in_jax_too(index):
    jax = pytest.importorskip("jax")
    start = begin(Task(f"grid 0 {index}", "", batch=4))
    ts = TrainState(*(tree.map(to_double, part) for part in start.ts))
    start = start._replace(ts=ts, x=to_double(start.x))
    advance, ts = ours(start)[:2]
    with jax.enable_x64():
        _, expected = parameters_after("jax.jit", start._replace(ts=advance(ts)), calls=0)
        _, stepped = parameters_after("jax.jit", start, calls=1)
    for p, q in zip(expected, stepped, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_the_grid_says_where_a_module_is_faster(tmp_path, monkeypatch, capsys):
    seconds = {"jit, donated": [2.0, 2.0], "nn.Module, fused": [3.0, 1.0], "nn.Module, compiled": [4.0, 4.0]}
    seconds["jax.jit"] = [0.5, 7.5]

    def measured(tasks, rounds, *flags):
        return {
            task: Timing([seconds[task[1]][int(task[0][-1])]] * rounds, None, 0.0, {})
            for task in tasks
            if task[1] in seconds
        }

    monkeypatch.setattr(grid_report, "measure", measured)
    monkeypatch.setattr(grid_report, "find_spec", lambda name: name == "jax")
    share, least, middle, jax = grid_report.race(2, 3, 0, tmp_path, (), tmp_path / "kept.json")
    assert (share.value, least.value, middle.value) == (0.5, 0.5, 1.0)
    assert [share.ok, least.ok, middle.ok] == [False, False, False]
    assert (jax.value, jax.ok) == (2.0, True)  # of 0.25 and 3.75; as the fastest module it would count twice
    found = json.loads((tmp_path / "grid.json").read_text())
    assert found == json.loads((tmp_path / "kept.json").read_text())
    assert [network["fastest_module"] for network in found["workloads"].values()] == ["nn.Module, fused"] * 2
    capsys.readouterr()
    compare(tmp_path / "grid.json", tmp_path / "kept.json")
    assert capsys.readouterr().out.count("1.00×") == 8
    with Image.open(tmp_path / "grid.png") as image:
        image.verify()


def test_tokens_pay_from_where_the_sum_takes_as_long_as_the_work():
    """Half of 8 times as fast; nine tenths takes nine times as many; large models all want the same."""
    for n in (8, 64):
        alpha, beta = nccl_cost(n)
        half, most = (processes.tokens_per_gpu(1e8, n, share) for share in (0.5, 0.9))
        work = 6 * 1e8 * half / processes.H100
        assert work == pytest.approx(alpha + beta * 4e8)
        assert step_seconds(work * n, n, (alpha, beta), 4e8) == pytest.approx(2 * work)
        assert most == pytest.approx(9 * half)
        assert processes.tokens_per_gpu(1e11, n, 0.5) == pytest.approx(processes.tokens_per_gpu(1e10, n, 0.5), rel=0.01)


def test_the_step_of_many_processes_is_timed_modelled_and_drawn(monkeypatch, tmp_path, capsys):
    """One process stands for two and four; the model of them has no more than two cores."""
    monkeypatch.setattr(processes, "in_processes", lambda f, n, *args: [f(*args)] * n)
    monkeypatch.setattr(processes, "time_sums", lambda: {size: 1e-3 + 1e-9 * size for size in (10**3, 10**6)})
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    [check] = processes.main(["mlp"], 2, 0, tmp_path)
    assert (check.name, check.value, check.ok) == ("mlp: results of 1, 2, 4 processes", 1, True)
    figures = json.loads((tmp_path / "processes.json").read_text())
    assert figures["costs"]["4"] == pytest.approx([1e-3, 1e-9])
    timed = [processes.Timed(*one) for one in figures["steps"]["mlp"]]
    shared = timed[0].seconds / 2 + 1e-3 + 4e-9 * timed[0].parameters
    costs: dict[int, Cost] = {2: (1e-3, 1e-9), 4: (1e-3, 1e-9)}
    assert processes.modelled(timed, costs) == pytest.approx([timed[0].seconds, shared, shared])
    assert "A step in 4 parts" in capsys.readouterr().out
    with Image.open(tmp_path / "processes.png") as picture:
        assert picture.width > 500


def test_processes_are_timed_for_some_workloads_on_the_cpu():
    with pytest.raises(cli.UsageError, match="--processes times mlp, gpt, cnn, and none of them is in --workloads"):
        bench.time_processes(bench.Config(workloads=("ssd",)))
    with pytest.raises(cli.UsageError, match="--device cuda: the processes meet on the CPU"):
        bench.time_processes(bench.Config(device="cuda"))
