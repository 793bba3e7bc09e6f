"""Training: the losses of the paper with the right signs, reproducible, resumable to the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_ib_inn.augmentation import augmented
from harness_ib_inn.layouts import LAYOUTS
from harness_ib_inn.model import IBINN, build
from harness_ib_inn.options import FitRecipe, IBINNOptions
from harness_ib_inn.training import dequantise, learning_rate, losses
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from harness import checkpoints
from harness.errors import ModelError
from harness.models import ModelContext, prepare
from harness.testing.toys import synthetic_data
from harness.training import FitSession

DATA = synthetic_data(samples=60, levels=17)
RECIPE: dict[str, Any] = {"epochs": 4, "batch_size": 32, "shift": 1}


def test_the_losses_are_the_corrected_equations_6_and_7(given: Any) -> None:
    """Term by term, from full means and distances; the constant D/2 log 2 pi left out."""
    model = given.shaken(LAYOUTS["digits"], 3, 17)
    model.log_prior.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    v, y = torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    z, log_det = model.flow(v)
    distance = (z[:, None] - model.means[None]).square().sum(dim=2)
    joint = model.log_prior - distance / 2
    l_x = (-log_det - joint.logsumexp(dim=1)) / 64
    target = torch.full((6, 3), 0.05 / 3).double()
    target[range(6), y] += 0.95
    l_y = -(target * joint.log_softmax(dim=1)).sum(dim=1)
    found = losses(model, v, y, 0.05)
    torch.testing.assert_close(found.l_x, l_x.mean())
    torch.testing.assert_close(found.l_y, l_y.mean())
    torch.testing.assert_close(found.weighted(4.0), (l_x.mean() + 4 * l_y.mean()) / 5)
    assert found.weighted(0.0) == found.l_x
    assert found.weighted(math.inf) == found.l_y
    assert found.right == int((joint.argmax(dim=1) == y).sum())
    bits = (found.l_x + 0.5 * math.log(2 * math.pi)) / math.log(2) + math.log2(17)
    log_p = model.log_prob_of_latent(z, log_det).mean()
    assert float(bits) == pytest.approx(float(-log_p / (64 * math.log(2)) + math.log2(17)))


def test_the_losses_fall_where_latents_come_nearer_to_their_means(given: Any) -> None:
    """With the printed signs both would rise."""
    model = given.shaken(LAYOUTS["digits"], 3, 17)
    y = torch.tensor([0, 1, 2])
    far = model.means[y] + 3 * torch.randn(3, 64, generator=Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for z in (far, model.means[y]):
        joint = model.joint(z)
        l_x = -model.log_prob_of_latent(z, torch.zeros(3)).mean()
        found.append((float(l_x), float(torch.nn.functional.cross_entropy(joint, y))))
    assert found[1][0] < found[0][0]
    assert found[1][1] < found[0][1]


@cases(levels=st.sampled_from([2, 17, 256]), seed=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_dequantisation_keeps_grey_levels_in_their_bins_and_fills_them(levels: int, seed: int) -> None:
    draws = Generator().manual_seed(seed)
    level = torch.randint(0, levels, (50, 1, 8, 8), generator=draws)
    v = dequantise(level / (levels - 1), levels, draws)
    assert v.min() >= 0
    assert v.max() <= 1
    inside = v * levels - level
    assert -1e-4 < inside.min() < 0.01
    assert 0.99 < inside.max() < 1 + 1e-4
    assert inside.mean() == pytest.approx(0.5, abs=0.03)


def test_learning_rates() -> None:
    def at(schedule: str, done: float) -> float:
        return learning_rate(FitRecipe.model_validate({"lr": 1.0, "schedule": schedule}), done)

    assert [at("constant", d) for d in (0.0, 0.9)] == [1.0, 1.0]
    assert [at("cosine", d) for d in (0.0, 0.5)] == pytest.approx([1.0, 0.5])
    assert [at("steps", d) for d in (0.0, 0.59, 0.6, 0.84, 0.86)] == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])
    assert [at("one-cycle", d) for d in (0.0, 0.3, 0.65)] == pytest.approx([0.04, 1.0, 0.5])


def test_augmentation_crops_shifts_and_mirrors() -> None:
    draws = Generator().manual_seed(0)
    x = torch.rand(64, 1, 8, 8)
    assert augmented(x, (8, 8), FitRecipe(), draws) is x
    mirrored = augmented(x, (8, 8), FitRecipe(flip=True), draws)
    flipped = (mirrored == x.flip(-1)).flatten(1).all(dim=1)
    assert (flipped | (mirrored == x).flatten(1).all(dim=1)).all()
    assert 15 < int(flipped.sum()) < 49
    shifted = augmented(x, (8, 8), FitRecipe(shift=1), draws)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    windows = [padded[:, :, r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
    hits = torch.stack([(shifted == window).flatten(1).all(dim=1) for window in windows])
    assert hits.any(dim=0).all()
    assert hits.any(dim=1).all()  # every shift occurs
    halved = augmented(x, (8, 8), FitRecipe(shift=1, shift_share=0.5), draws)
    kept = (halved == x).flatten(1).all(dim=1)  # those left alone, and a ninth of the others
    assert 18 < int(kept.sum()) < 54
    cropped = augmented(torch.rand(5, 3, 12, 10), (8, 8), FitRecipe(), draws)
    assert cropped.shape == (5, 3, 8, 8)


class StopError(Exception):
    pass


def make(**options: Any) -> IBINN:
    table = {"layout": "digits", "detector": "one-tailed", **options}
    model = build(IBINNOptions.model_validate(table), ModelContext("mine", DATA.facts, "cpu", Path.cwd()))
    return prepare(model, "cpu")  # type: ignore[no-any-return]


def fit(
    path: Path, recipe: Mapping[str, Any], *, seed: int = 0, stop_after: int | None = None, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train; the tensors and the header of the checkpoint. With `stop_after` it is interrupted after that epoch."""

    def progress(done: int, total: int, values: Mapping[str, float]) -> None:
        if done == stop_after:
            raise StopError

    chosen = FitRecipe.model_validate({**RECIPE, **recipe})
    header = {"plugin": "ib-inn", "recipe": chosen.model_dump(mode="json"), "classes": list(DATA.facts.class_names)}
    make(**options).fit(DATA, chosen, FitSession(path, header, seed, progress))
    return checkpoints.load(path)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "recipe",
    [{"beta": "inf", "schedule": "one-cycle"}, {"optimizer": "sgd", "lr": 0.02, "beta": 0, "flip": True, "clip": 1.0}],
)
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, recipe: dict[str, Any]) -> None:
    whole, header = fit(tmp_path / "whole.safetensors", recipe)
    for epoch in (1, 4):
        with pytest.raises(StopError):
            fit(tmp_path / f"cut{epoch}.safetensors", recipe, stop_after=epoch)
        torch.rand(epoch)  # the state of the global generator must not matter
        again, header_again = fit(tmp_path / f"cut{epoch}.safetensors", recipe)
        assert same(whole, again)
        assert header == header_again
    assert not list(tmp_path.glob("*.resume"))


