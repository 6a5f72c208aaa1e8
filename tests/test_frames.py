"""A script reaches its model through few functions of ours, so that a reader finds the way from `main` to `apply`."""

import pytest

from tests.frames import COMPILED, LOOPS, frames_to

TRACE = ("whole_or_rest", "jitted", "compile_step", "_trace", "flat_step")
"""the functions through which a compiled step goes while it is traced, once; from then on none of ours runs"""


@pytest.mark.parametrize("name", LOOPS)
def test_a_script_reaches_its_model_in_six_frames(name):
    loop = LOOPS[name]
    frames = frames_to(loop)
    assert frames[:2] == ("main", loop.name)
    assert frames[-1] == "apply"
    assert len(frames) <= 6, " → ".join(frames)


@pytest.mark.parametrize("name", COMPILED)
def test_where_the_step_is_compiled_its_one_trace_adds_five_frames(name):
    loop = COMPILED[name]
    assert loop.script.Config(**loop.flags, **loop.compiled_by or {}).compile_pays()
    frames, compiled = frames_to(loop), frames_to(loop, compile=True)
    step = frames.index("train_step")
    assert compiled == (*frames[:step], *TRACE, *frames[step:]), " → ".join(compiled)
    assert len(compiled) <= 11
