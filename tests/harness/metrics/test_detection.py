"""Detection metrics: scikit-learn gives the point values; sets, macro averages, saturation and NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from harness.metrics.detection import (
    AUPR_IN,
    AUPR_OUT,
    AUROC,
    FPR_OOD_AT_95_TPR_ID,
    average_precision,
    false_positive_rate,
    saturated_average_precision,
)

ALL = (AUROC, AUPR_OUT, AUPR_IN, FPR_OOD_AT_95_TPR_ID)


def rows(inside, **sets):
    scores = [np.asarray(inside, dtype=float), *(np.asarray(v, dtype=float) for v in sets.values())]
    names = ["in"] * scores[0].size + [k for k, v in zip(sets, scores[1:], strict=True) for _ in v]
    total = sum(v.size for v in scores)
    return {"sample_id": np.arange(total), "set": np.array(names, dtype=object), "ood_score": np.concatenate(scores)}


def normal_rows(seed=0, n=200, **shifts):
    rng = np.random.default_rng(seed)
    return rows(rng.normal(size=n), **{k: rng.normal(v, 1, n) for k, v in shifts.items()})


def once(*arrays):
    return np.ones((1, sum(a.size for a in arrays)), dtype=np.int64)


scores = st.lists(st.integers(0, 12), min_size=1, max_size=50)


@given(scores, scores)
@settings(deadline=None)
def test_point_values_are_scikit_learns_with_ties(inside, outside):
    x, y = np.array(inside, float), np.array(outside, float)
    labels, both = np.r_[np.zeros(x.size), np.ones(y.size)], np.r_[x, y]
    assert average_precision(x, y)(once(x, y))[0] == pytest.approx(average_precision_score(labels, both))
    assert average_precision(-y, -x, positives_first=True)(once(x, y))[0] == pytest.approx(
        average_precision_score(1 - labels, -both)
    )
    fpr, tpr, _ = roc_curve(1 - labels, -both, drop_intermediate=False)
    assert false_positive_rate(x, y)(once(x, y))[0] == pytest.approx(fpr[tpr >= 0.95 - 1e-12].min())


@given(scores, scores, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_weights_are_repetitions(inside, outside, seed):
    x, y = np.array(inside, float), np.array(outside, float)
    weights = np.random.default_rng(seed).integers(1, 4, x.size + y.size)
    wx, wy = np.repeat(x, weights[: x.size]), np.repeat(y, weights[x.size :])
    for statistic in (false_positive_rate, average_precision):
        assert statistic(x, y)(weights[None])[0] == pytest.approx(statistic(wx, wy)(once(wx, wy))[0])


def test_each_set_has_a_number_and_the_whole_is_their_mean():
    r = normal_rows(near=0.5, far=2.0)
    for metric in ALL:
        found = metric.estimate(r, 0.95)
        assert set(found) == {"", "near", "far"}
        assert found[""].value == pytest.approx((found["near"].value + found["far"].value) / 2)
        assert (found[""].n, found["near"].n) == (600, 400)
        for estimate in found.values():
            assert 0 <= estimate.low < estimate.value < estimate.high <= 1
    x, y = (r["ood_score"][r["set"] == name] for name in ("in", "near"))
    assert AUROC.estimate(r, 0.95)["near"].value == pytest.approx(roc_auc_score([0] * 200 + [1] * 200, np.r_[x, y]))


def test_a_single_set_is_the_whole():
    found = AUPR_OUT.estimate(normal_rows(only=1.0), 0.95)
    assert found[""] == found["only"]


@pytest.mark.parametrize("metric", ALL)
def test_constant_scores_and_perfect_separation_keep_a_width(metric):
    constant = metric.estimate(rows(np.zeros(100), a=np.zeros(100)), 0.95)["a"]
    assert constant.value == {AUROC: 0.5, FPR_OOD_AT_95_TPR_ID: 1.0}.get(metric, 0.5)
    perfect = metric.estimate(rows(np.zeros(100), a=np.ones(100)), 0.95)["a"]
    assert perfect.value == (0 if metric is FPR_OOD_AT_95_TPR_ID else 1)
    for estimate in (constant, perfect):
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.high - estimate.low > 0.02


def test_saturated_average_precision_bounds_the_worst_population_it_allows():
    n, m, level = 60, 80, 0.95
    low, high = saturated_average_precision(n, m, level)
    q0, q1 = (1 - 0.025 ** (1 / k) for k in (n, m))
    size = 200_000
    ratio = n / m
    negatives = int(size * ratio)
    x = np.where(np.arange(negatives) < q0 * negatives, 3.0, 1.0) + 0.5 * np.linspace(0, 1, negatives)
    y = np.where(np.arange(size) < q1 * size, 0.0, 2.0) + 0.5 * np.linspace(0, 1, size)
    labels = np.r_[np.zeros(negatives), np.ones(size)]
    assert high == 1
    assert low == pytest.approx(average_precision_score(labels, np.r_[x, y]), abs=1e-4)
    assert saturated_average_precision(10_000, 10_000, level).low > 0.99


def test_nan_scores_undo_their_set_and_the_mean_only():
    r = normal_rows(good=1.0, bad=1.0)
    r["ood_score"][-3:] = np.nan
    for metric in ALL:
        found = metric.estimate(r, 0.95)
        assert found["good"].value is not None
        assert found["bad"].value is None
        assert found[""].value is None
        assert found["bad"].reason == "3 of 400 ood_score values are NaN"
        change = metric.difference(normal_rows(good=1.0, bad=1.0), r, 0.05)
        assert change["good"].value is not None
        assert change["bad"].value is None
        assert "candidate: 3 of" in change[""].reason


@pytest.mark.parametrize(
    ("r", "reason"),
    [
        (rows([0.0, 1.0]), "no out-of-distribution set"),
        (rows([], a=[1.0, 2.0]), "fewer than two"),
        (rows([0.0, 1.0], a=[2.0]), "fewer than two"),
    ],
)
def test_rows_that_lack_images_are_undefined(r, reason):
    for metric in ALL:
        estimate = metric.estimate(r, 0.95)[""]
        assert estimate.value is None
        assert reason in estimate.reason


def test_infinite_scores_are_ordinary():
    r = rows(np.r_[-np.inf, np.zeros(99)], a=np.r_[np.full(50, np.inf), np.zeros(50)])
    for metric in ALL:
        assert metric.estimate(r, 0.95)["a"].value is not None
    assert AUROC.estimate(r, 0.95)["a"].value == pytest.approx(0.5 + 0.5 * 0.505)


@pytest.mark.parametrize("metric", ALL)
def test_differences_are_paired(metric):
    base = normal_rows(near=1.0, far=2.0)
    worse = dict(base, ood_score=base["ood_score"] + np.where(base["set"] == "near", -0.5, 0.0))
    found = metric.difference(base, worse, 0.05)
    assert set(found) == {"", "near", "far"}
    change = found["near"]
    assert change.value == pytest.approx(change.candidate.value - change.baseline.value)
    assert change.low <= change.value <= change.high
    significant = change.p_increase if metric is FPR_OOD_AT_95_TPR_ID else change.p_decrease
    assert significant < 0.01
    assert found["far"].value == 0
    assert found["far"].low < 0 < found["far"].high  # no image changed, and still not certain
    assert found["far"].spread > 0


@pytest.mark.slow
@pytest.mark.parametrize("metric", [AUPR_OUT, FPR_OOD_AT_95_TPR_ID])
def test_bootstrap_intervals_cover(metric):
    big = normal_rows(99, 200_000, a=1.5)
    x, y = (big["ood_score"][big["set"] == name] for name in ("in", "a"))
    statistic = average_precision(x, y) if metric is AUPR_OUT else false_positive_rate(x, y)
    truth = statistic(once(x, y))[0]
    hits = 0
    for seed in range(120):
        estimate = metric.estimate(normal_rows(seed, 150, a=1.5), 0.95)["a"]
        hits += estimate.low <= truth <= estimate.high
    assert hits / 120 >= 0.88


def test_images_shared_with_the_in_distribution_are_resampled_together():
    rng = np.random.default_rng(3)
    x = rng.normal(size=150)
    y = x + 0.7 + rng.normal(0, 0.05, 150)  # the same images, attacked
    apart = rows(x, attacked=y)
    shared = dict(apart, sample_id=np.tile(np.arange(150), 2))
    for metric in (AUROC, AUPR_OUT):
        wide, narrow = metric.estimate(apart, 0.95)["attacked"], metric.estimate(shared, 0.95)["attacked"]
        assert narrow.value == wide.value
        assert narrow.high - narrow.low < 0.7 * (wide.high - wide.low)
