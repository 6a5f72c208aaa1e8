"""A script reaches its model through few functions of ours, so that a reader finds the way from `main` to `apply`."""

import pytest

from tests.frames import LOOPS, frames_to


@pytest.mark.parametrize("name", LOOPS)
def test_a_script_reaches_its_model_in_six_frames(name):
    loop = LOOPS[name]
    frames = frames_to(loop)
    assert frames[:2] == ("main", loop.name)
    assert frames[-1] == "apply"
    assert len(frames) <= 6, " → ".join(frames)
