"""The structure of the code: what may import what, and what a name of a module is."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FAMILIES = sorted(path.stem for path in (ROOT / "fn" / "models").glob("*.py") if path.stem != "__init__")


def module_name(path: Path) -> str:
    """fn/models/cnn.py -> fn.models.cnn, fn/models/__init__.py -> fn.models"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for folder in ("fn", "experiments") for path in (ROOT / folder).rglob("*.py")}


def imports(name: str) -> Iterator[str]:
    """Return the modules of fn and experiments that a module names in an import, at its top or inside a function."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (full if full in MODULES else node.module for full in found)


@cache
def import_graph() -> dict[str, set[str]]:
    """Return the modules that each module imports; a second to read."""
    return {name: set(imports(name)) for name in MODULES}


def package(name: str) -> str:
    """Return the package of experiments that a module belongs to, or its own name where it stands in none."""
    return ".".join(name.split(".")[:2])


def reached(start: str) -> set[str]:
    """Return all modules that an import of `start` may load, itself included."""
    seen, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += import_graph()[name]
    return seen


@pytest.mark.parametrize("folder", ["fn", "experiments"])
def test_there_is_no_circle_of_imports(folder):
    """Imports inside functions included."""
    graph = {name: others for name, others in import_graph().items() if f"{name}.".startswith(f"{folder}.")}
    assert graph
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_there_is_no_circle_of_packages():
    """But for --mine: cli asks the drills which of the reader's functions pass."""
    graph: dict[str, set[str]] = {}
    for name, others in import_graph().items():
        if name.startswith("experiments."):
            packages = {package(other) for other in others - {"experiments"}} - {package(name)}
            excepted = {"experiments.drill"} if name == "experiments.shared.cli" else set()
            graph.setdefault(package(name), set()).update(packages - excepted)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("fn.models.")))
def test_models_import_neither_data_nor_training(name):
    beyond = {
        "fn.data",
        "fn.train",
        "fn.train_variants",
        "fn.draw",
        "fn.jit",
        "fn.transfer",
        "fn.ensemble",
        "fn.checkpoint",
    }
    assert not {other for other in reached(name) if any(f"{other}.".startswith(f"{b}.") for b in beyond)}


OPS = [
    "tree",
    "domains",
    "indices",
    "rng",
    "initializers",
    "layers",
    "conv",
    "losses",
    "metrics",
    "optim",
    "positions",
    "attention",
]
OPS += ["attention_tiled", "precision", "workarounds"]


@pytest.mark.parametrize("name", OPS)
def test_ops_import_ops_alone(name):
    assert reached(f"fn.{name}") <= {f"fn.{op}" for op in OPS}


def test_fn_does_not_know_experiments():
    assert [str(path) for path in (ROOT / "fn").rglob("*.py") if "experiments" in path.read_text()] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_name_of_a_family_is_a_module(family):
    import fn.models

    module = importlib.import_module(f"fn.models.{family}")
    assert inspect.ismodule(module)
    assert getattr(fn.models, family) is module


@pytest.mark.parametrize("family", ["mlp", "cnn", "resnet", "squeezenet", "transformer", "ssd", "centernet"])
def test_a_family_is_a_file_with_its_factory_of_the_same_name(family):
    factory = getattr(importlib.import_module(f"fn.models.{family}"), family)
    assert list(inspect.signature(factory).parameters)[:2] == ["shape", "classes"]


LABS = sorted((ROOT / "experiments").glob("lab[0-9]*.py"))
TOOLS = sorted(path.parent for path in (ROOT / "experiments").glob("*/__main__.py"))
FOLDERS = sorted(path.parent for path in (ROOT / "experiments").glob("*/**/README.md"))


@pytest.mark.parametrize("lab", LABS, ids=lambda path: path.stem)
def test_a_lab_is_a_page_with_its_training_loop_in_sight(lab):
    text = lab.read_text()
    assert len(text.splitlines()) <= 180
    if lab.stem[:4] not in ("lab2", "lab6"):  # these two run the trainer and the loaders
        assert re.search(r"for x, y in .*:\n +ts, \w+ = step\(ts, x, y, key=key\)\n", text)


def test_no_lab_has_a_second_training_loop_beside_its_page():
    """But for Lab 7's mistakes, which show in ten steps of training each."""
    files = (path for room in ("lab_helpers", "shared") for path in (ROOT / "experiments" / room).rglob("*.py"))
    assert [path.stem for path in files if re.search(r"\bts, \w+ = \w+\(ts, ", path.read_text())] == [
        "process_mistakes"
    ]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_a_tool_is_a_package_with_a_readme(tool):
    assert len((tool / "README.md").read_text().splitlines()) > 15


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_readme_names_each_file_of_its_folder(folder):
    readme = (folder / "README.md").read_text()
    files = [path for path in folder.rglob("*.py") if path.parent.name != "catalogue"]
    files = [
        path for path in files if not any(path.is_relative_to(inner) for inner in FOLDERS if inner.parent == folder)
    ]
    names = {path.stem for path in files} - {"__init__", "__main__"}
    assert not {name for name in names if not re.search(rf"`([\w/]+/)?{name}(\.py)?`", readme)}


PAGES = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("experiments/**/*.md")))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_link_leads_to_a_file(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page.parent / link).exists()] == []


def test_experiments_holds_what_one_runs_alone():
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert files == {"__init__", "lab", "labs", "overfit", *(lab.stem for lab in LABS)}


def test_the_map_of_the_readme_names_each_file_of_fn():
    fn_map = re.search(r"^fn/ .*?^experiments/", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert fn_map
    files = {path.stem for path in (ROOT / "fn").glob("*.py")} - {"__init__"}
    assert not {name for name in files if not re.search(rf"\b{name}\b", fn_map[0])}


README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_layer_in_the_readme_is_ours_word_for_word():
    source = (ROOT / "fn" / "layers.py").read_text()
    assert README[0].startswith("@halves_by(F.linear)\ndef linear(")
    assert f"\n\n\n{README[0]}\n\n" in source


def test_the_step_in_the_readme_trains():
    from torch.func import grad_and_value

    from fn.layers import linear, relu
    from fn.losses import cross_entropy
    from fn.models.mlp import mlp_init
    from fn.optim import adamw
    from fn.rng import generator

    params, _ = mlp_init(generator(0), 4, (8,), 3)
    names = {
        "x": torch.ones(5, 4),
        "y": torch.tensor([0, 1, 2, 0, 1]),
        "params": params,
        "linear": linear,
        "relu": relu,
    }
    names |= {"cross_entropy": cross_entropy, "adamw": adamw, "grad_and_value": grad_and_value}
    exec(README[1], names)
    assert names["loss"](names["params"]) < names["value"]
