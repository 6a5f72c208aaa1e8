"""Lab 7: its collectives and steps in two processes; lost processes; the costs; and that no process stays behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from experiments import lab7_processes
from experiments.lab_helpers.lab7 import process_mistakes
from experiments.shared import cli, collectives, local_processes
from fn import tree
from fn.distributed import part_gradient, place
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.optim import adamw_update, sgd
from fn.rng import generator
from fn.rng import key as rng_key
from fn.train import TrainState, classification_loss, classifier_step, init_train_state
from tests.two_processes import in_two

ROOT = Path(__file__).parents[1]


# What the drills ask for: the function under test is in both processes.


@pytest.mark.parametrize("counts", [(3, 3), (5, 2), (4, 0)], ids=["alike", "unequal", "none in one"])
def test_the_mean_over_processes_is_over_all_examples(all_reduce_mean, counts):
    examples = [torch.randn(n, 2, 3, generator=generator(i), dtype=torch.float64) for i, n in enumerate(counts)]
    means = [e.mean(0) for e in examples]

    def mean_of_all() -> tuple[Tensor, bool]:
        x = means[place()[0]].clone()
        before = x.clone()
        result = all_reduce_mean(x, counts[place()[0]])
        return result, torch.equal(x.nan_to_num(), before.nan_to_num())

    expected = torch.cat(examples).mean(0)
    for result, untouched in in_two(mean_of_all):
        torch.testing.assert_close(result, expected)
        assert untouched


def test_a_process_alone_has_its_own_mean(all_reduce_mean):
    x = torch.randn(3, 4, generator=generator(0)).T
    torch.testing.assert_close(all_reduce_mean(x, 7), x)


MODELS = {
    "mlp": partial(mlp, (1, 4, 4), 3, hidden=(5,), dropout_p=0.3),
    "cnn": partial(cnn, (1, 4, 4), 3, widths=(3, 4), dropout_p=0.3),
}


def shared_steps(parts_step: Any, family: str, examples: tuple[int, ...], parts: int = 4) -> dict[str, Tensor]:
    """Return the state and the metrics after a step for each batch, of so many examples."""
    model, optimizer, rng = MODELS[family](), sgd(lr=0.5, momentum=0.9), generator(1)
    ts = init_train_state(model, optimizer, seed=0)
    gradient = partial(part_gradient, objective=partial(classification_loss, apply=model.apply))
    options = {"gradient": gradient, "optimizer": optimizer, "parts": parts}
    metrics = {}
    for i, n in enumerate(examples):
        x, y = torch.randn(n, 1, 4, 4, generator=rng), torch.randint(0, 3, (n,), generator=rng)
        ts, metrics[str(i)] = parts_step(ts, x, y, key=rng_key(0, 1), **options)
    return tree.flatten(ts._asdict() | {"metrics": metrics})


@pytest.mark.parametrize("family", MODELS)
def test_a_shared_step_is_that_of_one_process_to_the_bit(parts_step, family):
    alone = shared_steps(parts_step, family, (8, 10))
    for shared in in_two(shared_steps, parts_step, family, (8, 10)):
        assert shared.keys() == alone.keys()
        assert [name for name in alone if not torch.equal(shared[name], alone[name])] == []


@pytest.mark.parametrize(("make", "parts"), [(partial(mlp, hidden=(5,)), 2), (partial(cnn, widths=(3, 4)), 1)])
def test_a_step_in_parts_is_that_of_the_whole_batch(parts_step, make, parts):
    """In float64: of an MLP in parts of 4 and 3 examples; of a CNN, whose batch norm sees a part, in one part."""
    model, optimizer = make((1, 4, 4), 3), sgd(lr=0.5)
    params, state = (tree.to(part, torch.float64) for part in model.init(generator(0)))
    ts = TrainState(params, state, optimizer.init(params))
    x, y = torch.randn(7, 1, 4, 4, generator=generator(2), dtype=torch.float64), torch.arange(7) % 3
    gradient = partial(part_gradient, objective=partial(classification_loss, apply=model.apply))
    ours, metrics = parts_step(ts, x, y, key=rng_key(0), gradient=gradient, optimizer=optimizer, parts=parts)
    whole, expected = classifier_step(model, optimizer)(ts, x, y, key=rng_key(0))
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(tree.flatten(ours.params), tree.flatten(whole.params))
    close(tree.flatten(ours.state), tree.flatten(whole.state))
    close(metrics, expected, rtol=1e-6)


def test_each_part_of_each_step_has_a_key_of_its_own(parts_step):
    """The key of part i of step t is fold_in(fold_in(key, t), i), whoever does it."""
    keys, objective = [], partial(classification_loss, apply=mlp((1, 4, 4), 3, hidden=(5,)).apply)

    def gradient(weights: tuple, x: Tensor, y: Tensor, *, key: Tensor) -> dict:
        keys.append(key)
        return part_gradient(weights, x, y, key=key, objective=objective)

    ts = init_train_state(mlp((1, 4, 4), 3, hidden=(5,)), sgd(lr=0.5), seed=0)
    for _ in range(2):
        options = {"gradient": gradient, "optimizer": sgd(lr=0.5), "parts": 2}
        ts, _ = parts_step(ts, torch.ones(4, 1, 4, 4), torch.arange(4) % 3, key=rng_key(5), **options)
    assert torch.stack(keys).tolist() == [int(rng_key(5, step, i)) for step in (0, 1) for i in (0, 1)]


def test_an_empty_part_weighs_nothing(parts_step):
    alone = shared_steps(parts_step, "mlp", (3, 1))
    assert all(x.isfinite().all() for x in alone.values())
    for shared in in_two(shared_steps, parts_step, "mlp", (3, 1)):
        assert all(torch.equal(shared[name], alone[name]) for name in alone)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3)], ids=["even", "ragged"])
def test_an_update_in_slices_is_the_whole_one_to_the_bit(zero1_update, shape):
    draw = lambda seed: {"w": torch.randn(shape, generator=generator(seed)), "b": torch.ones(2) * seed}  # noqa: E731
    update, params, length = partial(adamw_update, lr=0.1), draw(1), (shape[0] * shape[1] + 3) // 2
    zeros = lambda like: {"step": torch.tensor(0), "mean": like, "square": like}  # noqa: E731

    def three_updates() -> tuple[dict, dict]:
        new, state = params, zeros({"slice": torch.zeros(length)})
        for seed in (2, 3, 4):
            new, state = zero1_update(new, draw(seed), state, update=update)
        return new, state

    whole, state = params, zeros(tree.map(torch.zeros_like, params))
    for seed in (2, 3, 4):
        whole, state = update(whole, draw(seed), state)
    for new, own in in_two(three_updates):
        assert own["mean"]["slice"].shape == (length,)
        assert new.keys() == whole.keys()
        assert all(torch.equal(new[name], whole[name]) for name in whole)


def test_the_usual_step_is_that_of_the_whole_batch_though_the_shares_are_unequal():
    """To a few last digits, of 4 examples here and 3 there, in float64."""
    model, optimizer = mlp((1, 4, 4), 3, hidden=(5,)), sgd(lr=0.5)
    params = tree.to(model.init(generator(0))[0], torch.float64)
    ts, key = TrainState(params, {}, optimizer.init(params)), rng_key(0)
    x, y = torch.randn(7, 1, 4, 4, generator=generator(2), dtype=torch.float64), torch.arange(7) % 3
    whole, _ = classifier_step(model, optimizer)(ts, x, y, key=key)
    objective = partial(classification_loss, apply=model.apply)
    usual_step = partial(lab7_processes.usual_step, objective=objective, optimizer=optimizer)
    for ours, _ in in_two(partial(usual_step, key=key), ts, x, y):
        torch.testing.assert_close(tree.flatten(ours.params), tree.flatten(whole.params), rtol=1e-12, atol=1e-12)


def test_slices_of_two_dtypes_are_refused(zero1_update):
    params = {"w": torch.ones(2), "b": torch.ones(2, dtype=torch.float64)}
    state = {"step": torch.tensor(0), "velocity": {"slice": torch.zeros(4)}}
    with pytest.raises(ValueError, match="several dtypes"):
        zero1_update(params, params, state, update=sgd(lr=0.1).update)


# Processes that are started, fail, and are lost.


@pytest.fixture
def _forks(monkeypatch):
    """Processes that need not import torch anew."""
    monkeypatch.setattr(local_processes, "START_METHOD", "fork")


def rank_and_sum() -> tuple[int, float]:
    x = torch.ones(1)
    dist.all_reduce(x)
    return place()[0], float(x)


def fail_in_one() -> None:
    if place()[0] == 1:
        raise KeyError("of the second")
    dist.barrier()


def die_in_one() -> None:
    if place()[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


@pytest.mark.usefixtures("_forks")
def test_processes_meet_and_answer_by_rank():
    assert local_processes.in_processes(rank_and_sum, 3) == [(0, 3.0), (1, 3.0), (2, 3.0)]
    assert local_processes.in_processes(place, 1) == [(0, 1)]


@pytest.mark.usefixtures("_forks")
def test_a_process_that_fails_or_is_lost_is_told_in_one_line():
    with pytest.raises(cli.RunError, match=r"^process 1 of 2: KeyError: 'of the second'"):
        local_processes.in_processes(fail_in_one, 2)
    with pytest.raises(cli.RunError, match=r"^process 1 of 2 was lost: the others cannot go on$"):
        local_processes.in_processes(die_in_one, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("_forks")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_mistake_shows_and_its_right_way_does_not(seed):
    for symptom in process_mistakes.symptoms(seed):
        assert cli.check(symptom.mistake, symptom.wrong, *symptom.expected_wrong).ok, symptom
        assert cli.check(symptom.mistake, symptom.right, *symptom.expected_right).ok, symptom


def test_the_readers_functions_stand_in_in_the_processes_too(monkeypatch, tmp_path):
    file = tmp_path / "all_reduce_mean.py"
    file.write_text("def all_reduce_mean(x, count):\n    return x * 0\n")
    monkeypatch.setenv("FN_MINE", "")
    with local_processes.standing_in(("experiments.lab7_processes", json.dumps({"all_reduce_mean": str(file)}))):
        assert lab7_processes.all_reduce_mean(torch.ones(2), 1).tolist() == [0, 0]
    assert lab7_processes.all_reduce_mean(torch.ones(2), 1).tolist() == [1, 1]
    with local_processes.standing_in(None):
        assert lab7_processes.all_reduce_mean(torch.ones(2), 1).tolist() == [1, 1]


def test_the_line_through_exact_times_is_found_and_the_model_adds_up():
    alpha, beta = collectives.fit({size: 0.002 + 3e-9 * size for size in collectives.SIZES})
    assert (alpha, beta) == (pytest.approx(0.002), pytest.approx(3e-9))
    seconds = collectives.pays_from(4, (alpha, beta), 1e6)
    step = collectives.step_seconds(seconds, 4, (alpha, beta), 1e6)
    assert seconds / step == pytest.approx(2)  # W / 2 times as fast


def verdicts(way: str, *numbers: tuple[float, ...]) -> list[bool]:
    """Return what the lab says of these parameters, a number for each of 1, 2 and 4 processes."""
    runs = [[lab7_processes.Trained(torch.tensor([n]), 1, 0.95, 0.1) for n in of_count] for of_count in numbers]
    return [check.ok for check in lab7_processes.compare_results({way: runs})]


def test_a_process_that_differs_fails_and_so_do_results_that_should_be_one():
    same = ((1.0,), (1.0,) * 2, (1.0,) * 4)
    assert verdicts("MLP, in order", *same) == [True, True, True]
    assert verdicts("MLP, in order", *same[:2], (1.0, 1.0, 1.0, 2.0)) == [False, False, True]
    assert verdicts("MLP, in order", same[0], (2.0,) * 2, same[2]) == [False, True, True]
    assert verdicts("MLP, all_reduce", same[0], (2.0,) * 2, (3.0,) * 4) == [True, True, True]
    assert verdicts("MLP, all_reduce", *same) == [False, True, True]


def test_another_device_is_refused():
    with pytest.raises(cli.UsageError, match=r"^--device cuda: the processes of Lab 7 meet on the CPU"):
        lab7_processes.main(lab7_processes.Config(device="cuda"), torch.device("cpu"))


# The lab as it is started.


def of_lab(session: int) -> list[str]:
    """Return the processes of a session that are still there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends while one looks
            state, _, _, of, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            found += [process.name] if of == str(session) and state != "Z" else []
    return found


