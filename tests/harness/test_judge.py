"""What the host says of images: random models by many draws, small norms, 8-bit files, detectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.errors import ModelError, ThreatError
from harness.judge import DRAWS, Judge, in_eight_bits, perturbation_norms
from harness.loading import BuiltModel
from harness.models import DETECTOR_FPRS, ModelView, Reference
from harness.randomness import Draws
from harness.threats import Batch, Budget


class Bright:
    """Two classes: 1 where the mean of the image is above 0.5."""

    num_classes = 2

    def logits(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    def ood_score(self, x: Tensor) -> Tensor:
        return x.flatten(1).amax(dim=1)


class Noisy(Bright):
    """The same, with noise on the mean that a draw decides."""

    stochastic = True

    def logits(self, x: Tensor, draws: Draws) -> Tensor:  # type: ignore[override]
        mean = x.flatten(1).mean(dim=1) + 0.05 * draws.normal("noise", 0, ())
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def images(*means: float) -> Tensor:
    return torch.tensor(means)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()


def judge(model: Any, x: Tensor, y: list[int], *more: str, reference: Reference | None = None) -> Judge:
    built = BuiltModel(model, frozenset({"Classifier", *more}))
    return Judge(built, x, torch.tensor(y), torch.arange(len(x)) + 100, 0, reference)


def test_an_image_that_was_not_moved_is_never_a_success_against_a_random_model() -> None:
    x = images(*np.linspace(0.4, 0.6, 60).tolist())
    j = judge(Noisy(), x, [1] * 60)
    clean, columns = j.clean()
    after = j.attacked(x, Budget("linf", 0.0), clean)
    assert not after["success"].any()
    assert not after["success_mean"].any()
    assert torch.equal(after["adversarial_correct_share"], columns["clean_correct_share"])
    shares = columns["clean_correct_share"]
    assert ((shares > 0) & (shares < 1)).any(), "there is randomness to speak of"
    assert ((shares * DRAWS) == (shares * DRAWS).round()).all()


def test_a_random_model_is_judged_by_the_majority_of_its_draws() -> None:
    x = images(*np.linspace(0.3, 0.7, 80).tolist())
    j = judge(Noisy(), x, [1] * 80)
    _, columns = j.clean()
    share, correct = columns["clean_correct_share"], columns["clean_correct"]
    assert correct[share > 0.5].all()
    assert not correct[share < 0.5].any()
    assert columns["clean_correct_mean"].double().mean() == pytest.approx(0.5, abs=0.1)


def test_the_draws_of_the_judge_are_none_that_an_attack_can_ask_for() -> None:
    x = images(0.5, 0.5, 0.5)
    built = BuiltModel(Noisy(), frozenset({"Classifier"}))
    ids = torch.arange(3)
    seen: list[float] = []
    view = built.view(ids, 0, "attack")
    for draw in range(50):
        seen += view.logits(x, Draws((0, "threat", "pgd"), ids, ids, draw))[:, 0].tolist()
    other = ModelView(Noisy(), {"Classifier"}, ids, 0, "eval")
    judged = [v for d in range(DRAWS) for v in other.logits(x, Draws((), ids, ids, d))[:, 0].tolist()]
    assert not set(seen) & set(judged)


def test_an_unbounded_attack_is_judged_by_the_norm_it_needed() -> None:
    x = images(0.6, 0.6, 0.4)
    j = judge(Bright(), x, [1, 1, 1])  # the last is wrong before anything is done to it
    clean, _ = j.clean()
    columns = j.attacked(images(0.45, 0.55, 0.4), Budget("l2", math.inf), clean)
    assert columns["found"].tolist() == [True, False, False]
    assert columns["minimal_norm"].tolist() == pytest.approx([0.3, math.inf, 0.0])
    assert "success" not in columns
    with pytest.raises(ThreatError, match=r"outside \[0, 1\]"):
        j.attacked(images(1.5, 0.5, 0.5), Budget("l2", math.inf), clean)


def test_success_that_rounding_undoes_is_told() -> None:
    class Fine(Bright):
        """Class 0 in a band much narrower than a grey level."""

        def logits(self, x: Tensor) -> Tensor:
            inside = ((x.flatten(1).mean(dim=1) - 0.5003).abs() < 1e-4).float()
            return torch.stack([inside, 0.5 * torch.ones_like(inside)], dim=1)

    for model, stays in ((Bright(), True), (Fine(), False)):
        x = images(0.6, 0.6)
        j = judge(model, x, [1, 1])
        clean, _ = j.clean()
        columns = j.attacked(images(0.5003 if not stays else 0.45, 0.6), Budget("linf", 0.2), clean)
        assert columns["success"].tolist() == [True, False]
        assert columns["success_rounded"].tolist() == [stays, False]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["linf", "l2", "l1"]), st.sampled_from([1 / 255, 8 / 255, 0.3, 2.0]))
def test_a_rounded_image_is_grey_levels_inside_the_ball(seed: int, norm: Any, eps: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (4, 1, 5, 5), generator=generator) / 255
    delta = torch.randn(4, 1, 5, 5, generator=generator)
    size = {
        "linf": delta.flatten(1).abs().amax(1),
        "l2": delta.flatten(1).norm(dim=1),
        "l1": delta.flatten(1).abs().sum(1),
    }
    moved = (x + delta * (eps / size[norm])[:, None, None, None]).clamp(0, 1)
    stored = in_eight_bits(moved, x, Budget(norm, eps))
    assert (stored * 255 - (stored * 255).round()).abs().max() < 1e-4
    assert float(perturbation_norms(stored, x)[norm].max()) <= eps * (1 + 1e-5) + 1e-6
    assert (stored - moved).abs().max() < 1 / 255


def test_a_detector_may_reject_what_fools_the_classifier() -> None:
    held_out = Reference({"ood_score": np.linspace(0.0, 0.7, 1001)})
    x = images(0.6, 0.6, 0.69)
    j = judge(Bright(), x, [1, 1, 1], "Detector", reference=held_out)
    clean, _ = j.clean()
    loud = images(0.45, 0.45, 0.69)
    loud[0, 0, 0, 0], loud[0, 0, 1, 1] = 0.9, 0.0  # fools, and is seen to be odd
    columns = j.attacked(loud, Budget("linf", 1.0), clean)
    assert columns["success"].tolist() == [True, True, False]
    assert columns["adversarial_ood_score"].tolist() == pytest.approx([0.9, 0.45, 0.69])
    robust = columns["robust_at_detector_fpr"]
    assert robust.shape == columns["ood_threshold"].shape == (3, len(DETECTOR_FPRS))
    assert robust[0].all(), "rejected at every threshold"
    assert not robust[1].any(), "evades"
    assert robust[2].tolist() == [True, False, False], "a clean image that is rejected is no success of the model"


def test_an_unbounded_attack_says_who_evades_and_not_who_withstands() -> None:
    held_out = Reference({"ood_score": np.linspace(0.0, 0.7, 1001)})
    j = judge(Bright(), images(0.6), [1], "Detector", reference=held_out)
    clean, _ = j.clean()
    columns = j.attacked(images(0.45), Budget("l2", math.inf), clean)
    assert "robust_at_detector_fpr" not in columns
    assert columns["evades_at_detector_fpr"].all()
    assert columns["ood_threshold"].shape == (1, len(DETECTOR_FPRS))


def test_a_score_that_is_no_number_is_neither_accepted_nor_rejected() -> None:
    class Overflows(Bright):
        def ood_score(self, x: Tensor) -> Tensor:
            score = super().ood_score(x)
            return score.masked_fill(score < 0.5, torch.nan)

    j = judge(Overflows(), images(0.6, 0.6), [1, 1], "Detector")
    clean, _ = j.clean()
    with pytest.raises(ModelError, match="ood_score is NaN for 1 of 2 adversarial images, first sample 101"):
        j.attacked(images(0.6, 0.45), Budget("linf", 0.2), clean)


def test_thresholds_are_of_held_out_scores() -> None:
    reference = Reference({"ood_score": np.arange(1, 101, dtype=float)})
    assert [reference.ood_threshold(fpr) for fpr in (0.01, 0.05, 0.1)] == [99, 95, 90]  # so many of a hundred lie above
    with pytest.raises(ThreatError, match="no log_prob"):
        reference["log_prob"]
    view = ModelView(Bright(), {"Classifier", "Detector"}, torch.arange(2), 0, "attack")
    with pytest.raises(ThreatError, match="needs_reference"):
        view.ood_threshold(0.05)


def test_a_batch_knows_the_majority_verdict() -> None:
    ids = torch.arange(2)
    batch = Batch(
        images(0.5, 0.5), torch.tensor([1, 1]), ids, Draws((), ids, ids), torch.zeros(2, 2), torch.tensor([1, 0])
    )
    assert batch.clean_correct.tolist() == [True, False]


def test_shifted_images_are_judged_by_what_the_model_can_do() -> None:
    x = images(0.2, 0.3, 0.9)
    moved = images(0.7, 0.4, 0.8)
    rows = judge(Bright(), x, [0, 0, 1]).shifted(moved)
    assert rows.keys() == {"prediction", "correct", "confidence", "entropy", "ood_score"}
    assert rows["prediction"].tolist() == [1, 0, 1]
    assert rows["correct"].tolist() == [False, True, True]
    p = torch.sigmoid(2 * (moved.flatten(1).mean(dim=1).double() - 0.5).abs())
    torch.testing.assert_close(rows["confidence"], p, atol=1e-6, rtol=0)
    torch.testing.assert_close(rows["entropy"], -(p * p.log() + (1 - p) * (1 - p).log()), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows["ood_score"], ((1 - p) / p).log(), atol=1e-6, rtol=0)
    own = judge(Bright(), x, [0, 0, 1], "Detector").shifted(moved)
    torch.testing.assert_close(own["ood_score"].float(), torch.tensor([0.7, 0.4, 0.8]))


def test_shifted_images_meet_the_draws_of_the_clean_ones() -> None:
    x = images(*[0.5] * 40)
    judging = judge(Noisy(), x, [0] * 40)
    clean, _ = judging.clean()
    assert torch.equal(judging.shifted(x)["prediction"], clean.prediction)
    assert int(judging.model.forwards.sum()) == 2 * DRAWS * 40


def test_shifted_images_outside_the_range_are_refused() -> None:
    with pytest.raises(ThreatError, match=r"shifted images lie outside \[0, 1\]"):
        judge(Bright(), images(0.5), [0]).shifted(images(1.5))
    with pytest.raises(ThreatError, match="shifted images are"):
        judge(Bright(), images(0.5), [0]).shifted(images(0.5, 0.5))
