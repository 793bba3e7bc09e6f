"""Norms: failed attacks are infinite, never zero and never left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics.norms import L2_MEDIAN, LINF_MEAN_OF_SUCCESSES, LINF_MEDIAN, weighted_mean, weighted_median


def rows(norms, success=None, correct=None, ids=None):
    norms = np.asarray(norms, dtype=float)
    n = norms.size
    return {
        "sample_id": np.arange(n) if ids is None else ids,
        "clean_correct": np.ones(n, dtype=bool) if correct is None else np.asarray(correct, dtype=bool),
        "success": np.ones(n, dtype=bool) if success is None else np.asarray(success, dtype=bool),
        "linf": norms,
        "l2": norms * 3,
    }


@given(st.lists(st.tuples(st.floats(0, 10) | st.just(np.inf), st.integers(0, 3)), min_size=1, max_size=25))
def test_weighted_median_and_mean_are_those_of_the_repeated_rows(pairs):
    values, weights = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    ours = weighted_median(values)(weights[None])[0]
    finite = np.minimum(values, 10)
    mean = weighted_mean(finite)(weights[None])[0]
    if weights.sum() == 0:
        assert np.isnan(ours)
        assert np.isnan(mean)
    else:
        assert ours == pytest.approx(np.median(np.repeat(values, weights)))
        assert mean == pytest.approx(np.mean(np.repeat(finite, weights)))


def test_median_over_initially_correct_samples_with_failures_infinite():
    norms = np.linspace(0.01, 1, 100)
    estimate = LINF_MEDIAN.estimate(rows(norms, success=norms < 0.805), 0.95)[""]
    assert estimate.value == pytest.approx(np.median(norms))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 100
    assert L2_MEDIAN.estimate(rows(norms), 0.95)[""].value == pytest.approx(3 * np.median(norms))
    half = LINF_MEDIAN.estimate(rows(norms, correct=norms > 0.5), 0.95)[""]
    assert half.n == 50
    assert half.value == pytest.approx(np.median(norms[norms > 0.5]))


def test_a_median_that_half_the_samples_withstand_is_undefined():
    estimate = LINF_MEDIAN.estimate(rows(np.full(10, 0.1), success=np.arange(10) < 4), 0.95)[""]
    assert estimate.value is estimate.low is estimate.high is None
    assert "failed on 60.0%" in estimate.reason
    nearly = LINF_MEDIAN.estimate(rows(np.full(100, 0.1), success=np.arange(100) < 51), 0.95)[""]
    assert nearly.value is None
    assert "upper confidence limit" in nearly.reason


def test_a_failed_attack_raises_the_median_whatever_norm_is_stored():
    norms = np.linspace(0.1, 1, 101)
    all_fall = LINF_MEDIAN.estimate(rows(norms), 0.95)[""]
    some_stand = LINF_MEDIAN.estimate(rows(norms, success=np.arange(101) >= 20), 0.95)[""]
    assert some_stand.value > all_fall.value


@pytest.mark.parametrize(("correct", "reason"), [([0, 0], "classified correctly"), ([1, 0], "fewer than two")])
def test_too_few_samples_have_no_interval(correct, reason):
    estimate = LINF_MEDIAN.estimate(rows([0.1, 0.2], correct=correct), 0.95)[""]
    assert estimate.value is None
    assert reason in estimate.reason


def test_median_intervals_cover():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        estimate = LINF_MEDIAN.estimate(rows(rng.exponential(size=80)), 0.95)[""]
        hits += estimate.low <= np.log(2) <= estimate.high
    assert hits / 100 >= 0.9


def test_difference_of_medians_is_paired():
    rng = np.random.default_rng(1)
    norms = rng.exponential(size=300)
    change = LINF_MEDIAN.difference(rows(norms), rows(norms * 0.8), 0.05)[""]
    assert change.value == pytest.approx(-0.2 * np.median(norms))
    assert change.value == pytest.approx(change.candidate.value - change.baseline.value)
    assert change.low < change.value < change.high < 0
    assert change.p_decrease < 0.01
    same = LINF_MEDIAN.difference(rows(norms), rows(norms), 0.05)[""]
    assert (same.value, same.p_decrease, same.p_increase) == (0, 1, 1)


def test_a_median_that_became_infinite_has_no_difference_but_says_why():
    norms = np.full(50, 0.1)
    change = LINF_MEDIAN.difference(rows(norms), rows(norms, success=np.zeros(50)), 0.05)[""]
    assert change.value is None
    assert change.reason.startswith("candidate: the attack failed on 100.0%")


def test_mean_of_successes_leaves_failures_out_and_compares_joint_successes():
    first = rows([1, 2, 3, 9], success=[1, 1, 1, 0])
    second = rows([9, 3, 5, 1], success=[0, 1, 1, 1])
    assert LINF_MEAN_OF_SUCCESSES.estimate(first, 0.95)[""].value == pytest.approx(2)
    change = LINF_MEAN_OF_SUCCESSES.difference(first, second, 0.05)[""]
    assert change.n == 2
    assert (change.baseline.value, change.candidate.value) == (2.5, 4)
    assert change.value == pytest.approx(1.5)
    none = LINF_MEAN_OF_SUCCESSES.estimate(rows([1, 2], success=[0, 0]), 0.95)[""]
    assert none.value is None
    assert none.reason == "no attack succeeded"


def test_several_rows_of_a_sample_are_one_cluster():
    norms = np.random.default_rng(2).exponential(size=80)
    single = LINF_MEDIAN.estimate(rows(norms), 0.95)[""]
    copied = LINF_MEDIAN.estimate(rows(np.repeat(norms, 4), ids=np.repeat(np.arange(80), 4)), 0.95)[""]
    assert copied == single
