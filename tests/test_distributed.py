"""Many processes, one result: the sums, the step and the sharded optimizer with 1, 2 and 4 processes.

tests/many_processes.py forks the processes; each waits a limited time for the others.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from experiments.bench.memory import peak_growth
from experiments.shared import cli, local_processes, ranks
from experiments.train import launch, together
from experiments.train.config import Config, parse
from fn import checkpoint, distributed, tree
from fn.distributed import (
    add_in_pairs,
    data_parallel_step,
    from_vector,
    gather_state,
    own_parts,
    pairwise_sum,
    part_shares,
    scatter_state,
    sharded,
    sum_of_branches,
    to_vector,
)
from fn.dtensors import split_rows, split_step, whole
from fn.gradcheck import largest
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.optim import Optimizer, adamw, sgd
from fn.rng import generator
from fn.train import TrainState, classification_loss, classifier_step, init_train_state, run_key, train_step
from tests.two_processes import in_two

FAMILIES = ("mlp", "cnn", "resnet", "transformer", "ssd")


def run_many(folder: Path, *job: str) -> str:
    """Run a job of tests/many_processes.py and return what it printed; that of 2 processes has folder/2."""
    command = [sys.executable, "tests/many_processes.py", str(folder), *job]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same_files(folder: Path, *others: Path) -> None:
    """Assert that the folders hold files of the same names, byte for byte."""
    names = sorted(path.name for path in folder.glob("[!.]*"))
    assert names
    for other in others:
        assert sorted(path.name for path in other.glob("[!.]*")) == names
        for name in names:
            assert (folder / name).read_bytes() == (other / name).read_bytes(), f"{other / name}"


def assert_same(params: tree.Params, expected: tree.Params) -> None:
    """Assert that two trees hold the same numbers, to the bit, in the same dtypes."""
    pairs = tree.leaves(tree.map(lambda a, b: a.dtype == b.dtype and torch.equal(a, b), params, expected))
    assert all(pairs)


@pytest.mark.slow
def test_1_2_and_4_processes_end_equal_to_the_bit(tmp_path):
    """States and metrics of every family, with dropout, clipping, a schedule, accumulation, ragged batches."""
    run_many(tmp_path, "steps", "1,2,4", "short")
    assert {path.stem for path in (tmp_path / "1").iterdir()} == set(FAMILIES)
    assert_same_files(*(tmp_path / number for number in "124"))


@pytest.mark.longest
@pytest.mark.slow
def test_a_sharded_optimizer_changes_no_bit(tmp_path):
    run_many(tmp_path / "whole", "steps", "1")
    run_many(tmp_path / "sharded", "steps", "1,2,4", "shard")
    assert_same_files(tmp_path / "whole" / "1", *(tmp_path / "sharded" / number for number in "124"))


@pytest.mark.longest
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_in_pieces_1_and_4_processes_end_equal_to_the_bit(tmp_path, family):
    """The gradient of one part, and the update; all but the mlp compile for a minute or more."""
    run_many(tmp_path, "steps", "1,4", "compile", family)
    assert_same_files(*(tmp_path / number for number in "14"))


@pytest.mark.slow
def test_the_parts_give_what_the_whole_batch_gives(tmp_path):
    """In float64, batch norm over the whole batch included."""
    run_many(tmp_path, "exact", "1,2,4")
    files = list(tmp_path.glob("*/gaps*.json"))
    assert len(files) == 1 + 2 + 4
    for file in files:
        for family, gap in json.loads(file.read_text()).items():
            assert gap <= 1e-12, (file, family)


@pytest.mark.longest
@pytest.mark.slow
def test_divided_parameters_give_what_whole_ones_give(tmp_path):
    """DTensors over 2 and 4 processes in float64; each holds its share of parameters and optimizer state."""
    run_many(tmp_path, "split", "2,4")
    found = {number: [json.loads(file.read_text()) for file in (tmp_path / number).glob("found*")] for number in "24"}
    assert largest(gap for of in found.values() for one in of for gap, _ in one.values()) <= 1e-12
    for number, of in found.items():
        shares = [share for one in of for name, (_, share) in one.items() if name.startswith("transformer")]
        assert max(shares) <= 1 / int(number) + 0.01


SMALL = ("--limit", "150", "--batch-size", "32", "--epochs", "2", "--parts", "8", "--augment", "crop", "flip")
SMALL += ("--clip-norm", "1", "--warmup-steps", "3", "--schedule", "cosine", "--label-smoothing", "0.1")
MLP = ("--model", "mlp", "--hidden", "8", "--dropout-p", "0.2", *SMALL)
RESNET = ("--model", "resnet", "--widths", "4", "6", "8", *SMALL)
CNN = ("--model", "cnn", "--widths", "4", "6", "--dropout-p", "0.2", *SMALL)
TRANSFORMER = ("--model", "transformer", "--d-model", "8", "--layers", "1", "--heads", "2", "--dropout-p", "0.1")
TRANSFORMER = (*TRANSFORMER, *SMALL)
DIVIDED = ("--model", "transformer", "--d-model", "8", "--layers", "1", "--heads", "2", "--dropout-p", "0.1")
DIVIDED += ("--shard", "params", "--optimizer", "sgd", "--limit", "60", "--batch-size", "20", "--epochs", "2")


def read_last(run: Path) -> tree.Params:
    """Return the tensors of a run's newest checkpoint."""
    return tree.unflatten(load_file(checkpoint.find(run / "checkpoints")[-1]))


