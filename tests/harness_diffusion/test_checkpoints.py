"""The checkpoints inside the package: what they promise, and that their recipes make them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness_diffusion
import pytest
import torch
from harness_diffusion.building import find_source
from harness_diffusion.denoiser import Denoiser
from harness_diffusion.model import build
from harness_diffusion.options import DenoiserOptions, DenoisingRecipe, DiffusionOptions
from harness_diffusion.scaling import dequantise, to_scaled
from harness_diffusion.training import denoising_error, fit
from torch import Tensor

from harness.checkpoints import read_header
from harness.cli.fit import command, plan_job
from harness.datasets import DatasetSlice
from harness.host import load_host
from harness.models import ModelContext
from harness.randomness import draws_for
from harness.training import FitSession

FOLDER = Path(str(harness_diffusion.__file__)).parent / "checkpoints"
NAMES = ("digits-mlp", "digits-unet")
Digits = Callable[[str], DatasetSlice]
each = pytest.mark.parametrize("name", NAMES)


def load(checkpoint: str, data: DatasetSlice) -> Denoiser:
    context = ModelContext("digits", data.facts, "cpu", Path.cwd())
    return find_source(DenoiserOptions(checkpoint=checkpoint), context).make().requires_grad_(False)


def accuracy(denoiser: Denoiser, data: DatasetSlice, images: int, draws: int = 10) -> float:
    """Share of images whose class has the smallest denoising error, the same times and noise for every class."""
    x, y = data.load(data.ids[:images])
    generator = torch.Generator().manual_seed(0)
    v = to_scaled(dequantise(x, data.facts.levels, torch.full_like(x, 0.5))).repeat_interleave(10, dim=0)
    classes = torch.arange(10).repeat(images)
    total = torch.zeros(images, 10)
    for draw in range(draws):
        t = torch.full((len(v),), 0.1 + 0.6 * (draw + 0.5) / draws)
        noise = torch.randn(x.shape, generator=generator).repeat_interleave(10, dim=0)
        total += denoising_error(denoiser, v, t, noise, classes).reshape(images, 10)
    return float((total.argmin(dim=1) == y).double().mean())


@each
def test_the_right_class_denoises_best(name: str, digits: Digits) -> None:
    data = digits("test")
    assert accuracy(load(f"builtin:{name}", data), data, 50) >= 0.96


@each
def test_samples_are_of_the_class_asked_for(name: str, digits: Digits) -> None:
    from sklearn.svm import SVC

    train = digits("train")
    x, y = train.load(train.ids)
    judge = SVC(C=10).fit(x.flatten(1).numpy(), y.numpy())
    options = DiffusionOptions.model_validate(
        {"checkpoint": f"builtin:{name}", "sampling": {"sampler": "ddpm", "steps": 20}}
    )
    model = build(options, ModelContext("d", train.facts, "cpu", Path.cwd())).requires_grad_(False)
    wanted = torch.arange(10).repeat(6)
    drawn: Tensor = model.sample(wanted, draws=draws_for(torch.arange(60), 0, "s"))
    assert (judge.predict(drawn.flatten(1).numpy()) == wanted.numpy()).mean() >= 0.95
    assert float((drawn.mean(dim=0) - x.mean(dim=0)).abs().max()) < 0.15
    assert float(drawn.flatten(1).std(dim=0).mean()) == pytest.approx(float(x.flatten(1).std(dim=0).mean()), rel=0.2)


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) < 4_000_000


@each
def test_the_readme_gives_the_command_that_made_it(name: str, digits: Digits) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = [shlex.split(line) for line in re.findall(r"^harness fit .*$", text, flags=re.MULTILINE)]
    words = next(words for words in found if f"{name}.safetensors" in words)
    parsed = command.make_context("fit", words[2:]).params
    host = load_host(("harness_diffusion",))
    job = plan_job(host, parsed["model"], parsed["dataset"], parsed["assignments"])
    header = read_header(FOLDER / f"{name}.safetensors")
    assert job.options is not None
    assert job.recipe is not None
    assert header["options"] == job.options.model_dump(mode="json", exclude_unset=True)
    assert header["recipe"] == job.recipe.model_dump(mode="json")
    assert header["seed"] == parsed["seed"]
    assert header["dataset"] == job.dataset.table
    assert header["data_digest"] == digits("train").digest()


@pytest.mark.slow
@each
def test_a_third_of_the_training_tells_classes_apart_already(name: str, digits: Digits, tmp_path: Path) -> None:
    header: dict[str, Any] = read_header(FOLDER / f"{name}.safetensors")
    recipe = DenoisingRecipe.model_validate({**header["recipe"], "epochs": header["recipe"]["epochs"] // 3})
    data = digits("train")
    options = DenoiserOptions.model_validate(header["options"])
    source = find_source(options, ModelContext("digits", data.facts, "cpu", tmp_path))
    session = FitSession(tmp_path / "w.safetensors", {}, header["seed"], lambda *_: None)
    denoiser = fit(source, data, recipe, session).requires_grad_(False)
    assert accuracy(denoiser, digits("test"), 359) >= 0.95
