"""report.html: one file with all of a run in it, which loads nothing and never costs the run its results."""

import base64
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiments import labs
from experiments.lab_helpers.lab3.attention_pictures import show_attention
from experiments.shared import cli, show
from experiments.shared.report import record, write
from experiments.shared.shapes import trace_shapes
from experiments.shared.training_pictures import draw_losses
from fn import draw
from fn.models.cnn import cnn
from fn.rng import generator

ROOT = Path(__file__).parents[1]
HOSTILE = '</script><b>$x$ & "@data@'
"""a text that would end the data, begin a tag, a formula, a quotation, or be filled in, if it were not escaped"""
MARKDOWN = f"""# Lab

A **bold** `{HOSTILE}` of
two lines:
1. one
   goes on
2. two

| a | b |
|---|---|
| 1 | `2` |

```diff
- old | {HOSTILE}
```

<details><summary>Why?</summary>

- *Because*

</details>
"""
VOID = {"meta", "link", "input", "img", "br", "hr"}


@dataclass(frozen=True)
class Config(cli.Config):
    out: Path = Path(f"runs/{HOSTILE.replace('/', '')}")


class Page(HTMLParser):
    """The content of a page: its texts by tag, its attributes; open tags must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


def data_of(path: Path) -> dict[str, Any]:
    """Return the data in a page; NaN, which is no JSON, fails."""
    scripts = Page(path.read_text("utf-8")).texts["script"]
    assert len(scripts) == 2
    return json.loads(scripts[0], parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Path]:
    """The folder of a small run that shows one of each: table, curves, attention, shapes, parameters, prediction."""
    out = tmp_path_factory.mktemp("run")
    record.reset()
    show.table(HOSTILE, ("class", HOSTILE), [(HOSTILE, "1")])
    losses = {HOSTILE: [3.0, 2.0, math.nan, 1.0], "frozen": [3.0, 3.0, 3.0, 3.0]}
    draw_losses(losses, out / "loss.png")
    show.save(
        draw.curves({"accuracy": {"validation": {5: 0.5, 10: 0.75}}}, title=HOSTILE), out / "below" / "accuracy.png"
    )
    weights = torch.rand(2, 2, 5, 5, generator=generator(0)).softmax(dim=-1)
    show_attention(weights, "1 + 2", "attention", out / "attention.png")
    model = cnn((1, 8, 8), 10, widths=(4, 4, 4))
    shapes = trace_shapes(model, torch.zeros(1, 1, 8, 8), "shapes", seed=0)
    params, _ = model.init(generator(0))
    params["conv1"]["weight"][0, 0, 0, :2] = torch.tensor([math.nan, math.inf])
    show.parameters(params, "parameters")
    record.keep("page", markdown=MARKDOWN)
    record.keep("predictions", claim="loss", predicted=0.5, measured=1.0)
    checks = [shapes, cli.check(HOSTILE, math.inf, "<", 1.0), cli.check_mean("accuracy", [0.9, 1.0], ">=", 0.5)]
    cli.report(checks, Config(out=out), 1.5)
    yield out
    record.reset()


def test_the_page_holds_the_claims_of_the_summary(run):
    data, summary = data_of(run / "report.html"), json.loads((run / "summary.json").read_text())
    assert len(data["checks"]) == 3
    assert {name: data[name] for name in summary} == summary
    assert data["checks"][1] == {"name": HOSTILE, "value": None, "target": "< 1", "ok": False, "spread": ""}
    assert data["about"].startswith("report.html: one file")
    assert data["predictions"] == [{"claim": "loss", "predicted": 0.5, "measured": 1.0}]


def test_texts_survive_as_texts(run):
    found = Page((run / "report.html").read_text("utf-8"))
    assert found.texts["title"] == [f"{HOSTILE.replace('/', '')}: 2 of 3 hold"]
    assert "b" not in found.texts
    data = data_of(run / "report.html")
    assert data["tables"][0] == {"title": HOSTILE, "columns": ["class", HOSTILE], "rows": [[HOSTILE, "1"]]}


def test_nothing_is_loaded(run):
    text = (run / "report.html").read_text("utf-8")
    found = Page(text)
    addresses = [value for _, name, value in found.attributes if name in ("src", "href", "action", "data", "poster")]
    assert addresses == ["data:,"]
    assert set(re.findall(r"https?:[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}  # a name, which is not fetched
    assert "@import" not in text
    assert "url(" not in text
    assert ("meta", "http-equiv", "Content-Security-Policy") in found.attributes


def test_every_picture_is_in_the_page(run):
    pictures = {picture["name"]: picture for picture in data_of(run / "report.html")["pictures"]}
    assert list(pictures) == ["loss.png", "below/accuracy.png", "attention.png"]
    for name, picture in pictures.items():
        kind, _, content = picture["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) == (run / name).read_bytes()
        assert picture["title"]
        assert picture["alt"]
        with Image.open(run / name) as image:
            assert (picture["width"], picture["height"]) == image.size
    assert pictures["below/accuracy.png"]["title"] == HOSTILE
    assert "loss over step" in pictures["loss.png"]["alt"]


def test_curves_are_the_numbers_that_were_drawn(run):
    loss, accuracy = data_of(run / "report.html")["curves"]
    [panel] = loss["panels"]
    assert (panel["xlabel"], panel["ylabel"], panel["log_x"], panel["log_y"]) == ("step", "loss", False, True)
    lines = {line["name"]: (line["x"], line["y"]) for line in panel["lines"]}
    assert lines == {HOSTILE: ([1, 2, 3, 4], [3, 2, None, 1]), "frozen": ([1, 2, 3, 4], [3, 3, 3, 3])}
    assert accuracy["title"] == HOSTILE
    assert accuracy["panels"][0]["lines"][0]["x"] == [5, 10]


def test_a_long_line_keeps_its_leaps_and_its_gaps():
    values = [1.0] * 100_000
    values[12_345], values[54_321], values[77_777] = 9.0, -9.0, math.nan
    picked = record.thin(values)
    assert {0, 12_345, 54_321, 77_777, 99_999} <= set(picked)
    assert len(picked) <= 2 * record.STRETCHES + 2
    assert record.thin(values[:1000]) == list(range(1000))


def test_attention_shapes_and_parameters(run):
    data = data_of(run / "report.html")
    [attention], [shapes], [parameters] = data["attention"], data["shapes"], data["parameters"]
    assert attention["tokens"] == ["1", "·", "+", "·", "2"]
    for row in (row for layer in attention["weights"] for head in layer for row in head):
        assert sum(row) == pytest.approx(1, abs=1e-3)
    first = shapes["rows"][0]
    assert (first["layer"], first["op"], first["agrees"]) == ("conv1", "conv2d", True)
    assert first["by_hand"] == "⌊(8 + 2·1 − 3)/1⌋ + 1 = 8"
    leaves = {leaf["name"]: leaf for leaf in parameters["leaves"]}
    broken, sound = leaves["conv1.weight"], leaves["conv2.weight"]
    assert (broken["shape"], broken["nan"], broken["inf"], sum(broken["bins"])) == ([4, 1, 3, 3], 1, 1, 34)
    weight = cnn((1, 8, 8), 10, widths=(4, 4, 4)).init(generator(0))[0]["conv2"]["weight"]
    assert (sound["nan"], sound["inf"], len(sound["bins"]), sum(sound["bins"])) == (0, 0, record.BINS, weight.numel())
    moments = (weight.min(), weight.max(), weight.mean(), weight.std(correction=0))
    assert [sound[key] for key in ("min", "max", "mean", "std")] == pytest.approx(list(map(float, moments)), rel=1e-5)


@pytest.mark.parametrize(
    "leaf", [torch.zeros(0, 3), torch.full((2,), math.nan), torch.tensor(3), torch.ones(2, dtype=torch.bool)]
)
def test_odd_leaves_have_a_row(leaf):
    record.reset()
    record.parameters({"a": {"b": leaf}}, "odd")
    [entry] = record.kept["parameters"][0]["leaves"]
    assert (entry["name"], entry["shape"], entry["nan"]) == ("a.b", list(leaf.shape), int(leaf.isnan().sum()))
    record.reset()


def test_a_page_that_fails_costs_the_run_nothing(monkeypatch, capsys, tmp_path):
    def full(*_: Any) -> None:
        raise OSError("no room")

    (tmp_path / "report.html").write_text("of an older run")
    monkeypatch.setattr(write, "write_page", full)
    monkeypatch.setattr(sys, "argv", ["run", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.run(Config, lambda *_: [cli.check("claim", 1, "==", 1)])
    out, err = capsys.readouterr()
    assert stop.value.code == 0
    assert err == f"{tmp_path}/report.html was not written (OSError: no room)\n"
    assert json.loads((tmp_path / "summary.json").read_text())["checks"][0]["ok"]
    assert not (tmp_path / "report.html").exists()
    assert out.endswith(f"see {tmp_path}\n")


def test_what_cannot_be_kept_costs_the_run_nothing(capsys):
    record.attention("no tensor", "12", "")  # type: ignore
    record.picture("no figure", Path("a.png"))  # type: ignore
    lost = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lost] == [
        f"report.html will lack {n}" for n in ("attention", "picture")
    ]


def test_a_run_has_no_record_of_the_one_before(monkeypatch, capsys, tmp_path):
    for title in ("one", "other"):
        monkeypatch.setattr(sys, "argv", ["run", "--out", str(tmp_path / title)])
        with pytest.raises(SystemExit):
            cli.run(
                Config, lambda *_, title=title: show.table(title, ["a"], [["b"]]) or [cli.check("claim", 1, "==", 1)]
            )
    assert [table["title"] for table in data_of(tmp_path / "other" / "report.html")["tables"]] == ["other"]


def test_pictures_of_a_run_are_kept():
    """`draw.save` alone writes a picture that the page would lack."""
    files = [
        *ROOT.glob("experiments/shared/*.py"),
        *ROOT.glob("experiments/train/*.py"),
        *ROOT.glob("experiments/lab*.py"),
    ]
    assert [path.name for path in files if re.search(r"\bdraw\.save\(", path.read_text())] == ["show.py"]


def fake_lab(command: list[str], *, broken: str) -> Any:
    """Write what a lab would leave, but for the one named `broken`, which ends with status 1."""
    name = command[2].removeprefix("experiments.")[:4]
    if name == broken:
        return subprocess.CompletedProcess(command, 1)
    checks = [{"name": HOSTILE, "value": None, "target": "<= 1", "ok": True, "spread": ""}]
    out = Path("runs") / name
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps({"name": name, "checks": checks, "seconds": 2.0}))
    if name != "lab2":
        (out / "report.html").write_text("a page")
    return subprocess.CompletedProcess(command, 0)


def test_all_labs_are_linked_in_one_page(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    stale = tmp_path / "runs" / "lab1" / "report.html"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an older run")
    monkeypatch.setattr(labs.subprocess, "run", lambda command, **_: fake_lab(command, broken="lab1"))
    monkeypatch.setattr(labs.sys, "argv", ["labs"])
    assert labs.main() == 1
    assert "see runs/report.html" in capsys.readouterr().out
    runs = {entry["name"]: entry for entry in data_of(tmp_path / "runs" / "report.html")["runs"]}
    assert list(runs) == [f"lab {number}" for number in labs.LABS]
    assert [name for name, entry in runs.items() if entry["link"] is None] == ["lab 1", "lab 2"]
    assert runs["lab 1"]["problem"] == "ended with status 1, without a summary"
    assert all((tmp_path / "runs" / entry["link"]).exists() for entry in runs.values() if entry["link"])
    assert not stale.exists()


def luminance(color: str) -> float:
    """WCAG's relative luminance of #rgb or #rrggbb."""
    digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_lines_stand_out_from_the_paper(scheme):
    """By WCAG 2: 4.5 for a text, 3 for a line."""
    block = re.findall(r":root \{(.*?)\}", write.TEMPLATE.read_text("utf-8"), re.DOTALL)[scheme]
    colors = {name: luminance(color) for name, color in re.findall(r"--(\w+): (#\w+);", block)}
    for name, least in dict.fromkeys(["ink", "faint", "accent", "good", "bad"], 4.5).items() | {
        (f"c{i}", 3.0) for i in range(6)
    }:
        low, high = sorted((colors[name], colors["paper"]))
        assert (high + 0.05) / (low + 0.05) >= least, name