def assert_same_run(run: Path, *others: Path) -> None:
    """Assert that logs are equal byte for byte, and the newest checkpoints to the bit."""
    log, newest = (run / "metrics.jsonl").read_bytes(), read_last(run)
    assert log.splitlines()[-1].startswith(b'{"event": "end"')
    for other in others:
        assert (other / "metrics.jsonl").read_bytes() == log
        assert_same(read_last(other), newest)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        (*MLP, "--workers", "1", "--accumulate", "2", "--checkpoint-every", "3"),
        pytest.param((*RESNET, "--shard", "optimizer"), marks=pytest.mark.longest),
        pytest.param((*CNN, "--workers", "2", "--accumulate", "2"), marks=pytest.mark.longest),
        pytest.param((*TRANSFORMER, "--shard", "optimizer", "--workers", "1"), marks=pytest.mark.longest),
    ],
    ids=["mlp", "resnet", "cnn", "transformer"],
)
def test_a_run_of_1_2_and_4_processes_is_the_same_to_the_byte(tmp_path, flags):
    run_many(tmp_path, "train", "1,2,4", *flags)
    assert_same_run(*(tmp_path / number / "run" for number in "124"))


@pytest.mark.longest
@pytest.mark.slow
def test_kills_of_one_process_or_all_change_nothing_and_any_number_resumes(tmp_path):
    said = run_many(tmp_path, "kills", "12", "0", *MLP, "--epochs", "20", "--checkpoint-every", "2")
    assert said == "12 kills\n"
    assert_same_run(*(tmp_path / name / "run" for name in ("whole", "killed")))


