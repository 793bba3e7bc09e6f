"""Attacked against clean images of the same samples: intervals by image, only successes, thresholds from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from harness.metrics.attacked_detection import DETECTION_AUROC_OF_ATTACKED, EVASION_RATE
from harness.metrics.detection import AUROC


def rows(clean, attacked, wrong=None, correct=None, thresholds=(2.0, 1.5, 1.0)):
    clean, attacked = np.asarray(clean, dtype=float), np.asarray(attacked, dtype=float)
    n = clean.size
    found = {
        "sample_id": np.arange(n),
        "label": np.zeros(n, dtype=int),
        "clean_correct": np.ones(n, dtype=bool) if correct is None else np.asarray(correct),
        "adversarial_prediction": np.ones(n, dtype=int) if wrong is None else np.asarray(wrong, dtype=int),
        "clean_ood_score": clean,
        "adversarial_ood_score": attacked,
    }
    accepted = attacked[:, None] <= np.asarray(thresholds)
    fooled = found["clean_correct"] & (found["adversarial_prediction"] != 0)
    return {**found, "evades_at_detector_fpr": fooled[:, None] & accepted}


def scores(n=300, shift=0.5, rho=0.9, seed=0):
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=n)
    return clean, rho * clean + np.sqrt(1 - rho**2) * rng.normal(size=n) + shift


def test_it_is_the_auroc_of_the_fooled_samples():
    clean, attacked = scores()
    wrong = np.arange(300) % 3 > 0
    found = DETECTION_AUROC_OF_ATTACKED.estimate(rows(clean, attacked, wrong), 0.95)[""]
    kept = np.r_[clean[wrong], attacked[wrong]]
    assert found.value == pytest.approx(roc_auc_score(np.repeat([0, 1], wrong.sum()), kept))
    assert found.n == wrong.sum()
    assert found.low < found.value < found.high


def test_an_image_that_hardly_moved_tells_more_than_two_images():
    """Scores of one image go together: DeLong's interval for independent images is far too wide."""
    clean, attacked = scores(rho=0.98)
    ours = DETECTION_AUROC_OF_ATTACKED.estimate(rows(clean, attacked), 0.95)[""]
    apart = {
        "sample_id": np.arange(600),
        "set": np.repeat(["in", "attacked"], 300),
        "ood_score": np.r_[clean, attacked],
    }
    plain = AUROC.estimate(apart, 0.95)["attacked"]
    assert ours.value == pytest.approx(plain.value)
    assert ours.high - ours.low < 0.6 * (plain.high - plain.low)


def test_its_intervals_cover():
    truth = float(np.mean([roc_auc_score(np.repeat([0, 1], 2000), np.r_[scores(2000, seed=s)]) for s in range(20)]))
    hits = 0
    for seed in range(100, 300):
        found = DETECTION_AUROC_OF_ATTACKED.estimate(rows(*scores(80, seed=seed)), 0.95)[""]
        hits += found.low <= truth <= found.high
    assert 0.9 <= hits / 200 <= 0.995


def test_below_a_half_is_over_fooled():
    clean, attacked = scores(shift=-1.0)
    assert DETECTION_AUROC_OF_ATTACKED.estimate(rows(clean, attacked), 0.95)[""].high < 0.5


def test_without_successes_it_is_undefined():
    clean, attacked = scores(10)
    found = DETECTION_AUROC_OF_ATTACKED.estimate(rows(clean, attacked, wrong=np.zeros(10)), 0.95)[""]
    assert found.value is None
    assert "fewer than two" in found.reason


def test_runs_are_compared_on_samples_fooled_in_both():
    clean, attacked = scores()
    wrong, later = np.arange(300) % 2 == 0, np.arange(300) % 3 == 0
    change = DETECTION_AUROC_OF_ATTACKED.difference(
        rows(clean, attacked, wrong), rows(clean, attacked - 0.5, later), 0.05
    )[""]
    both = wrong & later
    before, after = (
        roc_auc_score(np.repeat([0, 1], both.sum()), np.r_[clean[both], a[both]]) for a in (attacked, attacked - 0.5)
    )
    assert change.value == pytest.approx(after - before)
    assert change.n >= both.sum()
    assert change.p_decrease < 0.01


def test_evasion_is_misclassified_and_accepted_by_those_first_correct():
    found = EVASION_RATE.estimate(
        rows([0] * 5, [0.9, 1.2, 1.9, 0.0, 0.0], wrong=[1, 1, 1, 0, 1], correct=[1, 1, 1, 1, 0]), 0.95
    )
    assert {rate: e.value for rate, e in found.items()} == {"1%": 0.75, "5%": 0.5, "10%": 0.25}
    assert found["1%"].n == 4
    change = EVASION_RATE.difference(rows([0] * 50, [0.5] * 50), rows([0] * 50, [3.0] * 50), 0.05)
    assert change["5%"].value == -1
    assert change["5%"].p_decrease < 0.01


def test_nobody_correct_is_no_rate():
    found = EVASION_RATE.estimate(rows([0] * 3, [0] * 3, correct=[False] * 3), 0.95)["1%"]
    assert found.value is None
    assert "no sample is classified correctly" in found.reason
