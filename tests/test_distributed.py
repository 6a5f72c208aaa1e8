"""Many processes, one result: the sums, the step and the sharded optimizer with 1, 2 and 4 processes.

tests/many.py forks the processes; each waits a limited time for the others.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fn import tree
from fn.distributed import (
    data_parallel_step,
    from_vector,
    own_parts,
    pairwise_sum,
    part_shares,
    shard_state,
    sharded,
    to_vector,
    unshard_state,
)
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.optim import adamw, sgd
from fn.rng import generator
from fn.train import classification_loss, init_train_state, run_key

FAMILIES = ("mlp", "cnn", "resnet", "transformer", "ssd")


def run_many(folder: Path, *job: str) -> None:
    """Run a job of tests/many.py; that of 2 processes has folder/2."""
    command = [sys.executable, "tests/many.py", str(folder), *job]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr


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


def test_1_2_and_4_processes_end_equal_to_the_bit(tmp_path):
    """States and metrics of every family, with dropout, clipping, a schedule, accumulation, ragged batches."""
    run_many(tmp_path, "steps", "1,2,4")
    assert {path.stem for path in (tmp_path / "1").iterdir()} == set(FAMILIES)
    assert_same_files(*(tmp_path / number for number in "124"))


@pytest.mark.slow
def test_a_sharded_optimizer_changes_no_bit(tmp_path):
    run_many(tmp_path / "whole", "steps", "1")
    run_many(tmp_path / "sharded", "steps", "1,2,4", "shard")
    assert_same_files(tmp_path / "whole" / "1", *(tmp_path / "sharded" / number for number in "124"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_in_pieces_1_2_and_4_processes_end_equal_to_the_bit(tmp_path, family):
    run_many(tmp_path, "steps", "1,2,4", "compile", family)
    assert_same_files(*(tmp_path / number for number in "124"))


@pytest.mark.slow
def test_the_parts_give_what_the_whole_batch_gives(tmp_path):
    """In float64, batch norm over the whole batch included."""
    run_many(tmp_path, "exact", "1,2,4")
    for file in tmp_path.glob("*/gaps*.json"):
        for family, gap in json.loads(file.read_text()).items():
            assert gap <= 1e-12, (file, family)


@given(st.integers(1, 40), st.integers(0, 3))
def test_the_pairwise_sum_of_aligned_blocks_is_that_of_all(blocks, doublings):
    x = torch.randn(blocks * 2**doublings, 5, generator=generator(blocks, doublings)) * 10.0
    of_blocks = torch.stack([pairwise_sum(block) for block in x.split(2**doublings)])
    assert torch.equal(pairwise_sum(of_blocks), pairwise_sum(x))
    assert torch.allclose(pairwise_sum(x.double()), x.double().sum(0), rtol=1e-12, atol=1e-12)


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
    whole = unshard_state(shard_state(state), params)
    assert_same(whole, state)
    with pytest.raises(ValueError, match="several dtypes"):
        sharded(sgd(lr=0.1)).init({"w": torch.ones(2), "h": torch.ones(2).half()})


def test_a_part_without_targets_adds_nothing_though_its_loss_is_nan():
    model = mlp((1, 4, 4), 3, hidden=(5,))
    ts = init_train_state(model, sgd(lr=0.1), seed=0)
    x, y = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, -100, -100])
    objective = partial(classification_loss, apply=model.apply)
    with_nan = data_parallel_step(objective, sgd(lr=0.1), parts=2)(ts, x, y, key=run_key(0))
    alone = data_parallel_step(objective, sgd(lr=0.1), parts=1)(ts, x[:2], y[:2], key=run_key(0))
    assert_same(with_nan[0]._asdict(), alone[0]._asdict())


def test_a_step_that_meets_at_every_norm_wants_a_process_per_part():
    model = cnn((1, 8, 8), 3, widths=(4,))
    objective, rule = partial(classification_loss, apply=model.apply), sgd(lr=0.1)
    step = data_parallel_step(objective, rule, parts=2, whole_norm=True)
    with pytest.raises(ValueError, match="2 parts want as many processes"):
        step(init_train_state(model, rule, seed=0), torch.ones(4, 1, 8, 8), torch.zeros(4).long(), key=run_key(0))
    with pytest.raises(ValueError, match="neither compiled nor accumulated"):
        data_parallel_step(objective, rule, parts=2, whole_norm=True, accumulate=2)
