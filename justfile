set positional-arguments # so that a path with a space stays one argument

[private]
default:
    @just --list --unsorted

# Run lab N; flags pass through: just lab 1 --dataset mnist; --predict asks first, --mine runs your drills
[no-exit-message]
lab n *flags:
    @uv run python -m experiments.lab "$@"

# Run every lab and print one table
[no-exit-message]
labs *flags:
    @uv run python -m experiments.labs "$@"

# Train any model on any data set: just train --model cnn --dataset mnist
[no-exit-message]
train *flags:
    @uv run python -m experiments.train "$@"

# Overfit 32 images with every family, or one: just overfit --family cnn
[no-exit-message]
overfit *flags:
    @uv run python -m experiments.overfit "$@"

# Time one training step: ours, nn.Module's, JAX's
[no-exit-message]
bench *flags:
    @uv run --group bench python -m experiments.bench "$@"

# Train many models at once, over seeds and learning rates
[no-exit-message]
sweep *flags:
    @uv run python -m experiments.sweep "$@"

# Race to 99 % on MNIST beside two other recipes: minutes; --mine FILE enters yours
[no-exit-message]
race *flags:
    @uv run python -m experiments.race "$@"

# The gallery of failures, live: a list, one by NAME, --all, --quiz, or --mine to fix one
[no-exit-message]
break *flags:
    @uv run python -m experiments.gallery "$@"

# What changed in PyTorch since 2018: a list of old and new, one by NAME, --all, or NAME --mine
[no-exit-message]
since *flags:
    @uv run python -m experiments.since "$@"

# A dated entry for LEARNING.md: just note "…" --run runs/lab3
[no-exit-message]
note *flags:
    @uv run python -m experiments.note "$@"

# From memory: the list, or drills/NAME.py to write: just drill softmax; just drill next
[no-exit-message]
drill *flags:
    @uv run python -m experiments.drill "$@"

# What is due, graded when you save it: drills, bugs, questions; the first run finds what was forgotten
[no-exit-message]
learn *flags:
    @uv run python -m experiments.learn "$@"

# Seconds and first tries per concept, over weeks
[no-exit-message]
progress *flags:
    @uv run python -m experiments.learn --progress "$@"

# Grade drills/NAME.py: just check-drill softmax
[no-exit-message]
check-drill name *flags:
    @uv run python -m experiments.drill "$@" --check

# Run the tests on all cores, shape checks enforced; arguments go to pytest
[no-exit-message]
test *args:
    @uv run pytest -n auto "$@"

# Run the long proofs: every grader, fifty kills, compiled steps; minutes
prove *args:
    @uv run pytest -n auto -m slow "$@"

# Lint, check the format, check the types
check:
    uv run ruff check
    uv run ruff format --check
    uv run --group bench pyright

# What continuous integration runs
ci:
    bash .ci/run
