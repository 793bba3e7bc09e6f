"""Minimal-norm search: closed forms, honesty about failures, invariance, and one curve instead of many runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from harness_attacks.fmn import projected
from harness_attacks.minimal_norm import MinimalNorm, MinimalNormOptions, build
from harness_attacks.smallest import clearance
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from harness.judge import Judge, norm_of
from harness.loading import BuiltModel
from harness.metrics.minimal_norm import ROBUST_ACCURACY_AT
from harness.models import ModelView
from harness.randomness import Draws, draws_for
from harness.threats import Batch, Columns

NORMS = ("linf", "l2", "l1")
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def judged(model: Any, x: Tensor, y: Tensor, ids: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """The rows of an attack as the host makes them."""
    ids = torch.arange(len(x)) if ids is None else ids
    threat = MinimalNorm(MinimalNormOptions(**options))
    judge = Judge(BuiltModel(model, frozenset({"Classifier"})), x, y, ids, 0, None)
    clean, columns = judge.clean()
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    batch = Batch(x, y, ids, draws_for(ids, 0, "threat", "minimal-norm"), clean.logits, clean.prediction)
    returned: Columns = threat.run(view, batch)
    return {**returned, **columns, **judge.attacked(returned["adversarial"], threat.budget, clean)}


def linear(scores: Any, classes: int, shape: tuple[int, ...] = (1, 5, 5)) -> tuple[Any, Tensor]:
    """A linear classifier of images around grey, and its weights (K, D)."""
    weights = torch.randn(classes, math.prod(shape), generator=torch.Generator().manual_seed(classes))
    return scores(lambda x: (x.flatten(1) - 0.5) @ weights.T * 3, classes), weights * 3


def near_grey(n: int, shape: tuple[int, ...] = (1, 5, 5)) -> Tensor:
    return 0.5 + 0.02 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(n)).clamp(-2, 2)


def closed_form(weights: Tensor, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The smallest margin over the dual norm of its gradient, over all wrong classes."""
    logits = (x.flatten(1) - 0.5).double() @ weights.double().T
    gaps = logits.gather(1, y[:, None]) - logits
    steep = torch.linalg.vector_norm(weights.double()[y][:, None] - weights.double()[None], DUAL[norm], dim=2)
    return (gaps / steep.clamp_min(1e-30)).scatter(1, y[:, None], math.inf).amin(dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_on_a_linear_classifier_it_is_the_margin_over_the_dual_norm(
    scores: Any, norm: str, classes: int, loss: str
) -> None:
    model, weights = linear(scores, classes)
    x = near_grey(60)
    y = model.logits(x).argmax(dim=1)
    rows = judged(model, x, y, norm=norm, loss=loss)
    exact = closed_form(weights, x, y, norm)
    assert rows["found"].all()
    assert (rows["minimal_norm"] >= exact * (1 - 1e-5)).all()
    # Among several classes the walk may end at another than the nearest: with the margin of the best one alone, and in
    # l1, where a step changes few pixels, it does so more often.
    close = (rows["minimal_norm"] <= exact * 1.02 + 1e-7).double().mean()
    assert close >= (1.0 if classes == 2 else 0.98 if loss == "cross-entropy" and norm != "l1" else 0.4)
    assert (rows["minimal_norm"] / exact).median() <= (1.02 if norm != "l1" or classes == 2 else 1.04)


def test_a_failed_sample_has_an_infinite_norm_and_a_wrong_one_none(scores: Any) -> None:
    model = scores(lambda x: torch.stack([x.mean((1, 2, 3)) + 5, x.mean((1, 2, 3)), x[:, 0, 0, 0] * 1e-3], 1), 3)
    x = near_grey(6)
    y = torch.tensor([0, 0, 0, 0, 1, 2])
    rows = judged(model, x, y, norm="l2", steps=20)
    assert rows["found"].tolist() == [False] * 6
    assert rows["minimal_norm"].tolist() == [math.inf] * 4 + [0.0] * 2
    assert torch.equal(rows["adversarial"], x)
    assert rows["gradient_steps"].tolist() == [20] * 4 + [0, 0]


@pytest.mark.parametrize("norm", NORMS)
def test_binary_images_are_attackable(scores: Any, norm: str) -> None:
    model, _ = linear(scores, 3)
    x = (near_grey(50) > 0.5).float()
    y = model.logits(x).argmax(dim=1)
    rows = judged(model, x, y, norm=norm, steps=100)
    assert rows["found"].double().mean() == 1.0
    assert rows["adversarial"].min() >= 0
    assert rows["adversarial"].max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_gets_the_same_bits_alone_and_in_any_batch(smooth_net: Any, norm: str) -> None:
    x = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    y = smooth_net.logits(x).argmax(dim=1)
    y[3] = (y[3] + 1) % 4
    ids = torch.arange(100, 112)
    whole = judged(smooth_net, x, y, ids, norm=norm, steps=15, restarts=2)
    for part in torch.randperm(12, generator=torch.Generator().manual_seed(1)).split(5):
        alone = judged(smooth_net, x[part], y[part], ids[part], norm=norm, steps=15, restarts=2)
        assert torch.equal(alone["adversarial"], whole["adversarial"][part])
        assert torch.equal(alone["minimal_norm"], whole["minimal_norm"][part])
        assert torch.equal(alone["gradient_steps"], whole["gradient_steps"][part])


@pytest.mark.parametrize("change", ["shift", 1e-4, 1e4])
@pytest.mark.parametrize("norm", NORMS)
def test_what_all_logits_share_and_their_scale_do_not_matter(
    scores: Any, plain_cnn: Any, digits: Any, norm: str, change: Any
) -> None:
    x, y = digits[0][:80], digits[1][:80]
    scale, shift = (1.0, 3000.0) if change == "shift" else (change, 0.0)
    other = scores(lambda x: plain_cnn.logits(x) * scale - shift * (1 + x.mean((1, 2, 3)))[:, None], 10)
    plain = judged(plain_cnn, x, y, norm=norm, steps=30)
    moved = judged(other, x, y, norm=norm, steps=30)
    assert torch.equal(moved["found"], plain["found"])
    found = plain["found"]
    ratio = moved["minimal_norm"][found] / plain["minimal_norm"][found]
    # Float32 resolves 2.4e-4 at -3,000: single walks may part, their distribution may not.
    assert abs(float(ratio.median()) - 1) < 1e-3
    assert ratio.log().mean().abs() < 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_never_lengthen_a_norm(smooth_net: Any, norm: str) -> None:
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(6))
    y = smooth_net.logits(x).argmax(dim=1)
    one, three = (judged(smooth_net, x, y, norm=norm, steps=10, restarts=r)["minimal_norm"] for r in (1, 3))
    assert (three <= one).all()
    assert (three < one).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_its_curve_agrees_with_pgd_at_fixed_budgets(attack: Any, digits_cnn: Any, digits: Any, norm: str) -> None:
    x, y = digits[0][:180], digits[1][:180]
    budgets = [0.05, 0.15] if norm == "linf" else [0.3, 0.6]
    found = judged(digits_cnn, x, y, norm=norm, steps=40, curve=budgets)
    rows = {name: found[name].numpy() for name in ("clean_correct", "minimal_norm", "curve")}
    curve = ROBUST_ACCURACY_AT.estimate({**rows, "sample_id": np.arange(len(x))}, 0.95)
    for eps in budgets:
        images = attack(digits_cnn, x, y, norm=norm, eps=eps, steps=30, restarts=2)["adversarial"]
        with torch.no_grad():
            stands = (digits_cnn.logits(images).argmax(1) == y) & found["clean_correct"]
        point = curve[f"{eps:g}"]
        assert point.low is not None
        assert point.high is not None
        assert point.low <= float(stands.double().mean()) <= point.high


