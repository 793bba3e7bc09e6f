"""The checkpoints inside the package: what they promise, and that the README's commands make them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import harness_ib_inn
import pytest
import torch
from harness_ib_inn.baseline import digits_resnet
from harness_ib_inn.options import FitRecipe

from harness import checkpoints
from harness.checkpoints import read_header
from harness.host import load_host
from harness.models import bits_per_dim
from harness.training import FitSession

FOLDER = Path(str(harness_ib_inn.__file__)).parent / "checkpoints"
BETAS = ("0", "1", "8", "inf")
NAMES = (*(f"digits-beta{beta}" for beta in BETAS), "digits-resnet")


def judged(model: Any, data: Any) -> tuple[float, float]:
    """Test accuracy, and bits per dimension."""
    x, y = data.load(data.ids)
    accuracy = (model.logits(x).argmax(dim=1) == y).double().mean().item()
    return accuracy, bits_per_dim(model.log_prob(x), (1, 8, 8), 17).mean().item()


def test_accuracy_and_bits_per_dim_trade_off_as_in_the_paper(given: Any) -> None:
    found = {b: judged(given.model(checkpoint=f"builtin:digits-beta{b}"), given.digits("test")) for b in BETAS}
    assert found["1"][0] >= 0.97
    assert found["8"][0] >= 0.98
    assert found["inf"][0] >= 0.97
    assert found["0"][0] < 0.4  # labels are unused
    bits = [found[beta][1] for beta in BETAS]
    assert bits == sorted(bits)
    assert 2.6 < bits[1] < 3.1
    assert bits[3] > bits[2] + 0.5


def baseline() -> torch.nn.Module:
    module = digits_resnet().eval()
    module.load_state_dict(checkpoints.load(FOLDER / "digits-resnet.safetensors")[0])
    return module.requires_grad_(False)


def test_the_baseline_is_as_accurate_and_as_large(given: Any) -> None:
    x, y = given.digits("test").load(given.digits("test").ids)
    assert (baseline()(x).argmax(dim=1) == y).double().mean() >= 0.98
    sizes = [sum(p.numel() for p in m.parameters()) for m in (digits_resnet(), given.model(layout="digits"))]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_below_one_megabyte(name: str) -> None:
    assert (FOLDER / f"{name}.safetensors").stat().st_size < 1_000_000


def commands() -> dict[str, list[str]]:
    """The `harness fit` commands of the folder's README, by the name of what they write."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = [shlex.split(line) for line in re.findall(r"^harness fit .*$", text, flags=re.MULTILINE)]
    return {Path(words[words.index("--out") + 1]).stem: words[2:] for words in found}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_gives_the_command_that_made_it(given: Any, name: str) -> None:
    from harness.cli.fit import command, plan_job

    parsed = command.make_context("fit", commands()[name]).params
    job = plan_job(load_host(["harness_ib_inn"]), parsed["model"], parsed["dataset"], parsed["assignments"])
    header = read_header(FOLDER / f"{name}.safetensors")
    assert job.options is not None
    assert job.recipe is not None
    assert header["options"] == job.options.model_dump(mode="json", exclude_unset=True)
    assert type(job.recipe).model_validate(header["recipe"]) == job.recipe  # options made later have their defaults
    assert header["seed"] == parsed["seed"]
    assert header["dataset"] == job.dataset.table
    assert header["data_digest"] == given.digits("train").digest()


@pytest.mark.parametrize("beta", BETAS)
def test_training_scores_are_those_of_the_training_images(given: Any, beta: str) -> None:
    model, data = given.model(checkpoint=f"builtin:digits-beta{beta}"), given.digits("train")
    scores = model.log_prob(data.load(data.ids)[0]).sort().values
    assert len(model.training_scores.ordered) == len(scores) == 1438
    torch.testing.assert_close(model.training_scores.ordered, scores, rtol=1e-5, atol=0.05)


@pytest.mark.slow
def test_a_third_of_the_training_learns_already(given: Any, tmp_path: Path) -> None:
    header = read_header(FOLDER / "digits-beta8.safetensors")
    recipe = FitRecipe.model_validate({**header["recipe"], "epochs": header["recipe"]["epochs"] // 3})
    model = given.model(layout="digits")
    model.fit(given.digits("train"), recipe, FitSession(tmp_path / "w.safetensors", {}, 0, lambda *_: None))
    accuracy, bits = judged(model, given.digits("test"))
    assert accuracy >= 0.95
    assert bits < 4.5
