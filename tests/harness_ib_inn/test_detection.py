"""Detection: the three tests, and the training scores behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_ib_inn.detection import KEPT, TrainingScores, score

from harness.errors import ModelError


def test_scores_order_as_the_tests_say() -> None:
    training = TrainingScores.of(torch.linspace(0, 100, 501).double() ** 2)  # skewed: mean 3350, median 2500
    at = torch.tensor([-50.0, 1.0, 2500.0, 3350.0, 9900.0, 20000.0]).double()
    one = score(at, "one-tailed", None, "m")
    assert torch.equal(one, -at)
    typicality = score(at, "typicality", training, "m")
    assert typicality.argmin() == 3
    assert typicality[3] < 20
    two = score(at, "two-tailed", training, "m")
    assert two.argmin() == 2
    assert two[0] > two[1] > two[2] < two[3] < two[4] < two[5]
    assert two[2].item() == pytest.approx(-0.5, abs=0.01)


def test_a_large_training_set_is_kept_as_quantiles() -> None:
    log_prob = torch.randn(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    training = TrainingScores.of(log_prob)
    assert len(training.ordered) == KEPT
    assert training.ordered[0] == log_prob.min()
    assert training.ordered[-1] == log_prob.max()
    again = TrainingScores.from_tensor(training.tensor())
    assert again.mean == pytest.approx(float(log_prob.mean()))
    full = TrainingScores(training.mean, log_prob.sort().values)
    at = torch.linspace(-3, 3, 50).double()
    gap = score(at, "two-tailed", again, "m") - score(at, "two-tailed", full, "m")
    assert gap.abs().max() < 2e-3


@pytest.mark.parametrize("detector", ["typicality", "two-tailed"])
def test_detection_before_calibration_is_one_line(given: Any, detector: str, one_line: Any) -> None:
    model = given.model(layout="digits", detector=detector)
    with pytest.raises(ModelError) as caught:
        model.ood_score(torch.rand(1, 1, 8, 8))
    text = one_line(str(caught.value))
    assert f"detector {detector}" in text
    assert "harness fit ib-inn" in text
    assert given.model(layout="digits", detector="one-tailed").ood_score(torch.rand(3, 1, 8, 8)).shape == (3,)


@pytest.mark.parametrize("detector", ["one-tailed", "typicality", "two-tailed"])
def test_noise_is_found_at_beta_1(given: Any, detector: str) -> None:
    from sklearn.metrics import roc_auc_score

    model, data = given.model(checkpoint="builtin:digits-beta1", detector=detector), given.digits("test")
    x, _ = data.load(data.ids)
    noise = torch.randint(0, 17, x.shape, generator=torch.Generator().manual_seed(0)) / 16
    scores = torch.cat([model.ood_score(x), model.ood_score(noise)])
    assert scores.dtype == torch.float64
    assert roc_auc_score([0] * len(x) + [1] * len(noise), scores.numpy()) > 0.95