class Noisy:
    """Two classes apart by a line, with noise on the score: an image at distance t falls with probability Phi(t)."""

    stochastic = True
    num_classes = 2

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
        score = 40 * (x.mean(dim=(1, 2, 3)) - 0.5) + draws.normal("logit", 0, ())
        return torch.stack([score, -score], dim=1)


@pytest.mark.parametrize("norm", NORMS)
def test_no_lucky_draw_of_a_random_model_makes_a_norm(norm: str) -> None:
    x = torch.full((60, 1, 3, 3), 0.5 + 0.1)
    y = torch.zeros(60, dtype=torch.int64)
    rows = judged(Noisy(), x, y, norm=norm, steps=40)
    assert rows["found"].double().mean() >= 0.9
    # Without noise the boundary is 0.1 away in every pixel; below it most draws are right.
    boundary = {"linf": 0.1, "l2": 0.3, "l1": 0.9}[norm]
    assert (rows["minimal_norm"] >= boundary).all()
    assert rows["minimal_norm"][rows["found"]].median() <= 1.6 * boundary
    assert rows["adversarial_correct_share"][rows["found"]].mean() < 0.3


def test_gradients_are_averaged_over_draws() -> None:
    x = torch.full((4, 1, 3, 3), 0.6)
    ids = torch.arange(4)
    view = ModelView(Noisy(), {"Classifier"}, ids, 0, "attack")
    batch = Batch(x, ids * 0, ids, draws_for(ids, 0, "threat", "t"), torch.tensor([[1.0, 0.0]]).expand(4, 2))
    MinimalNorm(MinimalNormOptions(norm="l2", steps=5, eot=3)).run(view, batch)
    assert view.backwards.tolist() == [15] * 4


