"""`harness explain`: pictures of a run's samples or of a model plugin's, and every mistake in one line."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.cli import _status
from harness.explanations import read_pictures

PLUGIN = """
from harness import ModelInfo, Options, hookimpl, option
from harness.explanations import Picture
import io, numpy as np, torch
from PIL import Image


class GlassOptions(Options):
    random: bool = option(False, help="whether it draws")
    bad: str = option("", help="how it misbehaves")


class Glass(torch.nn.Module):
    num_classes = 3
    stochastic = False
    heatmap_unit = "units of glass"

    def __init__(self, options):
        super().__init__()
        self.bad = options.bad

    def logits(self, x):
        return 10 * x.sum(dim=(1, 3))

    def heatmap(self, x, y):
        rows = torch.nn.functional.one_hot(y, 3).to(x)
        return (x[:, 0] * rows[:, :, None]) if not self.bad else x

    def explain_sample(self, sample):
        text = f"{sample.sample_id} {sample.label} {[a.threat for a in sample.attacked]} {sample.class_names[0]}"
        yield Picture("story", "A story", text, png(), {"iterates": [len(a.iterates) for a in sample.attacked]})

    def explain_model(self, data):
        yield Picture("itself", "Itself", f"{len(data)} images", png())


class RandomGlass(Glass):
    stochastic = True

    def logits(self, x, *, draws):
        return super().logits(x) + draws.normal("logits", 0, (3,)) * 0

    def heatmap(self, x, y, *, draws):
        return super().heatmap(x, y) + draws.uniform("heat", 0, (3, 3)) * 0

    def explain_sample(self, sample, *, draws):
        yield from super().explain_sample(sample)

    def explain_model(self, data, *, draws):
        yield from super().explain_model(data)


def png():
    out = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(out, format="PNG")
    return out.getvalue()


def build(options, context):
    return (RandomGlass if options.random else Glass)(options)


@hookimpl
def register_models(register):
    capabilities = frozenset({"Classifier", "Explainer"})
    register(ModelInfo(name="glass", summary="glass", factory=build, capabilities=capabilities, options=GlassOptions))
