"""`harness fit`: what the command line accepts, refuses, writes and goes on from."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.checkpoints import load, read_header
from harness.cli.fit import _started_from, command
from harness.errors import ExitCode, HarnessError

PLUGIN = '''
"""A model that counts epochs, and a data set of nothing much."""
from harness import DatasetInfo, ModelInfo, Options, hookimpl, option


class CountOptions(Options):
    scale: float = option(1.0, help="a scale")


class Inner(Options):
    eps: float = option(help="a radius")


class CountRecipe(Options):
    epochs: int = option(3, help="epochs")
    inner: Inner | None = option(None, help="a nested table")


class Count:
    num_classes = 2

    def logits(self, x):
        return x.flatten(1)[:, :2]

    def fit(self, data, recipe, session):
        import torch

        found = session.load_state()
        count = int(found[0]["count"]) if found else 0
        for epoch in range(count, recipe.epochs):
            if (session.out.parent / "interrupt").exists() and epoch == 1:
                raise KeyboardInterrupt
            count += 1
            session.save_state({"count": torch.tensor(count)}, {"started_at": 0 if found is None else 1})
            session.progress(count, recipe.epochs, {"loss": 1 / count})
        session.finish({"count": torch.tensor(count)}, loss=0.25, resumed=found is not None)


class Points:
    class_names = ("a", "b")
    shape = (1, 2, 2)
    levels = 256

    def __init__(self, options):
        self.n = options.n if options.split == "train" else 3

    def labels(self):
        import numpy as np

        return np.arange(self.n) % 2

    def images(self, index):
        import torch

        return torch.zeros(len(index), 1, 2, 2)

    def digest(self):
        return f"points {self.n}"


class PointsOptions(Options):
    split: str = option("test", help="split")
    n: int = option(4, help="number of points")
    names: tuple[str, ...] = option((), help="names")


@hookimpl
def register_models(register):
    register(ModelInfo(name="count", summary="counts", factory=lambda o, c: Count(),
                       capabilities=frozenset({"Classifier", "Trainable"}), options=CountOptions,
                       fit_options=CountRecipe))
    register(ModelInfo(name="fixed", summary="cannot learn", factory=lambda o, c: None,
                       capabilities=frozenset({"Classifier"})))


@hookimpl
def register_datasets(register):
    register(DatasetInfo(name="points", summary="points", factory=lambda o, c: Points(o), options=PointsOptions))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "counting.py").write_text(PLUGIN)
    return tmp_path


DATASET_OUT = ["--dataset", "digits", "--out"]


def fit(folder: Path, *arguments: str, model: str = "count", dataset: str = "points", out: str = "w") -> Result:
    base = [model, "--dataset", dataset, "--out", str(folder / f"{out}.safetensors"), "-p", str(folder / "counting.py")]
    return CliRunner().invoke(command, [*base, "--device", "cpu", *arguments])


def fitted(folder: Path, *arguments: str, **options: str) -> dict[str, Any]:
    result = fit(folder, *arguments, **options)
    assert result.exit_code == 0, result.exception or result.output
    return read_header(folder / f"{options.get('out', 'w')}.safetensors")


def refused(folder: Path, *arguments: str, **options: str) -> str:
    """The message of a run that must fail with one line and leave no checkpoint."""
    result = fit(folder, *arguments, **options)
    assert isinstance(result.exception, HarnessError), result.exception or result.output
    text = str(result.exception)
    assert "\n" not in text
    return text


def test_the_header_says_how_the_checkpoint_was_made(folder: Path) -> None:
    header = fitted(folder, "--set", "epochs=2", "--set", "scale=2", "--set", "inner.eps=0.5", "--seed", "7")
    assert header == {
        "plugin": "count",
        "options": {"scale": 2.0},
        "recipe": {"epochs": 2, "inner": {"eps": 0.5}},
        "seed": 7,
        "dataset": {"name": "points", "split": "train"},
        "data_digest": header["data_digest"],
        "samples": 4,
        "shape": [1, 2, 2],
        "classes": ["a", "b"],
        "results": {"loss": 0.25, "resumed": False},
    }
    assert len(header["data_digest"]) == 64


def test_progress_lines_and_the_last_line(folder: Path) -> None:
    result = fit(folder)
    assert "3/3 loss 0.3333" in result.stderr
    last = result.stdout.strip().splitlines()[-1]
    assert last == f"wrote {folder / 'w.safetensors'} (loss 0.25, resumed False)"


@pytest.mark.parametrize(
    ("text", "samples", "table"),
    [
        ("points", 4, {"name": "points", "split": "train"}),
        ("points:test", 3, {"name": "points", "split": "test"}),
        ("points:train,n=10", 10, {"name": "points", "split": "train", "n": 10}),
        ("points,n=6,limit=5", 5, {"name": "points", "split": "train", "n": 6, "limit": 5}),
        ('points,names=["x", "y"],n=2', 2, {"name": "points", "split": "train", "n": 2, "names": ["x", "y"]}),
        ('{ name = "points", n = 8 }', 8, {"name": "points", "split": "train", "n": 8}),
    ],
)
def test_forms_of_dataset(folder: Path, text: str, samples: int, table: dict[str, Any]) -> None:
    header = fitted(folder, dataset=text)
    assert header["samples"] == samples
    assert header["dataset"] == table


def test_mistakes_are_one_line_each(folder: Path) -> None:
    assert "did you mean 'epochs'" in refused(folder, "--set", "epoch=2")
    assert "expected key=value" in refused(folder, "--set", "epochs")
    assert "epochs: Input should be a valid integer" in refused(folder, "--set", "epochs=many")
    assert "inner.epz: unknown key; did you mean 'eps'" in refused(folder, "--set", "inner={eps = 1, epz = 1}")
    assert "did you mean 'count'" in refused(folder, model="cont")
    assert "model 'fixed' cannot be trained (these can: count" in refused(folder, model="fixed")
    assert "did you mean 'points'" in refused(folder, dataset="point")
    assert "unknown key; did you mean 'n'" in refused(folder, dataset="points,nn=4")
    assert "is not key=value" in refused(folder, dataset="points,train")
    assert "say how a trained model is read" in refused(folder, dataset="points,restrict=true")
    assert "expected auto, cpu" in refused(folder, "--device", "gpu0")
    assert "must end in .safetensors" in str(CliRunner().invoke(command, ["count", *DATASET_OUT, "w.pt"]).exception)
    assert not list(folder.glob("*.safetensors*"))


def test_a_place_that_cannot_be_written(folder: Path) -> None:
    (folder / "file").touch()
    assert "cannot write" in refused(folder, out="file/w")


def test_several_mistakes_are_told_together(folder: Path) -> None:
    result = fit(folder, "--set", "epochs=many", "--set", "scale=big", dataset="points,n=few")
    assert len(str(result.exception).splitlines()) == 3


def test_ctrl_c_then_the_same_command_goes_on(folder: Path) -> None:
    (folder / "interrupt").touch()
    result = fit(folder)
    assert isinstance(result.exception, HarnessError)
    assert result.exception.exit_code == ExitCode.INTERRUPTED
    assert "the same command goes on from there" in str(result.exception)
    assert not (folder / "w.safetensors").exists()
    (folder / "interrupt").unlink()
    assert fitted(folder)["results"]["resumed"] is True
    assert int(load(folder / "w.safetensors")[0]["count"]) == 3
    assert not list(folder.glob("*.resume"))


def test_fresh_forgets_an_unfinished_training(folder: Path) -> None:
    (folder / "interrupt").touch()
    fit(folder)
    (folder / "interrupt").unlink()
    assert fitted(folder, "--fresh")["results"]["resumed"] is False


def test_a_finished_training_is_not_repeated_and_another_not_overwritten(folder: Path) -> None:
    fitted(folder)
    again = fit(folder)
    assert again.stdout.startswith("already trained:")
    assert "recipe differ" in refused(folder, "--set", "epochs=5")
    assert "seed differ" in refused(folder, "--seed", "1")
    assert fitted(folder, "--fresh", "--set", "epochs=5")["recipe"]["epochs"] == 5


def test_what_training_starts_from_is_told_apart_by_its_bytes(tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"one")
    before = _started_from(SimpleNamespace(files=(start,)))
    start.write_bytes(b"two")
    assert before["started_from"].keys() == {"start.safetensors"}
    assert _started_from(SimpleNamespace(files=(start,))) != before
    assert _started_from(SimpleNamespace(files=())) == _started_from(object()) == {}


def test_an_unfinished_training_of_another_recipe_is_not_thrown_away(folder: Path) -> None:
    (folder / "interrupt").touch()
    fit(folder)
    assert "unfinished training made otherwise (recipe differ)" in refused(folder, "--set", "epochs=9")


def test_help_answers_without_torch() -> None:
    code = "import sys; from harness.cli.fit import command; assert not {'torch', 'pydantic'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


TORCH = ["--dataset", "digits:train,limit=200", "--set", "factory=harness_torch.networks:digits_cnn"]
RUN = "import sys, torch; torch.set_num_threads(1); from harness.cli.fit import command; command(sys.argv[1:])"


@pytest.mark.slow
def test_torch_on_digits_killed_and_continued_equals_the_uninterrupted_training(tmp_path: Path) -> None:
    arguments = ["torch", *TORCH, "--device", "cpu", "--set", "epochs=12", "--set", "lr=5e-3"]
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    subprocess.run([sys.executable, "-c", RUN, *arguments, "--out", str(whole)], check=True, capture_output=True)
    state = tmp_path / "cut.safetensors.resume"
    process = subprocess.Popen([sys.executable, "-c", RUN, *arguments, "--out", str(cut)], stderr=subprocess.PIPE)
    while not state.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not cut.exists()
    subprocess.run([sys.executable, "-c", RUN, *arguments, "--out", str(cut)], check=True, capture_output=True)
    assert cut.read_bytes() == whole.read_bytes()
    assert read_header(cut)["results"]["train_accuracy"] > 0.5