@given(st.integers(0, 2**31), st.sampled_from(NORMS), st.floats(1e-3, 5))
@settings(max_examples=60, deadline=None)
def test_projections_land_in_the_ball_and_no_point_of_it_is_nearer(seed: int, norm: Any, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 1, 3, 3, generator=generator)
    radii = torch.full((4,), radius)
    inside = projected(x, radii, norm)
    assert (norm_of(inside, norm) <= radius * (1 + 1e-5) + 1e-6).all()
    other = torch.randn(200, 1, 3, 3, generator=generator)
    other *= (radius / norm_of(other, norm).clamp_min(radius)).float()[:, None, None, None]
    for point, nearest in zip(x, inside, strict=True):
        assert (other - point).flatten(1).norm(dim=1).min() >= (nearest - point).norm() - 1e-4
    still = x * (0.5 * radius / norm_of(x, norm).clamp_min(radius)).float()[:, None, None, None]
    torch.testing.assert_close(projected(still, radii, norm), still, atol=1e-6, rtol=1e-5)


def test_clearance_follows_the_scale_of_logits_and_not_their_offset() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(clearance(logits * 1e4), clearance(logits) * 1e4)
    torch.testing.assert_close(clearance(logits - 3000), clearance(logits), rtol=1e-5, atol=1e-10)
    assert (clearance((logits - 3000).float()) > 1e-3).all()  # four times what float32 resolves there
    assert clearance(torch.tensor([[0.0, 1.0, -math.inf]]))[0] == pytest.approx(1e-5, rel=0.1)


def test_the_model_without_a_gradient_is_refused(scores: Any) -> None:
    model = scores(lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1).detach(), 2)
    with pytest.raises(Exception, match="gives no gradient"):
        judged(model, near_grey(3), torch.zeros(3, dtype=torch.int64), norm="l2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curve": ["8"]}, "did you mean"),
        ({"curve": [-0.1]}, "is negative"),
        ({"curve": [0.1, 0.1]}, "twice"),
        ({"norm": "l0"}, "linf"),
        ({"steps": 0}, "greater than or equal to 1"),
    ],
)
def test_mistakes_get_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MinimalNormOptions(**options)


def test_a_curve_has_usual_budgets_unless_given() -> None:
    assert build(MinimalNormOptions(norm="linf"), None).curve[3] == 8 / 255  # type: ignore[arg-type]
    assert build(MinimalNormOptions(norm="l2", curve=("0.5",)), None).curve == [0.5]  # type: ignore[arg-type]
