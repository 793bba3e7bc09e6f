"""The checkpoints inside the package: what they promise, and that their recipes make them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import harness_torch
import pytest
import torch
from harness_torch.adversary import perturb
from harness_torch.model import TorchClassifier, build
from harness_torch.options import Adversarial, FitRecipe, TorchOptions

from harness.checkpoints import read_header
from harness.datasets import DatasetSlice
from harness.host import load_host
from harness.loading import open_dataset
from harness.models import ModelContext, prepare
from harness.suite import dataset_entry
from harness.training import FitSession

FOLDER = Path(str(harness_torch.__file__)).parent / "checkpoints"
NAMES = ("digits-cnn", "digits-cnn-pgd")


def digits(split: str) -> DatasetSlice:
    host = load_host()
    return open_dataset(dataset_entry({"name": "digits", "split": split}, host, "digits"), host, None)


def load(checkpoint: str, data: DatasetSlice) -> TorchClassifier:
    options = TorchOptions(checkpoint=checkpoint)
    model = build(options, ModelContext("digits", data.facts, "cpu", Path.cwd()))
    return prepare(model, "cpu")  # type: ignore[no-any-return]


def accuracies(model: TorchClassifier, data: DatasetSlice) -> tuple[float, float]:
    """Clean accuracy, and robust accuracy at l-inf 0.2 under PGD-40 with two restarts."""
    x, y = data.load(data.ids)
    clean = model.logits(x).argmax(dim=1) == y
    standing = clean.clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        attacked = perturb(model, x, y, Adversarial(eps=0.2, steps=40, step_size=0.02), generator)
        standing &= model.logits(attacked).argmax(dim=1) == y
    return clean.double().mean().item(), standing.double().mean().item()


def test_the_normally_trained_one_is_accurate_and_not_robust() -> None:
    data = digits("test")
    clean, robust = accuracies(load("builtin:digits-cnn", data), data)
    assert clean >= 0.97
    assert robust < 0.05


def test_the_adversarially_trained_one_is_robust() -> None:
    data = digits("test")
    clean, robust = accuracies(load("builtin:digits-cnn-pgd", data), data)
    assert clean >= 0.97
    assert robust > 0.65


def test_they_are_small() -> None:
    sizes = {path.stem: path.stat().st_size for path in FOLDER.glob("*.safetensors")}
    assert sum(sizes[name] for name in NAMES) < 400_000
    assert sizes["mnist-cnn-pgd"] < 300_000


def commands() -> dict[str, list[str]]:
    """The `harness fit` commands of the folder's README, by the name of what they write."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = [shlex.split(line) for line in re.findall(r"^harness fit .*$", text, flags=re.MULTILINE)]
    return {Path(words[words.index("--out") + 1]).stem: words[2:] for words in found}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_gives_the_command_that_made_it(name: str) -> None:
    from harness.cli.fit import command, plan_job

    parsed = command.make_context("fit", commands()[name]).params
    job = plan_job(load_host(), parsed["model"], parsed["dataset"], parsed["assignments"])
    header = read_header(FOLDER / f"{name}.safetensors")
    assert job.options is not None
    assert job.recipe is not None
    assert header["options"] == job.options.model_dump(mode="json", exclude_unset=True)
    assert header["recipe"] == job.recipe.model_dump(mode="json")
    assert header["seed"] == parsed["seed"]
    assert header["dataset"] == job.dataset.table
    assert header["data_digest"] == digits("train").digest()


def retrain(name: str, out: Path, **changes: Any) -> tuple[float, float]:
    """Train by the recipe in a shipped checkpoint's header, with changes; clean and robust accuracy."""
    torch.set_num_threads(1)
    header = read_header(FOLDER / f"{name}.safetensors")
    recipe = FitRecipe.model_validate({**header["recipe"], **changes})
    data = digits("train")
    options = TorchOptions.model_validate(header["options"])
    model = build(options, ModelContext("digits", data.facts, "cpu", Path.cwd()))
    session = FitSession(out, {"options": header["options"]}, header["seed"], lambda done, total, values: None)
    model.fit(data, recipe, session)
    test = digits("test")
    return accuracies(load(str(out), test), test)


@pytest.mark.slow
def test_training_anew_gives_the_shipped_accuracy(tmp_path: Path) -> None:
    clean, robust = retrain("digits-cnn", tmp_path / "w.safetensors")
    assert clean >= 0.97
    assert robust < 0.05


@pytest.mark.slow
def test_a_quarter_of_the_adversarial_training_makes_it_robust_already(tmp_path: Path) -> None:
    clean, robust = retrain("digits-cnn-pgd", tmp_path / "w.safetensors", epochs=50)
    assert clean >= 0.8
    assert robust >= 0.3