# In a browser

PROBE = """<script>
addEventListener("load", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  setTimeout(probe, 100);  // the tables of values are made when they are opened
});
function probe() {
  const found = {
    width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(document.body).backgroundColor,
    sections: [...document.querySelectorAll("main > section")].map((section) => section.id),
    links: [...document.querySelectorAll("nav a")].map((link) => link.hash.slice(1)),
    pictures: [...document.images].filter((image) => image.naturalWidth > 0 && image.alt && image.width > 100).length,
    charts: [...document.querySelectorAll(".chart path")].filter((path) => path.getTotalLength() > 100).length,
    values: document.querySelector("figure details tbody")?.innerText,
    bold: document.querySelectorAll("td b, th b, h3 b").length,
    page: document.querySelector("#page > details")?.innerText,
    unreachable: [...document.querySelectorAll(".scroll")]
      .filter((region) => region.scrollWidth > region.clientWidth && region.tabIndex !== 0).length,
    unnamed: [...document.querySelectorAll("input, select, svg[role=img], [role=region]")]
      .filter((node) => !node.getAttribute("aria-label") && !node.labels?.length).length,
  };
  const slider = document.querySelector("input[type=range]");
  if (slider) {
    slider.value = 0;
    slider.dispatchEvent(new Event("input"));
    const figure = slider.closest("figure"), plot = figure.querySelector(".chart svg");
    found.first = figure.querySelector("output").textContent;
    plot.dispatchEvent(new PointerEvent("pointermove", { clientX: plot.getBoundingClientRect().right }));
    found.pointed = [slider.value, figure.querySelector("output").textContent];
  }
  const select = document.querySelectorAll("select")[1];
  if (select) {
    select.selectedIndex = 0;
    select.dispatchEvent(new Event("change"));
    found.chosen = document.querySelector(".chosen th").textContent;
  }
  parent.postMessage(found, "*");
}
</script></body>"""
FRAMES = """<!DOCTYPE html><body><script>
const found = {};
addEventListener("message", ({ data, source }) => {
  for (const frame of document.querySelectorAll("iframe"))
    if (frame.contentWindow === source) found[frame.id] = data;
  document.body.dataset.found = JSON.stringify(found);
});
for (const scheme of ["light", "dark"]) for (const width of [360, 1400]) {
  const frame = Object.assign(document.createElement("iframe"), { id: `${scheme} ${width}`, width, height: 900 });
  frame.style.colorScheme = scheme;
  frame.src = "probed.html";
  document.body.append(frame);
}
</script></body>"""