"""


@pytest.fixture
def glass(workplace: Any) -> Any:
    """The tiny suite with a model that explains itself beside one that does not."""
    workplace.write(PLUGIN, "glass_plugin.py")
    workplace.plugins = (*workplace.plugins, str(workplace.folder / "glass_plugin.py"))
    workplace.edit("[models.rows]", '[models.glass]\nplugin = "glass"\n\n[models.rows]')
    return workplace


@pytest.fixture
def explain(glass: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls the command in the suite's folder: its status, output and errors."""
    monkeypatch.chdir(glass.folder)

    def call(*arguments: str) -> tuple[int, str, str]:
        status = _status(["explain", *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def plugins(glass: Any) -> list[str]:
    return [part for plugin in glass.plugins for part in ("-p", plugin)]


def test_a_run_is_explained_into_its_folder_and_its_report(glass: Any, explain: Any) -> None:
    run = glass.run()
    status, out, err = explain("out", "--sample", "4", "--sample", "7", "--model", "glass")
    assert (status, err) == (0, "")
    found = read_pictures(run.folder / "explanations")
    titles = [(e.sample_id, e.title) for e in found if e.sample_id in (4, None)]
    assert titles == [
        (4, "Heat map"),
        (4, "Heat map before and after toy-attack[eps=0.05]"),
        (4, "Heat map before and after toy-attack[eps=0.2]"),
        (4, "A story"),
        (None, "Itself"),
    ]
    assert {e.sample_id for e in found} == {4, 7, None}
    story = next(e for e in found if e.title == "A story")
    assert story.caption == "4 1 ['toy-attack[eps=0.05]', 'toy-attack[eps=0.2]'] a"
    assert story.numbers == {"iterates": [2, 2]}
    assert all(Image.open(io.BytesIO(e.path.read_bytes())).format == "PNG" for e in found)
    assert out.count("wrote out/explanations/") == len(found)
    assert "harness report out puts them into its report.html" in out
    assert _status(["report", "out"]) == 0
    page = (run.folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= len(found)
    assert "A story" in page


def test_the_heat_map_says_what_the_model_says(glass: Any, explain: Any) -> None:
    run = glass.run()
    explain("out", "--sample", "4", "--model", "glass", "--only", "glass/*0.2*")
    heat = {e.title: e for e in read_pictures(run.folder / "explanations")}
    assert "Heat map before and after toy-attack[eps=0.05]" not in heat
    clean = heat["Heat map"]
    assert "on one scale in units of glass" in clean.caption
    before = run.rows("glass/clean/toy", ["sample_id", "clean_prediction"], np.array([4]))
    assert clean.numbers["predictions"] == before["clean_prediction"].tolist()
    rows = _images(run, "glass/toy-attack[eps=0.2]/toy", 4)
    after = heat["Heat map before and after toy-attack[eps=0.2]"].numbers
    label, other = after["classes"]
    assert after["sums"][1] == pytest.approx([rows[label].sum(), rows[other].sum()], rel=1e-5)
    assert after["predictions"][1] == int(np.argmax(rows.sum(axis=1)))


def _images(run: Any, cell: str, sample: int) -> Any:
    return run.rows(cell, ["adversarial"], np.array([sample]))["adversarial"][0].reshape(3, 3)


def test_explaining_twice_writes_the_same(glass: Any, explain: Any) -> None:
    run = glass.run()
    explain("out", "--sample", "4", "--model", "glass")
    before = {p.name: p.read_bytes() for p in (run.folder / "explanations").iterdir()}
    explain("out", "--sample", "4", "--model", "glass")
    assert {p.name: p.read_bytes() for p in (run.folder / "explanations").iterdir()} == before


def test_a_model_plugin_is_explained_without_a_run(glass: Any, explain: Any) -> None:
    status, out, _ = explain("glass", "--sample", "2", "--dataset", "toy,samples=9", *plugins(glass))
    assert status == 0
    found = read_pictures(glass.folder / "explanations" / "glass")
    assert [(e.sample_id, e.title) for e in found] == [(2, "Heat map"), (2, "A story"), (None, "Itself")]
    assert found[-1].caption == "9 images"
    assert "harness report" not in out
    explain("glass", "--sample", "2", "--dataset", "toy", "--out", "elsewhere", *plugins(glass))
    assert len(read_pictures(glass.folder / "elsewhere")) == 3


def test_of_data_with_other_classes_than_the_models_there_are_heat_maps_alone(glass: Any, explain: Any) -> None:
    """Classes b and c are 0 and 1 of the data, and 1 and 2 of the model."""
    restricted = '{name = "toy", classes = ["b", "c"], restrict = true}'
    status, _, err = explain("glass", "--sample", "4", "--dataset", restricted, "--out", "some", *plugins(glass))
    assert (status, err) == (0, "")
    (some,) = read_pictures(glass.folder / "some")
    explain("glass", "--sample", "4", "--dataset", "toy", "--out", "all", *plugins(glass))
    every = read_pictures(glass.folder / "all")[0]
    assert some.numbers["classes"] == [0, 1]
    assert every.numbers["classes"][0] == 1
    assert some.numbers["sums"][0][0] == every.numbers["sums"][0][0]


def test_a_model_with_randomness_is_given_its_draws(glass: Any, explain: Any) -> None:
    status, _, err = explain("glass", "--sample", "2", "--dataset", "toy", "--set", "random=true", *plugins(glass))
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out", "--sample", "4"), r"run out has several models: choose one with --model \(glass, rows\)"),
        (("out", "--sample", "4", "--model", "glas"), r"--model glas: run out has no such model; did you mean 'glass'"),
        (("out", "--sample", "4", "--model", "rows"), r"model 'rows' cannot explain: it has no heatmap\(\)"),
        (("out", "--sample", "99", "--model", "glass"), r"--sample 99: not a sample of toy, which has 30 .* 0 to 29"),
        (("out", "--sample", "4", "--model", "glass", "--only", "x*"), r"--only x\*: no attack of model 'glass' match"),
        (("out", "--sample", "4", "--dataset", "toy"), r"--dataset is for a model plugin; this is a run"),
        (("out", "--sample", "4", "--set", "a=1"), r"--set is for a model plugin; this is a run"),
        (("glass", "--sample", "4", "--model", "x"), r"--model is for a run; this is a model plugin"),
        (("glass", "--sample", "4"), r"--dataset is missing: name the data that sample 4 comes from"),
        (("glas", "--sample", "4"), r"glas: no such run folder, and 'glas' is not a model plugin; did you mean"),
        (("glass", "--sample", "40", "--dataset", "toy"), r"--sample 40: not a sample of toy"),
        (("glass", "--sample", "4", "--dataset", "toy", "--set", "badd=1"), r"unknown key; did you mean 'bad'\?"),
        (("glass", "--sample", "4", "--dataset", "toi"), r"did you mean 'toy'\?"),
        (("glass", "--sample", "4", "--dataset", "toy", "--set", "bad=x"), r"heatmap\(\) returned \(1, 1, 3, 3\) for"),
        (("torch", "--sample", "4", "--dataset", "toy", "--set", "factory=tiny_nets:Rows"), r"'torch' cannot explain"),
        (("glass",), r"Missing option '--sample'"),
        (("empty", "--sample", "1"), r"the run did not finish"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    glass: Any, explain: Any, arguments: tuple[str, ...], message: str, one_line: Callable[[str], str]
) -> None:
    (glass.folder / "empty").mkdir()
    if arguments[0] == "out":
        glass.run()
    extra = plugins(glass) if arguments[0] not in ("out", "empty") else []
    status, _, err = explain(*arguments, *extra)
    assert status in (3, 4, 5)
    text = err.strip()
    assert re.search(message, text), text
    assert "Traceback" not in text
    if "toi" not in arguments:  # a suite's problems are a list
        one_line(text)


def test_a_missing_checkpoint_is_one_line(glass: Any, explain: Any, one_line: Callable[[str], str]) -> None:
    status, _, err = explain(
        "torch", "--sample", "1", "--dataset", "toy", "--set", "factory=tiny_nets:Rows",
        "--set", "checkpoint=gone.safetensors", *plugins(glass),
    )  # fmt: skip
    assert status == 4
    assert "gone.safetensors" in one_line(err)


def test_explanations_of_another_state_of_the_run_are_not_shown(glass: Any, explain: Any) -> None:
    run = glass.run()
    explain("out", "--sample", "4", "--model", "glass")
    glass.edit('plugin = "glass"\n', 'plugin = "glass"\nrandom = true\n')
    glass.run()
    assert _status(["report", "out"]) == 0
    page = (run.folder / "report.html").read_text()
    assert "A story" not in page
    assert "5 of an earlier state of this run (explain again)" in page
    glass.run(fresh=True)
    assert not (run.folder / "explanations").exists()


def test_a_report_that_lacks_explanations_is_made_again(glass: Any, explain: Any) -> None:
    from harness.report.html import write_report

    run = glass.run()
    write_report(run)
    assert "A story" not in (run.folder / "report.html").read_text()
    explain("out", "--sample", "4", "--model", "glass")
    write_report(run)
    assert "A story" in (run.folder / "report.html").read_text()


def test_an_index_that_is_damaged_is_said_in_the_report(glass: Any, explain: Any, tmp_path: Path) -> None:
    run = glass.run()
    explain("out", "--sample", "4", "--model", "glass")
    index = run.folder / "explanations" / "index.json"
    document = json.loads(index.read_text())
    (run.folder / "explanations" / document["explanations"][0]["file"]).unlink()
    index.write_text(json.dumps(document))
    _status(["report", "out"])
    assert "1 whose file is gone" in (run.folder / "report.html").read_text()
    index.write_text("{")
    _status(["report", "out"])
    assert "delete it and explain again" in (run.folder / "report.html").read_text()
