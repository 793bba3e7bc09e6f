"""Detection metrics: scikit-learn gives the point values; sets, macro averages, saturation and NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from harness.metrics.detection import (
    AUPR_IN,
    AUPR_OUT,
    AUPR_PREVALENCE,
    AUROC,
    AUROC_BY_DISTANCE,
    DETECTION_ACCURACY,
    FPR_ID_AT_95_TPR_OOD,
    FPR_OOD_AT_95_TPR_ID,
    FPR_OOD_AT_95_TPR_ID_BY_DISTANCE,
    TIED_SCORES,
    images_of,
)
from harness.metrics.detection_statistics import (
    average_precision,
    detection_accuracy,
    false_positive_rate,
    id_rejected,
    roc_points,
    saturated_average_precision,
    tied_pairs,
)

ALL = (AUROC, AUPR_OUT, AUPR_IN, FPR_OOD_AT_95_TPR_ID, FPR_ID_AT_95_TPR_OOD, DETECTION_ACCURACY)
RATES = (FPR_OOD_AT_95_TPR_ID, FPR_ID_AT_95_TPR_OOD)  # lower is better


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
    fpr, tpr, _ = roc_curve(labels, both, drop_intermediate=False)
    assert id_rejected(x, y)(once(x, y))[0] == pytest.approx(fpr[tpr >= 0.95 - 1e-12].min())
    assert detection_accuracy(x, y)(once(x, y))[0] == pytest.approx(((1 - fpr + tpr) / 2).max())
    assert tied_pairs(x, y)(once(x, y))[0] == pytest.approx((x[:, None] == y).mean())


@given(scores, scores)
@settings(deadline=None)
def test_the_points_of_a_small_roc_curve_are_scikit_learns(inside, outside):
    x, y = np.array(inside, float), np.array(outside, float)
    labels, both = np.r_[np.zeros(x.size), np.ones(y.size)], np.r_[x, y]
    fpr, tpr = roc_points(x, y)
    wanted = roc_curve(labels, both, drop_intermediate=False)
    np.testing.assert_allclose(fpr, wanted[0])
    np.testing.assert_allclose(tpr, wanted[1])


def test_a_long_roc_curve_is_thinned_and_keeps_its_ends_and_area():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=3000), np.r_[rng.normal(1, 1, 5000), np.inf]
    fpr, tpr = roc_points(x, y)
    assert 150 < fpr.size <= 200
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    wanted = roc_auc_score(np.r_[np.zeros(3000), np.ones(5001)], np.r_[x, y[:-1], 1e9])
    assert np.trapezoid(tpr, fpr) == pytest.approx(wanted, abs=2e-3)


@given(scores, scores, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_weights_are_repetitions(inside, outside, seed):
    x, y = np.array(inside, float), np.array(outside, float)
    weights = np.random.default_rng(seed).integers(1, 4, x.size + y.size)
    wx, wy = np.repeat(x, weights[: x.size]), np.repeat(y, weights[x.size :])
    for statistic in (false_positive_rate, average_precision, id_rejected, detection_accuracy, tied_pairs):
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
    assert constant.value == (1.0 if metric in RATES else 0.5)
    perfect = metric.estimate(rows(np.zeros(100), a=np.ones(100)), 0.95)["a"]
    assert perfect.value == (0 if metric in RATES else 1)
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


def test_ties_are_counted_and_no_ties_keep_a_width():
    r = rows([0.0, 0, 1, 2], a=[0.0, 3, 3, 2], b=[5.0, 6])
    found = TIED_SCORES.estimate(r, 0.95)
    assert found["a"].value == pytest.approx(3 / 16)
    assert (found["b"].value, found["b"].low) == (0, 0)
    assert found["b"].high > 0.5  # two images show little
    assert found[""].value == pytest.approx(3 / 32)


def several(**shifts):
    """The same images under two scores, named out of the alphabet's order."""
    first, second = (normal_rows(seed, **shifts) for seed in (1, 2))
    both = {name: np.concatenate([first[name], second[name]]) for name in first}
    return first, second, {**both, "score": np.repeat(["own", "energy"], len(first["set"]))}


@pytest.mark.parametrize("metric", [*ALL, TIED_SCORES])
def test_each_score_is_judged_by_itself_and_the_first_keeps_its_names(metric):
    first, second, both = several(near=0.5, far=2.0)
    found = metric.estimate(both, 0.95)
    assert set(found) == {"", "near", "far", "mean,energy", "near,energy", "far,energy"}
    alone, other = metric.estimate(first, 0.95), metric.estimate(second, 0.95)
    for variant in ("", "near", "far"):
        assert found[variant] == alone[variant]
        assert found[f"{variant or 'mean'},energy"] == other[variant]
    one = {**first, "score": np.repeat("own", len(first["set"]))}
    assert metric.estimate(one, 0.95) == alone
    worse = {
        **both,
        "ood_score": both["ood_score"] - np.where(both["score"] == "energy", 0.4, 0) * (both["set"] != "in"),
    }
    changes = metric.difference(both, worse, 0.05)
    assert changes["near"].value == 0
    if metric is not TIED_SCORES:
        assert changes["near,energy"].value != 0