def browser() -> str | None:
    """Return a Chromium on PATH, in $CHROMIUM, or one that Playwright has downloaded."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    downloads = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    own = (str(path) for path in sorted(downloads.glob("chromium-*/chrome-linux*/chrome")))
    return next(
        (found for name in (os.environ.get("CHROMIUM", ""), *names, *own) if (found := shutil.which(name))), None
    )


def dumped(path: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the page after its scripts have run, and what the console was told."""
    flags = ["--headless=new", "--dump-dom", "--enable-logging=stderr", "--virtual-time-budget=5000", "--disable-gpu"]
    flags += [f"--user-data-dir={profile}", "--allow-file-access-from-files", "--window-size=1600,1000"]
    flags += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    done = subprocess.run([browser() or "", *flags, path.as_uri()], capture_output=True, text=True, timeout=600)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="there is no Chromium here")
@pytest.mark.parametrize("which", ["run", "index"])
def test_the_page_works_in_a_browser(run, tmp_path, which):
    """Light and dark, 360 and 1400 pixels wide: no console message, all there, nothing cut off, all named."""
    text = (run / "report.html").read_text("utf-8")
    if which == "index":
        checks = [{"name": HOSTILE, "value": 1.0, "target": "", "ok": True}]
        entries = [{"name": "lab 0", "link": "lab0/report.html", "checks": checks, "seconds": 1.0}]
        entries += [{"name": "lab 1", "link": None, "checks": [], "problem": "ended with status 1"}]
        text = (write.write_index(entries, tmp_path / "report.html") or Path()).read_text("utf-8")
    (tmp_path / "probed.html").write_text(text.replace("</body>", PROBE))
    (tmp_path / "frames.html").write_text(FRAMES)
    dom, said = dumped(tmp_path / "frames.html", tmp_path / "profile")
    assert said == []
    [found] = [value for _, name, value in Page(dom).attributes if name == "data-found"]
    frames = json.loads(found)
    expected = [
        "claims",
        "predictions",
        "page",
        "curves",
        "attention",
        "shapes",
        "parameters",
        "pictures",
        "tables",
        "run",
    ]
    expected = expected if which == "run" else ["runs"]
    assert len(frames) == 4
    for name, seen in frames.items():
        scheme, width = name.split()
        assert (seen["width"], seen["dark"]) == (int(width), scheme == "dark")
        assert seen["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
        assert seen["overflow"] <= 0, name
        assert seen["sections"] == seen["links"] == expected
        assert (seen["unreachable"], seen["unnamed"], seen["bold"]) == (0, 0, 0)
        if which == "run":
            assert (seen["pictures"], seen["charts"]) == (3, 3)
            assert seen["first"] == f"step 1: {HOSTILE} 3, frozen 3"
            assert seen["pointed"] == ["3", f"step 4: {HOSTILE} 1, frozen 3"]
            assert seen["values"].split("\n")[2].split("\t") == ["3", "not finite", "3"]
            assert seen["chosen"] == "1"
            assert HOSTILE in seen["page"]
            assert [word for word in ("**", "```", "|--", "<details>", "# ") if word in seen["page"]] == []
