"""warmup_schedule with a minimum."""

import torch


def warmup_schedule(step, *, lr, warmup_steps):
    share = torch.minimum((torch.as_tensor(step) + 1) / warmup_steps, torch.ones(()))
    return share * lr


WRONG = {
    "begins at 0": ("torch.as_tensor(step) + 1", "torch.as_tensor(step)", "where `warmup_steps` is not below `step`"),
    "never stops": (
        "torch.minimum((torch.as_tensor(step) + 1) / warmup_steps, torch.ones(()))",
        "(torch.as_tensor(step) + 1) / warmup_steps",
        "is not below `",
    ),
    "upside down": (
        "(torch.as_tensor(step) + 1) / warmup_steps",
        "warmup_steps / (torch.as_tensor(step) + 1)",
        "wrong in 27 of 30 calls",
    ),
    "no warm-up": ("share * lr", "torch.as_tensor(lr) + 0 * share", "where `warmup_steps` is not below `step`"),
}