@pytest.mark.longest
@pytest.mark.slow
def test_a_run_of_divided_parameters_is_resumed_by_one_process(tmp_path):
    """Its checkpoint is a file of safetensors as any other; the end is equal up to rounding."""
    refused_many(tmp_path, "interrupted", "2", "4", *DIVIDED)
    (newest,) = (tmp_path / "2" / "run" / "checkpoints").glob("step-00000004*")
    assert load_file(newest)["params.patches.weight"].shape == (8, 4)
    run_many(tmp_path, "train", "1", "--resume", str(tmp_path / "2" / "run"))
    run_many(tmp_path / "whole", "train", "1", *DIVIDED)
    resumed, alone = read_last(tmp_path / "2" / "run"), read_last(tmp_path / "whole" / "1" / "run")
    torch.testing.assert_close(tree.flatten(resumed), tree.flatten(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.longest
def test_a_signal_to_one_process_stops_them_all_at_one_step(tmp_path):
    said = refused_many(tmp_path, "interrupted", "4", "7", *MLP)
    assert said == ["error: interrupted at step 7; --resume " + str(tmp_path / "4" / "run") + " continues"]
    assert [checkpoint.step_of(path) for path in checkpoint.find(tmp_path / "4" / "run" / "checkpoints")] == [0, 5, 7]
    run_many(tmp_path, "train", "2", "--resume", str(tmp_path / "4" / "run"))
    run_many(tmp_path, "train", "1", *MLP)
    assert_same_run(*(tmp_path / number / "run" for number in "14"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("lr", "its lr is 0.1, not 0.005"),
        pytest.param("threads", "its threads is 2, not 1", marks=pytest.mark.longest),
        pytest.param("data", "its data is other", marks=pytest.mark.longest),
    ],
)
def test_processes_that_differ_are_refused_in_a_line(tmp_path, what, reason):
    said = refused_many(tmp_path, "disagreeing", "2", what, *MLP)
    assert said == [f"error: process 1 does not agree with process 0: {reason}"]


def refused_many(folder: Path, *job: str) -> list[str]:
    """Run a job whose processes end with one status that is not 0; return the errors they printed."""
    command = [sys.executable, "tests/many_processes.py", str(folder), *job]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
    *said, summary = done.stderr.splitlines()
    status = 130 if job[0] == "interrupted" else 2
    assert summary == f"{job[1]} processes ended with {[status] * int(job[1])}"
    return [line for line in said if line.startswith("error")]


@given(st.integers(1, 40), st.integers(0, 3))
def test_the_pairwise_sum_of_aligned_blocks_is_that_of_all(blocks, doublings):
    x = torch.randn(blocks * 2**doublings, 5, generator=generator(blocks, doublings)) * 10.0
    of_blocks = torch.stack([pairwise_sum(block) for block in x.split(2**doublings)])
    assert torch.equal(pairwise_sum(of_blocks), pairwise_sum(x))
    assert torch.allclose(pairwise_sum(x.double()), x.double().sum(0), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 40))
def test_terms_added_one_by_one_give_the_pairwise_sum_to_the_bit(n):
    x, branches = torch.randn(n, 50, generator=generator(n)) * 10.0, []
    for term in x:
        branches = add_in_pairs(branches, term)
        assert len(branches) <= n.bit_length()
    assert torch.equal(sum_of_branches(branches), pairwise_sum(x))


def test_an_odd_last_one_waits_a_round():
    """Where it is added decides the last bits of five and of seven."""
    a, b, c, d, e, f, g = x = torch.randn(7, 1000, generator=generator(0))
    assert torch.equal(pairwise_sum(x[:5]), ((a + b) + (c + d)) + e)
    assert torch.equal(pairwise_sum(x), ((a + b) + (c + d)) + ((e + f) + g))


def vector_of(rank: int) -> torch.Tensor:
    return torch.randn(1001, generator=generator(rank)) * 10.0


def sum_in_slices() -> torch.Tensor:
    return distributed.sum_over_processes(vector_of(distributed.place()[0]))


def test_a_large_vector_is_summed_in_slices_to_the_same_bits(monkeypatch):
    """Four processes, and a number of numbers that they cannot share evenly."""
    monkeypatch.setattr(local_processes, "START_METHOD", "fork")  # so that the processes have the change too
    monkeypatch.setattr(distributed, "SMALL", 0)
    expected = pairwise_sum(torch.stack([vector_of(rank) for rank in range(4)]))
    assert all(torch.equal(total, expected) for total in local_processes.in_processes(sum_in_slices, 4))


@given(st.integers(1, 64), st.integers(1, 16))
def test_every_part_is_done_once_or_the_number_is_refused(parts, processes):
    each = parts // processes
    if processes > 1 and (parts % processes or each & (each - 1)):
        with pytest.raises(ValueError, match=f"{parts} parts cannot be shared by {processes} processes"):
            own_parts(parts, 0, processes)
    else:
        assert [i for rank in range(processes) for i in own_parts(parts, rank, processes)] == list(range(parts))


def test_a_part_weighs_as_many_targets_as_count_in_it():
    y = torch.tensor([[1, -100], [-100, -100], [2, 3]])
    assert part_shares(y, 4).tolist() == pytest.approx([1 / 3, 0, 2 / 3, 0])
    assert part_shares(torch.full((3,), -100), 2).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert part_shares(torch.zeros(3, 2, 5), 2).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_a_vector_holds_every_leaf_whatever_the_order_of_names():
    params = {"b": {"w": torch.randn(2, 3), "a": torch.randn(())}, "a": torch.randn(4).half(), "empty": {}}
    vector = to_vector(params)
    assert vector.dtype == torch.float32
    assert torch.equal(vector, to_vector(dict(reversed(params.items()))))
    again = from_vector(vector, params)
    assert again.keys() == params.keys()
    assert all(
        torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(*map(tree.leaves, (again, params)), strict=True)
    )


def test_a_sharded_state_comes_back_whole_and_is_refused_for_several_dtypes():
    params = {"w": torch.randn(3, 2), "b": torch.randn(2)}
    state = adamw(lr=0.1).update(params, params, adamw(lr=0.1).init(params))[1]
    whole = gather_state(scatter_state(state, sharded(adamw(lr=0.1)).init(params)), params)
    assert_same(whole, state)
    with pytest.raises(ValueError, match="several dtypes"):
        sharded(sgd(lr=0.1)).init({"w": torch.ones(2), "h": torch.ones(2).half()})


def test_a_step_with_a_slice_of_the_state_holds_less():
    """The most bytes of tensors at a time, in each of two processes.

    gloo's thread may hold what a step gathered a moment longer, up to 2.3 times the parameters: the least of five
    tries counts, and a quarter of the parameters is less even where all tries of one way meet that moment.
    """
    model, rule = mlp((1, 8, 8), 10, hidden=(300, 300)), adamw(lr=0.1)
    params, _ = model.init(generator(0))
    objective = partial(classification_loss, apply=model.apply)
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10

    def peak(optimizer: Optimizer) -> int:
        step = data_parallel_step(objective, optimizer, parts=8)
        ts = init_train_state(model, optimizer, seed=0)
        growths = [peak_growth(partial(step, ts, x, y, key=run_key(0))) for _ in range(5)]
        return 4 * tree.size(ts._asdict()) + min(growths)

    for whole_state, divided in in_two(lambda: (peak(rule), peak(sharded(rule)))):
        assert whole_state - divided > tree.size(params)  # in bytes: a quarter of 4 * size


@pytest.mark.parametrize("shape", [(3, 2), (3, 3)], ids=["even", "ragged"])
def test_two_slices_of_a_state_come_back_whole_in_both_processes(shape):
    params = {"w": torch.randn(shape, generator=generator(0)), "b": torch.ones(2)}
    state = adamw(lr=0.1).update(params, params, adamw(lr=0.1).init(params))[1]

    def there_and_back() -> tuple[Any, Any]:
        first = state if distributed.place()[0] == 0 else {}  # it alone has the whole
        own = scatter_state(first, sharded(adamw(lr=0.1)).init(params))
        return own, gather_state(own, params)

    (one, whole), (other, nothing) = in_two(there_and_back)
    assert_same(whole, state)
    assert nothing == {}
    numbers = tree.size(params)
    assert len(one["mean"]["slice"]) == len(other["mean"]["slice"]) == (numbers + 1) // 2
    assert torch.equal(other["step"], state["step"])


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch():
    """A step's parameters and statistics, in float64, of 4 images here and 3 there."""
    model, rule = cnn((1, 8, 8), 3, widths=(4, 5)), sgd(lr=0.5)
    params, state = (tree.to(part, torch.float64) for part in model.init(generator(0)))
    ts, key = TrainState(params, state, rule.init(params)), run_key(0)
    x, y = torch.randn(7, 1, 8, 8, generator=generator(1), dtype=torch.float64), torch.arange(7) % 3
    normed = partial(classification_loss, apply=distributed.whole_batch_norm(model).apply)
    step = data_parallel_step(normed, rule, parts=2, whole_norm=True)
    whole, _ = classifier_step(model, rule)(ts, x, y, key=key)
    for ours, _ in in_two(lambda: step(ts, x, y, key=key)):
        for part, expected in ((ours.params, whole.params), (ours.state, whole.state)):
            torch.testing.assert_close(tree.flatten(part), tree.flatten(expected), rtol=1e-12, atol=1e-12)


def test_a_part_without_targets_adds_nothing_though_its_loss_is_nan():
    model = mlp((1, 4, 4), 3, hidden=(5,))
    ts = init_train_state(model, sgd(lr=0.1), seed=0)
    x, y = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, -100, -100])
    objective = partial(classification_loss, apply=model.apply)
    with_nan = data_parallel_step(objective, sgd(lr=0.1), parts=2)(ts, x, y, key=run_key(0))
    alone = data_parallel_step(objective, sgd(lr=0.1), parts=1)(ts, x[:2], y[:2], key=run_key(0))
    assert_same(with_nan[0]._asdict(), alone[0]._asdict())
    assert_same(with_nan[1], alone[1])  # where it would be NaN: the gradient of no targets is 0


