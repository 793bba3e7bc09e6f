"""Training: what is minimised, that it is minimised, and that an interruption changes no bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_diffusion import training
from harness_diffusion.building import Source, find_source
from harness_diffusion.model import build
from harness_diffusion.options import DenoiserOptions, DenoisingRecipe, DiffusionOptions
from harness_diffusion.processes import DDPM, VE, VP, Process, SubVP
from harness_diffusion.training import denoising_error, draw_times, fit, learning_rate, spread
from torch import Tensor

from harness import checkpoints
from harness.datasets import DatasetSlice, SliceSpec
from harness.errors import HarnessError, ModelError
from harness.models import ModelContext
from harness.randomness import draws_for
from harness.training import FitSession

SMALL: dict[str, Any] = {"network": {"kind": "mlp", "width": 32, "blocks": 1}}
RECIPE: dict[str, Any] = {"epochs": 4, "batch_size": 20, "warmup": 5, "ema": 0.9}


class StopError(Exception):
    """The stand-in for an interruption."""


def source_for(data: DatasetSlice, folder: Path, **options: Any) -> Source:
    return find_source(DenoiserOptions.model_validate(options or SMALL), ModelContext("x", data.facts, "cpu", folder))


def run(
    data: DatasetSlice,
    out: Path,
    recipe: dict[str, Any],
    *,
    stop_after: int | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    def progress(done: int, total: int, values: Any) -> None:
        if done == stop_after:
            raise StopError

    session = FitSession(out, {"plugin": "diffusion"}, seed, progress)
    fit(source_for(data, out.parent, **options), data, DenoisingRecipe.model_validate({**RECIPE, **recipe}), session)
    return checkpoints.load(out)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("objective", ["uniform", "likelihood", "importance", "mixture"])
def test_training_lowers_the_loss(objective: str, bars: DatasetSlice, tmp_path: Path) -> None:
    reports: list[float] = []
    recipe = DenoisingRecipe.model_validate({**RECIPE, "objective": objective, "epochs": 25, "lr": 4e-3})
    session = FitSession(tmp_path / "w.safetensors", {}, 0, lambda done, total, values: reports.append(values["loss"]))
    denoiser = fit(source_for(bars, tmp_path), bars, recipe, session)
    assert len(reports) == 25
    assert sum(reports[-5:]) < 0.8 * sum(reports[:5])
    assert not denoiser.training
    assert checkpoints.read_header(session.out)["results"]["loss"] == reports[-1]


def test_what_was_trained_is_what_is_loaded_and_tells_classes_apart(bars: DatasetSlice, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    session = FitSession(out, {}, 0, lambda *_: None)
    recipe = DenoisingRecipe.model_validate({**RECIPE, "epochs": 60, "lr": 3e-3, "ema": 0.99})
    trained = fit(source_for(bars, tmp_path), bars, recipe, session)
    loaded = source_for(bars, tmp_path, checkpoint=str(out)).make()
    x, y = bars.load(bars.ids)
    v, generator = 2 * x - 1, torch.Generator().manual_seed(0)
    noise, t = torch.randn(x.shape, generator=generator), torch.full((len(x),), 0.3)
    with torch.no_grad():
        assert torch.equal(loaded.noise(v, t, y), trained.noise(v, t, y))
        errors = torch.stack([denoising_error(loaded, v, t, noise, torch.full_like(y, k)) for k in range(3)], dim=1)
    assert (errors.argmin(dim=1) == y).double().mean() > 0.9


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ({}, {}),
        ({"objective": "mixture", "flip": True}, {"network": {"kind": "unet", "channels": [4, 8], "dropout": 0.2}}),
        (
            {"precision": "bfloat16", "dequantise": False},
            {**SMALL, "parameterisation": "v", "process": {"kind": "ve"}, "conditional": False},
        ),
    ],
)
def test_an_interrupted_training_ends_with_the_same_bits(
    recipe: dict[str, Any], options: dict[str, Any], bars: DatasetSlice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_SAVE_EVERY", 0.0)
    whole, header = run(bars, tmp_path / "whole.safetensors", recipe, **options)
    for epoch in (1, 4):
        out = tmp_path / f"cut{epoch}.safetensors"
        with pytest.raises(StopError):
            run(bars, out, recipe, stop_after=epoch, **options)
        torch.rand(epoch)  # the state of the global generator must not matter
        again, header_again = run(bars, out, recipe, **options)
        assert same(whole, again)
        assert header == header_again
    assert not list(tmp_path.glob("*.resume"))


def test_the_seed_decides_and_the_global_generator_does_not_matter(bars: DatasetSlice, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, _ = run(bars, tmp_path / "a.safetensors", {})
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, run(bars, tmp_path / "b.safetensors", {})[0])
    assert not same(first, run(bars, tmp_path / "c.safetensors", {}, seed=1)[0])


def test_large_data_are_read_batch_by_batch_with_the_same_result(
    bars: DatasetSlice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(bars, tmp_path / "a.safetensors", {})
    monkeypatch.setattr(training, "_CACHED_BYTES", 0)
    assert same(first, run(bars, tmp_path / "b.safetensors", {})[0])


def test_training_goes_on_from_a_checkpoint_where_one_is_named(bars: DatasetSlice, tmp_path: Path) -> None:
    first, _ = run(bars, tmp_path / "a.safetensors", {})
    still, _ = run(bars, tmp_path / "b.safetensors", {"epochs": 1, "lr": 1e-12}, checkpoint="a.safetensors", seed=9)
    for name in first:
        torch.testing.assert_close(still[name], first[name])


def test_the_checkpoint_says_where_times_began(bars: DatasetSlice, tmp_path: Path) -> None:
    for name, recipe, wanted in (("a", {}, 1e-5), ("b", {"smallest_time": 0.02}, 0.02)):
        run(bars, tmp_path / f"{name}.safetensors", {**recipe, "epochs": 1})
        assert source_for(bars, tmp_path, checkpoint=f"{name}.safetensors").make().smallest_time == wanted


def test_the_average_is_what_is_kept(bars: DatasetSlice, tmp_path: Path) -> None:
    """With decay 0 the last weights are kept; with more, something between them and earlier ones."""
    last, _ = run(bars, tmp_path / "a.safetensors", {"ema": 0.0})
    average, _ = run(bars, tmp_path / "b.safetensors", {"ema": 0.99})
    initial = source_for(bars, tmp_path).make(0).network.state_dict()
    moved = sum(float((last[n] - initial[n]).norm()) for n in last)
    behind = sum(float((average[n] - last[n]).norm()) for n in last)
    assert 0.01 * moved < behind < moved


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), DDPM()], ids=str)
def test_objectives_agree_in_what_they_weigh(process: Process) -> None:
    """Mean of a function of t: weighted by g^2 / sigma^2 over Z, or drawn so, it is the same integral."""
    smallest, count = 0.05, 40_000
    fraction = (torch.arange(count, dtype=torch.float64) + 0.5) / count

    def mean(objective: str) -> float:
        t, weight = draw_times(process, objective, fraction, smallest)
        assert t.min() >= smallest
        assert t.max() <= 1
        return float((weight * torch.cos(3 * t)).mean())

    assert mean("likelihood") == pytest.approx(mean("importance"), abs=1e-4)
    wanted = (math.sin(3) - math.sin(3 * smallest)) / 3 / (1 - smallest)
    assert mean("uniform") == pytest.approx(wanted, abs=1e-6)
    assert mean("mixture") == pytest.approx((wanted + mean("importance")) / 2, abs=1e-3)
    assert float(draw_times(process, "likelihood", fraction, smallest)[1].mean()) == pytest.approx(1, abs=1e-4)


def test_a_batch_of_times_is_spread_evenly_and_so_is_every_other_one() -> None:
    fraction = spread(64, torch.Generator().manual_seed(0), torch.device("cpu"))
    for part, parts in ((fraction, 64), (fraction[::2], 32), (fraction[1::2], 32)):
        assert sorted((part * parts).floor().long().remainder(parts).tolist()) == list(range(parts))


def test_the_error_is_that_of_the_noise_whatever_is_predicted(mixture: Any, knowing_denoiser: Any) -> None:
    x, noise = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    errors = [denoising_error(knowing_denoiser(mixture, VP(), kind), x, t, noise, None) for kind in ("eps", "x0", "v")]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(errors[0], errors[2], rtol=1e-6, atol=1e-8)
    assert errors[0].shape == (3,)


def test_learning_rates() -> None:
    recipe = DenoisingRecipe(lr=1.0, warmup=10)
    assert learning_rate(recipe, 0, 1000) == pytest.approx(0.1)
    assert learning_rate(recipe, 9, 1000) == pytest.approx(1, abs=1e-3)
    assert learning_rate(recipe, 500, 1000) == pytest.approx(0.5)
    assert learning_rate(recipe, 1000, 1000) == pytest.approx(0)
    assert learning_rate(DenoisingRecipe(lr=1.0, warmup=0), 0, 10) == 1


def test_what_cannot_be_trained(bars: DatasetSlice, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the loss became (nan|inf) in epoch \d; lower lr"):
        run(bars, tmp_path / "w.safetensors", {"lr": 1e30, "clip": 1e30})
    empty = DatasetSlice("bars", bars.dataset, SliceSpec(limit=0))
    with pytest.raises(HarnessError, match="training needs images"):
        run(empty, tmp_path / "w.safetensors", {})


def test_label_dropout_teaches_the_null_class(bars: DatasetSlice, tmp_path: Path) -> None:
    """Without it the row of the null class stays as it was made."""
    initial = source_for(bars, tmp_path).make(0).network.state_dict()["embedding.classes.weight"]
    for share, moves in ((0.0, False), (0.5, True)):
        out, _ = run(bars, tmp_path / f"{moves}.safetensors", {"label_dropout": share})
        rows = (out["embedding.classes.weight"] - initial).abs().amax(dim=1) > 0
        assert rows.tolist() == [True, True, True, moves]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("process", [{"kind": "vp"}, {"kind": "ddpm", "schedule": "cosine"}], ids=lambda p: p["kind"])
def test_training_and_sampling_on_a_gpu(
    precision: str, process: dict[str, Any], bars: DatasetSlice, tmp_path: Path
) -> None:
    reports: list[float] = []
    recipe = DenoisingRecipe.model_validate({**RECIPE, "objective": "mixture", "epochs": 40, "precision": precision})
    out = tmp_path / "w.safetensors"
    session = FitSession(out, {}, 0, lambda done, total, values: reports.append(values["loss"]), device="cuda")
    source = source_for(bars, tmp_path, network={"kind": "unet", "channels": [8, 16]}, process=process)
    trained = fit(source, bars, recipe, session)
    assert sum(reports[-5:]) < 0.8 * sum(reports[:5])
    assert next(trained.parameters()).device.type == "cuda"
    options = DiffusionOptions.model_validate({"checkpoint": str(out), "sampling": {"steps": 20}})
    here = build(options, ModelContext("d", bars.facts, "cpu", tmp_path))
    y, ids = torch.tensor([0, 1, 2]), torch.arange(3)
    on_cpu = here.sample(y, draws=draws_for(ids, 0, "s"))
    on_gpu = here.to("cuda").sample(y.cuda(), draws=draws_for(ids.cuda(), 0, "s"))
    assert on_gpu.device.type == "cuda"
    assert (on_gpu.cpu() - on_cpu).abs().mean() < 0.02  # rounding moves a grey level here and there
