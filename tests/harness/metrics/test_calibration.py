"""Calibration errors by hand and by simulation, the risk-coverage curve by brute force, and their diagrams."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from harness_attacks.clean import certainty, class_confidence
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.metrics.calibration import (
    AURC,
    EXPECTED_CALIBRATION_ERROR,
    MAXIMUM_CALIBRATION_ERROR,
    OVERCONFIDENCE_ERROR,
    one_against_all,
    reliability_diagram,
    risk_coverage,
    risk_coverage_curve,
    top_label,
)
from harness.models import CONFIDENCE_BINS

ALL = (EXPECTED_CALIBRATION_ERROR, MAXIMUM_CALIBRATION_ERROR, OVERCONFIDENCE_ERROR, AURC)
EDGES = np.array(CONFIDENCE_BINS)


def rows_of(logits, labels):
    """Rows as the clean threat writes them."""
    logits, labels = torch.as_tensor(logits, dtype=torch.float64), torch.as_tensor(labels)
    columns = certainty(logits, labels) | class_confidence(logits)
    rows = {name: values.numpy() for name, values in columns.items()}
    correct = (logits.argmax(dim=1) == labels).numpy()
    return {**rows, "sample_id": np.arange(len(labels)), "clean_correct": correct, "ood_score": -rows["confidence"]}


def calibrated(n=2000, classes=5, seed=0, temperature=1.0):
    """Labels drawn from the very probabilities that the logits say; with a temperature below 1, overconfident."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.5, (n, classes))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    labels = (rng.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, classes - 1)
    return rows_of(logits / temperature, labels)


def test_the_bins_of_the_clean_rows():
    assert len(CONFIDENCE_BINS) == 30
    assert np.allclose(np.diff(EDGES)[[0, 6, 7, 21, 22, 28]], [0.05 / 7, 0.05 / 7, 0.06, 0.06, 0.05 / 7, 0.05 / 7])
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    p = logits.softmax(dim=1).numpy()
    found = class_confidence(logits)
    for row, count, total in zip(p, found["class_confidence_count"], found["class_confidence_sum"], strict=True):
        np.testing.assert_array_equal(count, np.histogram(row, EDGES)[0])
        np.testing.assert_allclose(total, np.histogram(row, EDGES, weights=row)[0])


def test_one_against_all_is_equations_17_and_18():
    rows = calibrated(400, temperature=0.5)
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, (400, 5)) / 0.5
    p = torch.from_numpy(logits).softmax(dim=1).numpy()
    label = np.exp(-rows["negative_log_likelihood"])
    place = np.clip(np.searchsorted(EDGES, p, side="right") - 1, 0, 28)
    home = np.clip(np.searchsorted(EDGES, label, side="right") - 1, 0, 28)
    n = np.bincount(place.ravel(), minlength=29)
    confidence = np.bincount(place.ravel(), p.ravel(), 29) / np.maximum(n, 1)
    right = np.bincount(home, minlength=29) / np.maximum(n, 1)
    gap = np.abs(confidence - right)
    ece, mce = EXPECTED_CALIBRATION_ERROR.estimate(rows, 0.95)[""], MAXIMUM_CALIBRATION_ERROR.estimate(rows, 0.95)[""]
    assert ece.value == pytest.approx((n * gap).sum() / n.sum())
    assert mce.value == pytest.approx(gap[n > 20].max())
    assert ece.n == 400


def test_top_label_is_guos():
    rows = calibrated(300, temperature=0.5)
    c, right = rows["confidence"], rows["clean_correct"]
    gaps = {
        b: (inside.sum(), abs(c[inside].mean() - right[inside].mean()))
        for b in range(15)
        if (inside := np.minimum((c * 15).astype(int), 14) == b).any()
    }
    found = EXPECTED_CALIBRATION_ERROR.estimate(rows, 0.95)["top_label"]
    assert found.value == pytest.approx(sum(n * gap for n, gap in gaps.values()) / 300)
    found = MAXIMUM_CALIBRATION_ERROR.estimate(rows, 0.95)["top_label"]
    assert found.value == pytest.approx(max(gap for n, gap in gaps.values() if n > 20))


def test_an_overconfident_model_is_found_out():
    good, bad = calibrated(), calibrated(temperature=0.4)
    for metric in (EXPECTED_CALIBRATION_ERROR, MAXIMUM_CALIBRATION_ERROR):
        for view in ("", "top_label"):
            before, after = metric.estimate(good, 0.95)[view], metric.estimate(bad, 0.95)[view]
            assert 0 <= before.low <= before.value <= before.high <= 1
            assert before.low < after.low <= after.value <= after.high <= 1
            if metric is EXPECTED_CALIBRATION_ERROR:
                assert before.high < after.low
            change = metric.difference(good, bad, 0.05)[view]
            if metric is EXPECTED_CALIBRATION_ERROR:
                assert change.p_increase < 0.01
            assert change.low <= change.value == pytest.approx(after.value - before.value)
            still = metric.difference(good, good, 0.05)[view]
            assert still.value == 0
            assert still.low < 0 < still.high