def test_a_step_that_meets_at_every_norm_wants_a_process_per_part():
    model = cnn((1, 8, 8), 3, widths=(4,))
    objective, rule = partial(classification_loss, apply=model.apply), sgd(lr=0.1)
    step = data_parallel_step(objective, rule, parts=2, whole_norm=True)
    with pytest.raises(ValueError, match="2 parts want as many processes"):
        step(init_train_state(model, rule, seed=0), torch.ones(4, 1, 8, 8), torch.zeros(4).long(), key=run_key(0))
    with pytest.raises(ValueError, match="neither compiled nor accumulated"):
        data_parallel_step(objective, rule, parts=2, whole_norm=True, accumulate=2)


def refusal(*flags: str) -> str:
    """Return the line with which the trainer refuses its flags."""
    with pytest.raises(cli.UsageError) as refused:
        parse(Config, flags)
    return str(refused.value)


def test_a_batch_is_cut_where_there_are_processes_and_threads_are_counted(monkeypatch):
    found = [parse(Config, flags) for flags in ((), ("--parts", "4"), ("--processes", "2"))]
    assert [(config.parts, config.threads) for config in found] == [(1, None), (4, 1), (8, 1)]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parse(Config, ()).parts == 8
    assert refusal("--parts", "2") == "--parts 2: 4 processes must get 1, 2, 4 or 8 … of them each"


