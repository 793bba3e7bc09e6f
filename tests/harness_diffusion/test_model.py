"""The model `diffusion`: its samples, the conformance kit, and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from harness_diffusion import register_models
from harness_diffusion.model import DiffusionModel, build
from harness_diffusion.options import DiffusionOptions

from harness.checkpoints import read_header
from harness.cli.fit import command
from harness.datasets import DatasetSlice
from harness.errors import HarnessError, ModelError
from harness.info import ModelInfo
from harness.models import ModelContext, prepare
from harness.randomness import draws_for
from harness.testing import model_checks, parametrize_with_checks

QUICK: dict[str, Any] = {
    "network": {"kind": "mlp", "width": 16, "blocks": 1},
    "sampling": {"sampler": "ddim", "steps": 3},
}

REGISTERED: list[ModelInfo] = []
register_models(REGISTERED.append)


def make(data: DatasetSlice, **options: Any) -> DiffusionModel:
    context = ModelContext("d", data.facts, "cpu", Path.cwd())
    return prepare(build(DiffusionOptions.model_validate(options), context), "cpu")  # type: ignore[no-any-return]


@parametrize_with_checks(model_checks(REGISTERED[0], QUICK, quick_recipe={"epochs": 2, "batch_size": 64}))
def test_conformance(check: Any) -> None:
    check()


def test_trained_from_the_command_line(tmp_path: Path) -> None:
    """The checkpoint says what it holds, training again finds it done, and another recipe is one line."""
    out = tmp_path / "d.safetensors"
    sets = ("network.width=16", "network.blocks=1", "network.kind=mlp", "process.kind=sub-vp", "epochs=2")

    def fit(*more: str) -> Result:
        options = (part for text in (*sets, *more) for part in ("--set", text))
        arguments = (
            "diffusion",
            "-p",
            "harness_diffusion",
            "--dataset",
            "digits",
            "--device",
            "cpu",
            "--out",
            str(out),
            *options,
        )
        return CliRunner().invoke(command, arguments)

    first = fit()
    assert first.exit_code == 0, first.output
    header = read_header(out)
    assert header["notes"]["denoiser"]["process"] == {"kind": "sub-vp", "beta_min": 0.1, "beta_max": 20.0}
    assert header["notes"]["denoiser"]["levels"] == 17
    assert set(header["results"]) == {"loss"}
    assert fit().output.startswith(f"already trained: {out} (loss ")
    other = fit("objective=mixture")
    assert isinstance(other.exception, HarnessError)
    assert "made otherwise (recipe differ)" in str(other.exception)


def test_samples_are_images_on_the_grey_levels(bars: DatasetSlice) -> None:
    model = make(bars, **QUICK)
    y = torch.tensor([0, 1, 2, 0])
    x = model.sample(y, draws=draws_for(torch.arange(4), 0, "s"))
    assert x.shape == (4, 1, 4, 4)
    assert x.dtype == torch.float32
    assert set((x * 16).unique().tolist()) <= set(range(17))
    with pytest.raises(ModelError, match="knows classes 0 to 2, not 3"):
        model.sample(y + 1, draws=draws_for(torch.arange(4), 0, "s"))