def test_the_interval_of_a_calibrated_model_holds_the_error_of_the_population():
    hits = []
    big = calibrated(200_000, seed=999)
    truth = EXPECTED_CALIBRATION_ERROR.statistic(top_label(big))(np.ones((1, 200_000)))[0]
    assert truth < 0.01
    for seed in range(40):
        found = EXPECTED_CALIBRATION_ERROR.estimate(calibrated(500, seed=seed), 0.95)["top_label"]
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) >= 0.85


def test_overconfidence_is_the_paper_s_example():
    n = 1000
    rows = {"sample_id": np.arange(n + 50), "confidence": np.r_[np.full(n, 0.998), np.full(50, 0.9)]}
    rows["clean_correct"] = np.r_[np.arange(n) >= 11, np.zeros(50, bool)]  # 1.1 % of the confident are wrong
    found = OVERCONFIDENCE_ERROR.estimate(rows, 0.95)[""]
    assert found.value == pytest.approx(1.1 / 0.3)
    assert found.low < found.value < found.high
    assert found.n == n
    better = dict(rows, clean_correct=np.r_[np.arange(n) >= 3, np.zeros(50, bool)])
    change = OVERCONFIDENCE_ERROR.difference(rows, better, 0.05)[""]
    assert change.value == pytest.approx(-0.8 / 0.3)
    assert change.low < change.value < change.high < 0
    assert change.candidate.value == pytest.approx(1.0)
    none = dict(rows, confidence=np.full(n + 50, 0.5))
    assert "0.997" in OVERCONFIDENCE_ERROR.estimate(none, 0.95)[""].reason
    assert OVERCONFIDENCE_ERROR.difference(rows, none, 0.05)[""].value is None


def brute_force_area(score, wrong):
    """The mean over all orders that the scores allow of the mean error rate of the first k."""
    order = np.argsort(score, kind="stable")
    groups = [list(g) for _, g in itertools.groupby(order, key=lambda i: score[i])]
    areas = []
    for parts in itertools.product(*(itertools.permutations(g) for g in groups)):
        errors = np.cumsum(wrong[list(itertools.chain(*parts))])
        areas.append((errors / np.arange(1, len(score) + 1)).mean())
    return np.mean(areas)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
@settings(deadline=None)
def test_the_area_under_the_risk_coverage_curve_with_ties(pairs):
    score, wrong = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    found = risk_coverage(score, wrong)(np.ones((1, len(pairs)), dtype=int))[0]
    assert found == pytest.approx(brute_force_area(score, wrong))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3)), min_size=1, max_size=8))
@settings(deadline=None)
def test_weights_of_the_area_are_repetitions(triples):
    score, wrong, weights = (np.array(column) for column in zip(*triples, strict=True))
    if weights.sum():
        found = risk_coverage(score.astype(float), wrong)(weights[None])[0]
        again = risk_coverage(np.repeat(score, weights).astype(float), np.repeat(wrong, weights))
        assert found == pytest.approx(again(np.ones((1, weights.sum()), dtype=int))[0])


def test_rejecting_by_a_good_score_pays():
    rows = calibrated(800)
    n = len(rows["sample_id"])
    error = 1 - rows["clean_correct"].mean()
    useless = dict(rows, ood_score=np.zeros(n))
    found, flat = AURC.estimate(rows, 0.95)[""], AURC.estimate(useless, 0.95)[""]
    assert flat.value == pytest.approx(error)
    assert 0 <= found.low < found.value < found.high < flat.low
    change = AURC.difference(useless, rows, 0.05)[""]
    assert change.p_decrease < 0.01
    assert change.value == pytest.approx(found.value - flat.value)
    right = dict(rows, clean_correct=np.ones(n, bool))
    assert AURC.estimate(right, 0.95)[""].value == 0
    assert 0 < AURC.estimate(right, 0.95)[""].high < 0.01
    assert AURC.estimate(dict(rows, ood_score=np.full(n, np.nan)), 0.95)[""].value is None


def test_diagrams():
    rows = calibrated(3000)
    for view in (one_against_all, top_label):
        diagram = reliability_diagram(view(rows), 0.99)
        assert (diagram.low <= diagram.accuracy).all()
        assert (diagram.accuracy <= diagram.high).all()
        inside = (diagram.low <= diagram.confidence) & (diagram.confidence <= diagram.high)
        assert inside.mean() > 0.9
        assert (np.diff(diagram.confidence) > 0).all()
    assert top_label(rows).predictions.sum() == 3000
    assert one_against_all(rows).predictions.sum() == 15000
    coverage, risk = risk_coverage_curve(rows["ood_score"], ~rows["clean_correct"])
    assert coverage.size == 200
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(1 - rows["clean_correct"].mean())
    assert risk[20] < risk[-1]


def test_one_sample_says_nothing():
    rows = {name: values[:1] for name, values in calibrated(5).items()}
    for metric in (EXPECTED_CALIBRATION_ERROR, AURC):
        estimate = metric.estimate(rows, 0.95)[""]
        assert estimate.value is None
        assert estimate.reason == "fewer than two samples"
    assert EXPECTED_CALIBRATION_ERROR.difference(rows, rows, 0.05)[""].value is None
