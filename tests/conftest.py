"""Settings of the whole suite."""

import os

import torch
from hypothesis import settings

collect_ignore = ["drills"]  # answers, no tests: --doctest-modules would import them

settings.register_profile("fn", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("fn")
# for the processes that tests start too: to be the same to the bit, a run must go on with as many threads
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)  # on tensors this small, waking a second thread costs 5 ms an op: 100 times the work
