"""Mean model cost."""

from __future__ import annotations

import numpy as np
import pytest

from harness.metrics.cost import BACKWARDS_MEAN, FORWARDS_MEAN


def rows(counts, ids=None):
    counts = np.asarray(counts)
    return {
        "sample_id": np.arange(counts.size) if ids is None else ids,
        "forwards": counts,
        "backwards": counts + 1,
    }


def test_mean_with_its_normal_interval():
    counts = np.random.default_rng(0).integers(1, 41, 500)
    estimate = FORWARDS_MEAN.estimate(rows(counts), 0.95)[""]
    assert estimate.value == pytest.approx(counts.mean())
    half = 1.959964 * counts.std(ddof=1) / np.sqrt(500)
    assert (estimate.low, estimate.high) == (pytest.approx(counts.mean() - half), pytest.approx(counts.mean() + half))
    assert BACKWARDS_MEAN.estimate(rows(counts), 0.95)[""].value == pytest.approx(counts.mean() + 1)


def test_several_rows_of_a_sample_are_one_cluster():
    counts = np.random.default_rng(1).integers(1, 41, 50)
    copied = FORWARDS_MEAN.estimate(rows(np.repeat(counts, 6), np.repeat(np.arange(50), 6)), 0.95)[""]
    single = FORWARDS_MEAN.estimate(rows(counts), 0.95)[""]
    assert (copied.low, copied.n) == (pytest.approx(single.low), 50)


def test_difference_is_paired():
    counts = np.random.default_rng(2).integers(1, 41, 200)
    change = FORWARDS_MEAN.difference(rows(counts), rows(counts + 3), 0.05)[""]
    assert (change.value, change.low, change.high) == (3, 3, 3)
    noisy = FORWARDS_MEAN.difference(rows(counts), rows(counts + 1 + np.arange(200) % 2), 0.05)[""]
    assert noisy.value == pytest.approx(1.5)
    assert 1.4 < noisy.low < noisy.high < 1.6
    assert noisy.p_increase < 1e-6


def test_one_sample_has_no_interval():
    assert FORWARDS_MEAN.estimate(rows([3]), 0.95)[""].value is None
    assert FORWARDS_MEAN.difference(rows([3]), rows([4]), 0.05)[""].value is None


def test_no_number_of_evaluations_is_below_nothing() -> None:
    estimate = FORWARDS_MEAN.estimate(rows(np.array([0, 0, 0, 100])), 0.95)[""]
    assert estimate.low == 0
