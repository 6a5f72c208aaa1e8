"""A process reads which one it is from its environment

Old: parser.add_argument("--local_rank"), for distributed.launch

New: int(os.environ["LOCAL_RANK"]), for torchrun

Since: 1.10

Today: is wrong, silently: every process takes itself for number 0

Why: torch.distributed.launch added a flag to the command; since 2.0 it is
spelt --local-rank, which --local_rank does not match. torchrun adds
none: the default is taken, and all processes use the first GPU.

Read: torch.distributed.run, torch.distributed.launch

Gone: local_rank'
"""

import argparse
from collections.abc import Mapping


def given(seed: int) -> tuple[list[str], Mapping[str, str]]:
    """The flags and the environment that torchrun starts process 3 with"""
    rank = str(3 + seed % 5)
    return [], {"LOCAL_RANK": rank, "RANK": rank, "WORLD_SIZE": "8"}


def old(argv: list[str], environ: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=0)
    return parser.parse_args(argv).local_rank


def new(argv: list[str], environ: Mapping[str, str]) -> int:
    return int(environ["LOCAL_RANK"])


def wanted(argv: list[str], environ: Mapping[str, str]) -> int:
    """With one machine both ranks are the same"""
    return int(environ["RANK"])