INTERRUPTED = """
import os, signal
import torch.distributed as dist
from experiments import lab7_processes as lab

def train(way, seed, epochs):
    dist.barrier()  # all processes are at work
    if dist.get_rank() == 0:
        os.killpg(os.getpgrp(), signal.SIGINT)  # as a terminal does for Ctrl-C
    return ours(way, seed, 10**6)

def main():
    lab.train, lab.COUNTS = train, (2, 4)
    lab.cli.run(lab.Config, lab.main)

ours = lab.train
"""
LIMIT = 600
"""seconds after which a process counts as hanging"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_ends_the_lab_in_one_line_and_leaves_no_process(tmp_path):
    """One of the processes interrupts them all, as soon as all of them train."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    command = [sys.executable, "-c", "import interrupted; interrupted.main()", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    lab = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        out, err = lab.communicate(timeout=LIMIT)
        deadline = time.monotonic() + LIMIT
        while of_lab(lab.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        left = of_lab(lab.pid)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the lab had not ended {LIMIT} s after its start")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(lab.pid, signal.SIGKILL)
    assert (lab.returncode, err) == (130, "error: interrupted\n"), out
    assert left == [], f"still there after {LIMIT} s"


@pytest.mark.longest
@pytest.mark.slow
def test_the_lab_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "experiments.lab", "7", "--out", str(tmp_path), "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    checks = json.loads((tmp_path / "summary.json").read_text())["checks"]
    assert {check["name"] for check in checks if not check["ok"]} <= {"held-out accuracy, the least"}
    assert (tmp_path / "costs.png").stat().st_size > 10_000
