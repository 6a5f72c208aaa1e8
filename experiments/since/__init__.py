"""Changes in PyTorch since about 2018, as dated pairs that run."""
