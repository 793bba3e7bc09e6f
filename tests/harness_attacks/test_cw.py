"""Carlini-Wagner: closed forms, the search for c, saturated pixels, invariance, targets, random models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from harness_attacks.cw import CW, build
from harness_attacks.cw_options import CWOptions
from harness_attacks.cw_search import Adam, Box, WeightSearch
from pydantic import ValidationError
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.errors import HarnessError
from harness.judge import Judge
from harness.loading import BuiltModel
from harness.models import ModelView
from harness.randomness import Draws, draws_for
from harness.threats import Batch, ThreatContext


def judged(model: Any, x: Tensor, y: Tensor, ids: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """The rows of an attack as the host makes them."""
    ids = torch.arange(len(x)) if ids is None else ids
    threat = CW(CWOptions(**options))
    judge = Judge(BuiltModel(model, frozenset({"Classifier"})), x, y, ids, 0, None)
    clean, columns = judge.clean()
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    batch = Batch(x, y, ids, draws_for(ids, 0, "threat", "cw"), clean.logits, clean.prediction)
    returned = threat.run(view, batch)
    counts = {"forwards": view.forwards, "backwards": view.backwards}
    return {**returned, **columns, **counts, **judge.attacked(returned["adversarial"], threat.budget, clean)}


def linear(scores: Any, classes: int) -> tuple[Any, Tensor]:
    weights = torch.randn(classes, 25, generator=torch.Generator().manual_seed(classes))
    return scores(lambda x: (x.flatten(1) - 0.5) @ weights.T, classes), weights


def near_grey(n: int) -> Tensor:
    return 0.5 + 0.1 * torch.randn(n, 1, 5, 5, generator=torch.Generator().manual_seed(n)).clamp(-2, 2)


@pytest.mark.parametrize("distance", ["l2", "squared-l2"])
def test_on_a_linear_classifier_it_is_the_margin_over_the_norm_of_its_gradient(scores: Any, distance: str) -> None:
    model, weights = linear(scores, 2)
    x = near_grey(30)
    logits = model.logits(x)
    y = logits.argmax(dim=1)
    rows = judged(model, x, y, distance=distance, steps=300, learning_rate=0.01)
    exact = (logits[:, 0] - logits[:, 1]).abs().double() / (weights[0] - weights[1]).norm()
    assert rows["found"].all()
    assert (rows["minimal_norm"] >= exact * (1 - 1e-5)).all()
    far = exact > 0.05  # nearer than that a step of Adam is more than 2 % of the way
    assert far.sum() >= 15
    assert (rows["minimal_norm"][far] <= 1.02 * exact[far]).all()
    assert rows["minimal_norm"].median() <= 1.02 * exact.median()


def test_c_is_searched_for_each_sample_and_bracketed() -> None:
    search = WeightSearch.start(3, 1.0, 9, torch.device("cpu"))
    needed = torch.tensor([30.0, 0.002, 1e9], dtype=torch.float64)
    done = torch.ones(3, dtype=torch.bool)
    for _ in range(8):
        search.next_(done, search.weight >= needed)
    assert search.left.tolist() == [1, 1, 1]
    assert ((search.low < needed) & (needed <= search.high)).all()
    assert search.high[0] / search.low[0] < 1.2
    assert search.high[2].isinf()
    before = search.weight.clone()
    search.next_(~done, done)
    assert torch.equal(search.weight, before)


@pytest.mark.parametrize("box", [Box.plain(), Box.stretched()])
def test_the_box_holds_its_images_and_its_slope_is_the_derivative(box: Box) -> None:
    x = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0]).reshape(5, 1, 1, 1)
    adam = Adam.start(box, x, 0.01)
    torch.testing.assert_close(adam.image(), x, atol=0.5 / 255 + 1e-6 if box.stretch == 1 else 0.0, rtol=0)
    assert adam.w0.isfinite().all()
    for sign in (1.0, -1.0):
        walk = Adam.start(box, x, 10.0)
        walk.step_(torch.full_like(x, sign))
        assert (walk.image() >= 0).all()
        assert (walk.image() <= 1).all()
        assert ((walk.image() - x) * sign <= 0).all()
    w = adam.w0.double().requires_grad_()
    image = 0.5 + 0.5 * box.stretch * w.tanh()
    (slope,) = torch.autograd.grad(image.sum(), w)
    torch.testing.assert_close(slope, 0.5 * box.stretch * (1 - w.tanh().square()))


def test_adam_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 2, 2, generator=generator) * 0.8 + 0.1
    ours = Adam.start(Box.plain(), x, 0.05)
    w = ours.w0.clone().requires_grad_()
    theirs = torch.optim.Adam([w], lr=0.05)
    for _ in range(12):
        gradient = torch.randn(x.shape, generator=generator)
        (gradient * 0.5 * (1 + w.tanh())).sum().backward()
        ours.step_(gradient)
        theirs.step()
        theirs.zero_grad()
        torch.testing.assert_close(ours.w, w.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("paper", [None, "ib-inn"])
def test_saturated_images_are_attackable(scores: Any, paper: Any) -> None:
    model, _ = linear(scores, 3)
    x = (near_grey(30) > 0.5).float()
    y = model.logits(x).argmax(dim=1)
    rows = judged(model, x, y, paper=paper, target="any")
    assert rows["found"].double().mean() == 1.0
    assert (rows["adversarial"] != x).flatten(1).any(dim=1).all()


def test_a_failed_sample_has_an_infinite_norm_and_is_not_counted(scores: Any) -> None:
    model = scores(lambda x: torch.stack([x.mean((1, 2, 3)) + 5, x.mean((1, 2, 3)), x[:, 0, 0, 0] * 1e-3], 1), 3)
    x = near_grey(4)
    rows = judged(model, x, torch.tensor([0, 0, 0, 1]), steps=10, search_steps=2)
    assert rows["minimal_norm"].tolist() == [math.inf, math.inf, math.inf, 0.0]
    assert not rows["found"].any()
    assert not rows["goal_reached"].any()
    assert rows["c"].isnan().all()
    assert torch.equal(rows["adversarial"], x)
    assert rows["gradient_steps"].tolist() == [20, 20, 20, 0]


def test_a_sample_gets_the_same_bits_alone_and_in_any_batch(smooth_net: Any) -> None:
    x = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    y = smooth_net.logits(x).argmax(dim=1)
    ids = torch.arange(100, 110)
    options = {"steps": 20, "search_steps": 3, "patience": 8, "target": "random"}
    whole = judged(smooth_net, x, y, ids, **options)
    assert len(whole["gradient_steps"].unique()) > 2  # they end at different times
    for part in torch.randperm(10, generator=torch.Generator().manual_seed(1)).split(4):
        alone = judged(smooth_net, x[part], y[part], ids[part], **options)
        for name in ("adversarial", "minimal_norm", "gradient_steps", "c", "target"):
            torch.testing.assert_close(alone[name], whole[name][part], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("change", ["shift", 1e-4, 1e4])
def test_what_all_logits_share_and_their_scale_do_not_matter(
    scores: Any, plain_cnn: Any, digits: Any, change: Any
) -> None:
    x, y = digits[0][:40], digits[1][:40]
    scale, shift = (1.0, 3000.0) if change == "shift" else (change, 0.0)
    other = scores(lambda x: plain_cnn.logits(x) * scale - shift * (1 + x.mean((1, 2, 3)))[:, None], 10)
    options = {"steps": 30, "search_steps": 4}
    plain, moved = judged(plain_cnn, x, y, **options), judged(other, x, y, **options)
    assert torch.equal(moved["found"], plain["found"])
    ratio = moved["minimal_norm"][plain["found"]] / plain["minimal_norm"][plain["found"]]
    assert abs(float(ratio.median()) - 1) < 1e-3
    assert ratio.log().mean().abs() < 0.01


@pytest.mark.parametrize("target", ["random", "least-likely", 2])
def test_a_target_is_reached_and_never_the_label(smooth_net: Any, target: Any) -> None:
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    y = smooth_net.logits(x).argmax(dim=1)
    rows = judged(smooth_net, x, y, target=target, steps=60, search_steps=5)
    reached = rows["goal_reached"]
    assert reached.double().mean() > 0.3
    assert torch.equal(rows["adversarial_prediction"][reached], rows["target"][reached])
    assert (rows["target"][reached] != y[reached]).all()
    assert rows["found"][reached].all()


def test_kappa_asks_for_certainty(smooth_net: Any) -> None:
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(8))
    y = smooth_net.logits(x).argmax(dim=1)
    options = {"steps": 60, "search_steps": 5}
    none, half = (judged(smooth_net, x, y, kappa=k, **options) for k in (0.0, 0.5))
    both = none["goal_reached"] & half["goal_reached"]
    assert both.double().mean() > 0.6
    assert (half["minimal_norm"][both] > none["minimal_norm"][both]).all()
    assert (half["confidence"][both] > none["confidence"][both]).double().mean() > 0.9
    logits = smooth_net.logits(half["adversarial"])[both]
    clean = smooth_net.logits(x)[both]
    margins = [
        v.gather(1, y[both][:, None])[:, 0] - v.scatter(1, y[both][:, None], -1e9).amax(1) for v in (logits, clean)
    ]
    assert (margins[0] <= -0.5 * margins[1] * (1 - 1e-4)).all()


class Noisy:
    """Two classes apart by a line, with noise on the score."""

    stochastic = True
    num_classes = 2

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
        score = 40 * (x.mean(dim=(1, 2, 3)) - 0.5) + draws.normal("logit", 0, ())
        return torch.stack([score, -score], dim=1)


def test_no_lucky_draw_of_a_random_model_makes_a_norm() -> None:
    x = torch.full((40, 1, 3, 3), 0.6)
    rows = judged(Noisy(), x, torch.zeros(40, dtype=torch.int64), steps=30, search_steps=4, eot=2)
    assert rows["found"].double().mean() >= 0.9
    assert (rows["minimal_norm"] >= 0.3).all()
    assert rows["adversarial_correct_share"][rows["found"]].mean() < 0.3


def test_columns_say_what_was_spent_and_found(plain_cnn: Any, digits: Any) -> None:
    x, y = digits[0][:8], digits[1][:8]
    rows = judged(plain_cnn, x, y, steps=10, search_steps=3, patience=None)
    assert rows["gradient_steps"].tolist() == (30 * (rows["clean_correct"])).tolist()
    assert torch.equal(rows["backwards"], rows["gradient_steps"])
    torch.testing.assert_close(rows["l2_per_pixel"], rows["l2"] / 8)
    with torch.no_grad():
        probabilities = plain_cnn.logits(rows["adversarial"]).double().softmax(dim=1)
    torch.testing.assert_close(rows["confidence"], probabilities.amax(dim=1), atol=1e-5, rtol=0)
    assert "clean_log_prob" not in rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -1}, "greater than or equal to 0"),
        ({"kappa": math.inf}, "search_steps = 0"),
        ({"kappa": math.nan}, "greater than or equal to 0|not a margin"),
        ({"c": math.inf}, "not finite"),
        ({"target": "nearest"}, "is not a target"),
        ({"paper": "ib"}, "ib-inn"),
        ({"distance": "linf"}, "squared-l2"),
    ],
)
def test_mistakes_get_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CWOptions(**options)


def test_an_infinite_kappa_is_written_as_text() -> None:
    options = CWOptions(paper="ib-inn", kappa="inf")  # type: ignore[arg-type]
    assert options.kappa == math.inf
    assert options.model_dump(mode="json")["kappa"] == "inf"
    assert CWOptions(**options.model_dump(mode="json")) == options


def test_a_target_must_be_a_class() -> None:
    facts = DatasetFacts("test", (1, 5, 5), 256, ("a", "b", "c"))
    with pytest.raises(HarnessError, match="classes 0 to 2"):
        build(CWOptions(target=3), ThreatContext(facts, None, None))  # type: ignore[arg-type]


def test_a_detection_term_without_a_density_is_refused(smooth_net: Any) -> None:
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(HarnessError, match="density"):
        judged(smooth_net, x, torch.zeros(2, dtype=torch.int64), detection=1.0, median_log_prob=0.0)