def test_sets_are_averaged_by_distance():
    _, second, both = several(a=0.5, b=1.0, c=2.0, d=0.0)
    distance = {"in": "", "a": "near", "b": "near", "c": "far", "d": ""}
    both["distance"] = np.array([distance[name] for name in both["set"]])
    for metric, of_sets in ((AUROC_BY_DISTANCE, AUROC), (FPR_OOD_AT_95_TPR_ID_BY_DISTANCE, FPR_OOD_AT_95_TPR_ID)):
        found, each = metric.estimate(both, 0.95), of_sets.estimate(both, 0.95)
        assert set(found) == {"near", "far", "near,energy", "far,energy"}
        assert found["near"].value == pytest.approx((each["a"].value + each["b"].value) / 2)
        assert found["far"].value == each["c"].value
        assert found["near,energy"].value == pytest.approx((each["a,energy"].value + each["b,energy"].value) / 2)
        assert set(metric.difference(both, both, 0.05)) == set(found)
    second["distance"] = np.repeat("", len(second["set"]))
    assert AUROC_BY_DISTANCE.estimate(second, 0.95) == {}


def test_the_prevalence_that_an_aupr_has_to_beat():
    _, _, both = several(a=0.5)
    both = {name: values[:-100] for name, values in both.items()}
    small = rows(np.zeros(300), a=np.zeros(100), b=np.zeros(500))
    found = AUPR_PREVALENCE.estimate(small, 0.95)
    assert {name: e.value for name, e in found.items()} == {"a": 0.25, "b": 0.625, "": 0.4375}
    assert AUPR_PREVALENCE.estimate(both, 0.95).keys() == {"", "a"}
    assert AUPR_OUT.estimate(small, 0.95)["a"].value == 0.25  # constant scores
    assert AUPR_PREVALENCE.difference(small, small, 0.05)["a"].value == 0


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
    significant = change.p_increase if metric in RATES else change.p_decrease
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


def test_a_rate_that_is_zero_in_nearly_all_resamples_keeps_a_width():
    inside, outside = np.linspace(0, 1, 100), np.append(np.full(99, 5.0), 0.9501)
    scores = {
        "sample_id": np.arange(200),
        "set": np.repeat(["in", "far"], 100).astype(object),
        "score": np.repeat("own", 200).astype(object),
        "ood_score": np.append(inside, outside),
    }
    found = FPR_OOD_AT_95_TPR_ID.estimate(scores, 0.95)["far"]
    assert found.low <= found.value < found.high


def of_another_data_set(n, shift, rng):
    """Rows of images that go with the suite's samples, but are no versions of them."""
    found = rows(rng.normal(size=n), svhn=rng.normal(shift, 1, n))
    foreign = found["set"] == "svhn"
    ids = np.tile(np.arange(n), 2)
    return {**found, "sample_id": ids, "image_id": ids + 7, "set_size": np.where(foreign, 1000, 0)}


def test_images_of_other_data_are_images_of_their_own():
    ids = np.array([4, 5, 4, 5, 4, 5, 4])
    found = images_of({
        "sample_id": ids, "image_id": np.array([4, 5, 4, 5, 0, 1, 0]), "set_size": np.array([0, 0, 0, 0, 9, 9, 30]),
        "set": np.array(["in", "in", "rotated", "rotated", "svhn", "svhn", "mnist"], dtype=object),
    })  # fmt: skip
    assert found[:4].tolist() == [4, 5, 4, 5]
    assert len({*found[4:].tolist(), 4, 5}) == 5
    assert images_of({"sample_id": ids}).tolist() == ids.tolist()


def test_no_interval_is_wider_for_ids_that_other_data_only_borrow():
    apart = of_another_data_set(60, 9.0, np.random.default_rng(0))
    borrowed = {name: column for name, column in apart.items() if name not in ("image_id", "set_size")}
    for metric in (AUROC, DETECTION_ACCURACY):
        wide, found = (metric.estimate(r, 0.95)["svhn"] for r in (borrowed, apart))
        assert found.value == wide.value == 1
    assert AUROC.estimate(apart, 0.95)["svhn"].low > AUROC.estimate(borrowed, 0.95)["svhn"].low
    same = rows(np.arange(60), svhn=np.arange(60) + 100)
    assert AUROC.estimate(apart, 0.95)["svhn"].low == AUROC.estimate(same, 0.95)["svhn"].low


@pytest.mark.parametrize(("shift", "least"), [(0.0, 0.92), (1.2, 0.92), (2.5, 0.9)])
def test_auroc_intervals_of_other_data_cover(shift, least):
    rng = np.random.default_rng(3)
    truth = float(norm.cdf(shift / np.sqrt(2)))
    trials = 300
    found = [AUROC.estimate(of_another_data_set(80, shift, rng), 0.95)["svhn"] for _ in range(trials)]
    covered = sum(e.low <= truth <= e.high for e in found) / trials
    assert least <= covered <= 0.985


@pytest.mark.parametrize("metric", ALL)
def test_differences_of_other_data_are_of_the_same_images(metric):
    before = of_another_data_set(60, 1.0, np.random.default_rng(1))
    after = {**before, "ood_score": before["ood_score"] + np.where(before["set"] == "in", 0, 0.5)}
    change = metric.difference(before, after, 0.05)["svhn"]
    assert change.low < change.value < change.high
    better = -1 if metric in RATES else 1
    assert better * change.value > 0