@pytest.mark.slow
def test_a_run_of_one_part_says_why_two_processes_cannot_go_on_with_it(tmp_path):
    run_many(tmp_path, "train", "1", *MLP, "--parts", "1", "--epochs", "1")
    said = refusal("--resume", str(tmp_path / "1" / "run"), "--processes", "2")
    assert said.endswith("of them each; a run keeps its parts, so fewer processes must go on with this one")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--processes", "3"), "--parts 8: 3 processes must get 1, 2, 4 or 8 … of them each"),
        (("--processes", "2", "--parts", "6"), "--parts 6: 2 processes must get 1, 2, 4 or 8 … of them each"),
        (("--parts", "9", "--batch-size", "8"), "--parts 9 cannot part a batch of 8"),
        (("--processes", "0"), "--processes 0 is not between 1 and 1024"),
    ],
)
def test_parts_that_do_not_divide_are_refused_before_a_process_starts(flags, reason):
    assert refusal(*flags) == reason


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--model", "cnn"), "--shard params divides mlp and transformer, not cnn: --shard optimizer divides any"),
        (("--model", "mlp", "--parts", "4"), "--shard params does not go with --parts: --shard optimizer does"),
        (("--model", "mlp", "--compile"), "--shard params does not go with --compile: --shard optimizer does"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_a_line(flags, reason):
    assert refusal("--shard", "params", *flags) == reason
    assert parse(Config, ("--shard", "params", "--model", "mlp", "--processes", "3")).parts == 1


def test_a_step_of_divided_parameters_is_the_plain_step_in_two_processes():
    """An MLP of five units and three images, which two processes cannot cut evenly."""
    model, rule = mlp((1, 4, 4), 3, hidden=(5,), dropout_p=0.2), sgd(lr=0.1)
    params = tree.to(model.init(generator(0))[0], torch.float64)
    ts, x, y = TrainState(params, {}, rule.init(params)), torch.randn(3, 1, 4, 4).double(), torch.arange(3)
    options = {"objective": partial(classification_loss, apply=model.apply), "optimizer": rule, "key": run_key(0)}
    alone, _ = train_step(ts, x, y, **options)
    for ours in in_two(lambda: whole(split_step(TrainState(*map(split_rows, ts)), x, y, **options)[0].params)):
        torch.testing.assert_close(ours, alone.params, rtol=1e-12, atol=1e-12)


def end_of(rank: int, status: int, message: str = "", *, lost: bool = False) -> object:
    """Return the exit status with which a process of that rank would end, among many that `just train` has started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", "2")
        patch.setattr(ranks.Told, "message", message)
        patch.setattr(ranks.Told, "lost", lost)
        with pytest.raises(SystemExit) as stop, ranks.telling():
            sys.exit(status)
        return stop.value.code


def test_an_end_is_told_once_and_torchrun_starts_only_lost_processes_again(monkeypatch, tmp_path):
    monkeypatch.setenv(ranks.ENDS, str(tmp_path))
    assert end_of(1, 1, "a process was lost", lost=True) == 1
    assert ranks.read_end(tmp_path) is None
    assert end_of(1, 2, "no such file") == 0
    assert end_of(0, 1, "a process was lost", lost=True) == 0  # the other's end is the run's
    assert ranks.read_end(tmp_path) == (2, "no such file")
    assert end_of(0, 130, "interrupted") == 0
    assert ranks.read_end(tmp_path) == (130, "interrupted")


def rank_of(process: Path) -> str | None:
    """Return the rank of a process of the trainer; None if it is none."""
    with contextlib.suppress(OSError):
        if b"experiments.train" in (process / "cmdline").read_bytes():
            found = re.search(rb"(?:^|\0)RANK=(\d+)", (process / "environ").read_bytes())
            return found[1].decode() if found else None
    return None


def train_and_kill(out: Path, ready: Callable[[], bool], *flags: str) -> subprocess.CompletedProcess:
    """Train with two processes that are started again where one is lost; kill the second of them once it is ready."""
    command = [sys.executable, "-m", "experiments.train", "--out", str(out), "--processes", "2", "--max-restarts", "2"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = False
    while process.poll() is None and not killed:
        for other in Path("/proc").glob("[0-9]*"):
            if ready() and rank_of(other) == "1" and str(out).encode() in (other / "cmdline").read_bytes():
                os.kill(int(other.name), signal.SIGKILL)
                killed = True
                break
        time.sleep(0.01)
    said, errors = process.communicate()
    assert killed, errors
    return subprocess.CompletedProcess(command, process.returncode, said, errors)


@pytest.mark.slow
@pytest.mark.longest
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_a_lost_process_is_started_again_without_a_hand_and_an_earlier_run_is_not_gone_on_with(tmp_path):
    """By --processes, whose engine is torchrun's: killed in the midst; then killed before it has begun anew."""
    flags = (*MLP, "--epochs", "30", "--checkpoint-every", "2")
    run_many(tmp_path, "train", "2", *flags)
    whole, run = tmp_path / "2" / "run", tmp_path / "run"
    log = run / "metrics.jsonl"
    done = train_and_kill(run, lambda: log.exists() and log.read_bytes().count(b"\n") > 9, *flags)
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr
    assert_same_run(whole, run)
    log.write_bytes(log.read_bytes().replace(b'"loss"', b'"loss of before"', 1))
    done = train_and_kill(run, lambda: True, *flags, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, run)


@pytest.mark.slow
def test_torchrun_does_not_run_again_what_has_ended(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    command = [*torchrun, "-m", "experiments.train", *MLP, "--parts", "3", "--out", str(tmp_path / "run")]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(temporary)})
    assert done.returncode == 1
    assert not [path for path in temporary.iterdir() if not path.name.startswith("torchelastic_")]  # torchrun's own
    assert done.stderr.splitlines().count("error: --parts 3: 2 processes must get 1, 2, 4 or 8 … of them each") == 1
    assert not (tmp_path / "run").exists()


def test_plain_torchrun_is_given_the_reason_for_its_report(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert end_of(1, 2, "no such file") == 2
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    assert failure.message == "no such file"


def test_a_lost_process_is_named_rather_than_those_that_ended_for_it(tmp_path):
    config = dataclasses.replace(Config(), processes=4, out=tmp_path)
    lost = {0: SimpleNamespace(exitcode=1), 1: SimpleNamespace(exitcode=-15), 3: SimpleNamespace(exitcode=-9)}
    assert launch.describe(config, lost) == f"process 3 of 4 was lost (SIGKILL); --resume {tmp_path} continues"


def test_a_port_that_is_taken_is_said_in_a_line(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(cli.UsageError, match=f"127.0.0.1:{port}, where the processes are to meet, is taken"):
            together.join("gloo")


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(cli.UsageError, match="process 1 has no GPU, as 1 are here: fewer processes, or --device cpu"):
        together.require_device(torch.device("cuda"))
