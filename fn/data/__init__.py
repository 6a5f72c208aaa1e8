"""Data: what there is (`datasets`), how it reaches a loop (`loader`), how it is varied on the way (`transforms`)."""
