"""Every public function that teaches an operation has an example, and `pytest` runs them all with the shape checks on.

The examples are run by `--doctest-modules` (pyproject.toml), like a test each: pytest fn/layers.py
"""

import doctest
import importlib
import inspect

import pytest

from fn import layers

ROOMS = (
    "fn.attention",
    "fn.attention_tiled",
    "fn.backbones",
    "fn.conv",
    "fn.curvature",
    "fn.detection.anchor_clusters",
    "fn.detection.anchors",
    "fn.detection.average_precision",
    "fn.detection.boxes",
    "fn.detection.heatmaps",
    "fn.detection.train",
    "fn.distributed",
    "fn.dtensors",
    "fn.generation",
    "fn.gradcheck",
    "fn.initializers",
    "fn.layers",
    "fn.losses",
    "fn.metrics",
    "fn.models.centernet",
    "fn.models.cnn",
    "fn.models.mlp",
    "fn.models.pyramid",
    "fn.models.resnet",
    "fn.models.squeezenet",
    "fn.models.ssd",
    "fn.models.transformer",
    "fn.optim",
    "fn.positions",
    "fn.precision",
    "fn.pretrained",
    "fn.rng",
    "fn.trace",
    "fn.transfer",
    "fn.tree",
    "fn.weights_files",
    "fn.weights_names",
    "fn.weights_torchscript",
)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_function_has_an_example(room):
    """As doctest finds them, which would pass over a function that hides its module."""
    module = importlib.import_module(room)
    functions = {name for name, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == room}
    public = {f"{room}.{name}" for name in functions if not name.startswith("_")}
    shown = {test.name for test in doctest.DocTestFinder().find(module) if test.examples}
    assert public
    assert sorted(public - shown) == []


def test_pytest_runs_the_examples(pytestconfig):
    """Without a flag of one's own, as the README's command does."""
    assert pytestconfig.getoption("doctestmodules")
    assert "fn" in pytestconfig.getini("testpaths")


def run(example: str) -> list[str]:
    """Run an example as if it stood in fn/layers.py, and return what doctest complains of."""
    test = doctest.DocTestParser().get_doctest(example, dict(vars(layers)), "example", layers.__file__, 0)
    complaints: list[str] = []
    doctest.DocTestRunner().run(test, out=complaints.append)
    return complaints


def test_an_example_runs_with_the_shape_checks_on():
    assert run(">>> linear(torch.ones(4, 3), torch.ones(2, 3)).shape\ntorch.Size([4, 2])\n") == []
    complaint = "".join(run(">>> linear(torch.ones(4, 3), torch.ones(2, 5)).shape\ntorch.Size([4, 2])\n"))
    assert "TypeCheckError" in complaint
    assert "typechecking parameter 'weight'" in complaint
