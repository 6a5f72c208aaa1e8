"""Settings of the whole suite."""

import torch
from hypothesis import settings

settings.register_profile("fn", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("fn")
torch.set_num_threads(1)  # on tensors this small, waking a second thread costs 5 ms an op: 100 times the work
