"""Smallest norms: failures are infinite; robust accuracy at every budget from one run."""

from __future__ import annotations

import numpy as np
import pytest

from harness.metrics.minimal_norm import MINIMAL_NORM_MEDIAN, ROBUST_ACCURACY_AT, budget_text


def rows(norms, curve=(0.1, 8 / 255), correct=None):
    norms = np.asarray(norms, dtype=float)
    return {
        "sample_id": np.arange(norms.size),
        "clean_correct": norms > 0 if correct is None else np.asarray(correct),
        "minimal_norm": norms,
        "curve": np.tile(curve, (norms.size, 1)),
    }


def test_the_median_is_over_initially_correct_samples():
    norms = np.concatenate([np.zeros(20), np.linspace(0.1, 1, 101)])
    found = MINIMAL_NORM_MEDIAN.estimate(rows(norms), 0.95)[""]
    assert found.value == pytest.approx(0.55)
    assert found.n == 101
    assert found.low < found.value < found.high


def test_a_failed_attack_is_infinite_and_a_median_of_failures_undefined():
    some = MINIMAL_NORM_MEDIAN.estimate(rows([*np.linspace(0.1, 1, 100), *[np.inf] * 20]), 0.95)[""]
    none = MINIMAL_NORM_MEDIAN.estimate(rows(np.linspace(0.1, 1, 100)), 0.95)[""]
    assert some.value > none.value
    most = MINIMAL_NORM_MEDIAN.estimate(rows([0.1, 0.2, np.inf, np.inf, np.inf]), 0.95)[""]
    assert most.value is most.low is most.high is None
    assert "failed on 60.0%" in most.reason
    assert "infinite" in most.reason


def test_medians_are_compared_on_the_same_samples():
    norms = np.random.default_rng(0).exponential(size=200) + 0.01
    change = MINIMAL_NORM_MEDIAN.difference(rows(norms), rows(norms * 0.7), 0.05)[""]
    assert change.value == pytest.approx(-0.3 * np.median(norms))
    assert change.high < 0
    assert change.p_decrease < 0.01
    lost = MINIMAL_NORM_MEDIAN.difference(rows(norms), rows(np.full(200, np.inf)), 0.05)[""]
    assert lost.value is None
    assert lost.reason.startswith("candidate: the attack failed")


def test_the_curve_counts_larger_norms_and_clean_errors_never():
    found = ROBUST_ACCURACY_AT.estimate(rows([0, 0.05, 0.1, 0.2, np.inf], curve=(0.0, 0.1, 1.0)), 0.95)
    assert {eps: e.value for eps, e in found.items()} == {"0": 0.8, "0.1": 0.4, "1": 0.2}
    for estimate in found.values():
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.n == 5


def test_curves_are_compared_where_both_have_a_point():
    first = rows(np.linspace(0.01, 0.3, 100))
    second = rows(np.linspace(0.01, 0.2, 100), curve=(0.1, 0.15))
    change = ROBUST_ACCURACY_AT.difference(first, second, 0.05)
    assert change["0.1"].value == pytest.approx(0.53 - 0.69, abs=0.01)
    assert change["0.1"].p_decrease < 0.01
    assert change["8/255"].value is None
    assert "no budget 8/255" in change["8/255"].reason


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "8/255"), (0.2, "0.2"), (1.0, "1"), (0.031, "0.031"), (0, "0")])
def test_budgets_are_named_as_people_write_them(eps, text):
    assert budget_text(eps) == text