def test_seed_decides_and_the_global_generator_neither_matters_nor_moves(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, _ = fit(tmp_path / "a.safetensors", {"epochs": 1})
    assert torch.equal(torch.rand(1), expected)
    assert same(first, fit(tmp_path / "b.safetensors", {"epochs": 1})[0])
    other, _ = fit(tmp_path / "c.safetensors", {"epochs": 1}, seed=1)
    mixing = "blocks.2.mixing.matrix"
    assert not torch.equal(first[mixing], other[mixing])


def test_what_is_learnt_from_the_data_is_in_the_checkpoint(tmp_path: Path) -> None:
    """Class frequencies, grey levels, training scores; and training goes on from a checkpoint."""
    path = tmp_path / "a.safetensors"
    tensors, header = fit(path, {"epochs": 20, "beta": 2, "lr": 3e-3})
    assert int(tensors["levels"]) == 17
    torch.testing.assert_close(tensors["log_prior"].exp(), torch.full((10,), 0.1).double())
    assert header["results"]["layout"] == "digits"
    assert header["results"]["mixing"] == "orthogonal"
    model = make(layout=None, checkpoint=str(path), detector="two-tailed")
    x, y = DATA.load(DATA.ids)
    scores = model.log_prob(x)
    torch.testing.assert_close(tensors["training_scores"][1:], scores.sort().values, rtol=1e-6, atol=1e-3)
    assert float(tensors["training_scores"][0]) == pytest.approx(float(scores.mean()), rel=1e-5)
    assert header["results"]["train_accuracy"] == pytest.approx(
        float((model.logits(x).argmax(dim=1) == y).double().mean())
    )
    assert header["results"]["train_accuracy"] > 0.9
    again, more = fit(tmp_path / "b.safetensors", {"epochs": 1, "lr": 1e-5}, layout=None, checkpoint=str(path))
    assert more["results"]["loss"] < 1.1 * header["results"]["loss"] + 0.1
    assert torch.equal(again["blocks.2.mixing.matrix"], tensors["blocks.2.mixing.matrix"])


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    clip = torch.nn.utils.clip_grad_norm_

    def watched(parameters: Any, limit: float) -> Tensor:
        chosen = list(parameters)
        before = clip(chosen, limit)
        after = torch.nn.utils.get_total_norm([p.grad for p in chosen if p.grad is not None])
        seen.append((float(before), float(after)))
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    fit(tmp_path / "a.safetensors", {"epochs": 1, "clip": 1e-3})
    assert all(before > 1e-3 for before, _ in seen)
    assert all(after <= 1.001e-3 for _, after in seen)


def test_a_diverging_training_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the loss became (nan|inf|-inf) in epoch .*; lower lr"):
        fit(tmp_path / "a.safetensors", {"lr": 1e30, "epochs": 3, "optimizer": "sgd"})


@pytest.mark.parametrize(("text", "value"), [("inf", math.inf), (math.inf, math.inf), ("8", 8.0), (0, 0.0)])
def test_beta_reads_and_writes_infinity(text: Any, value: float) -> None:
    recipe = FitRecipe(beta=text)
    assert recipe.beta == value
    written = json.dumps(recipe.model_dump(mode="json"), allow_nan=False)
    assert FitRecipe.model_validate(json.loads(written)) == recipe


def test_labels_of_a_class_without_images_keep_the_prior_finite(tmp_path: Path) -> None:
    model = make()
    few = synthetic_data(samples=5, levels=17)
    model.fit(few, FitRecipe(epochs=1), FitSession(tmp_path / "a.safetensors", {}, 0, lambda *_: None))
    assert model.log_prior.isfinite().all()
    assert np.isclose(model.log_prior.exp().sum().item(), 1.0)
