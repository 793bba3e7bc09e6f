"""Measures of flipped bits: closed forms, intervals that cover, pairing, and no verdict in any of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from harness.metrics.bitflip import (
    BITFLIP_ACCURACY,
    BITFLIP_ACCURACY_CHANGE,
    BITFLIP_AUROC,
    BITFLIP_BITS_PER_DIM,
    BITFLIP_LOGIT_CHANGE,
    DELTA_BITS_PER_DIM,
    SIGNED_DELTA_BITS_PER_DIM,
    AbsoluteMean,
    absolute,
)
from harness.statistics import Interval, paired_proportions

EVERY = [
    BITFLIP_BITS_PER_DIM,
    DELTA_BITS_PER_DIM,
    SIGNED_DELTA_BITS_PER_DIM,
    BITFLIP_ACCURACY,
    BITFLIP_ACCURACY_CHANGE,
    BITFLIP_LOGIT_CHANGE,
    BITFLIP_AUROC,
]


def rows(bits, correct=None, scores=None, pi=(0.0, 0.5, 1.0)):
    """Rows of n samples at each pi, from (len(pi), n) columns."""
    bits = np.asarray(bits, dtype=float)
    k, n = bits.shape
    correct = np.ones((k, n), dtype=bool) if correct is None else np.asarray(correct, dtype=bool)
    scores = bits if scores is None else np.asarray(scores, dtype=float)
    return {
        "sample_id": np.tile(np.arange(n) + 7, k),
        "pi": np.repeat(pi, n),
        "bits_per_dim": bits.ravel(),
        "delta_bits_per_dim": (bits - bits[0]).ravel(),
        "correct": correct.ravel(),
        "logit_change": np.abs(bits - bits[0]).ravel(),
        "ood_score": scores.ravel(),
    }


def random_rows(n=200, shift=0.3, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    clean = 3 + rng.normal(size=n)
    moved = [clean + k * shift / 2 + spread * k * 0.1 * rng.normal(size=n) for k in range(3)]
    correct = rng.random((3, n)) < np.array([0.9, 0.8, 0.7])[:, None]
    return rows(moved, correct)


def test_bits_and_deltas_are_means_by_pi_with_paired_intervals():
    found = random_rows()
    bits = found["bits_per_dim"].reshape(3, -1)
    estimates = BITFLIP_BITS_PER_DIM.estimate(found, 0.95)
    assert list(estimates) == ["0", "0.5", "1"]
    for key, row in zip(estimates, bits, strict=True):
        assert estimates[key].value == pytest.approx(row.mean())
        assert estimates[key].high - estimates[key].low == pytest.approx(2 * 1.959964 * row.std(ddof=1) / 200**0.5)
    delta, signed = (metric.estimate(found, 0.95) for metric in (DELTA_BITS_PER_DIM, SIGNED_DELTA_BITS_PER_DIM))
    assert list(delta) == list(signed) == ["0.5", "1"]
    assert signed["1"].value == pytest.approx((bits[2] - bits[0]).mean())
    assert delta["1"].value == pytest.approx(abs(bits[2].mean() - bits[0].mean()))
    # Paired: the spread of the images themselves, ten times that of the changes, is not in it.
    assert delta["1"].high - delta["1"].low < 0.3 * (estimates["1"].high - estimates["1"].low)
    assert delta["1"].n == 200


def test_a_fall_is_as_large_as_a_rise():
    bits = random_rows()["bits_per_dim"].reshape(3, -1)
    up, down = DELTA_BITS_PER_DIM.estimate(rows(bits), 0.9)["1"], DELTA_BITS_PER_DIM.estimate(rows(-bits), 0.9)["1"]
    assert (up.value, up.low, up.high) == pytest.approx((down.value, down.low, down.high))
    signed = SIGNED_DELTA_BITS_PER_DIM.estimate(rows(-bits), 0.9)["1"]
    assert signed.high < 0


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(0, 1))
def test_the_absolute_interval_holds_every_absolute_value(low, width, where):
    interval = Interval(low, low + width)
    found = absolute(interval)
    assert 0 <= found.low <= abs(low + where * width) * (1 + 1e-12) + 1e-300
    assert abs(low + where * width) <= found.high * (1 + 1e-12)


@pytest.mark.parametrize("mean", [0.0, 0.05, -0.3])
def test_intervals_of_the_absolute_mean_cover(mean):
    hits = 0
    for seed in range(400):
        change = np.random.default_rng(seed).normal(mean, 1, size=100)
        found = DELTA_BITS_PER_DIM.estimate(rows([np.zeros(100), change], pi=(0.0, 1.0)), 0.9)["1"]
        assert found.low <= found.value <= found.high
        hits += found.low <= abs(mean) <= found.high
    assert hits / 400 >= 0.87


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (0.5, 0.5), (0.05, -0.05), (-0.4, 0.2)])
def test_bounds_of_a_change_of_absolute_means_cover(before, after):
    """Also at the kink, where a mean is 0 and its sign is anybody's guess."""
    metric, below, above = AbsoluteMean("delta_bits_per_dim"), 0, 0
    for seed in range(400):
        noise = np.random.default_rng(seed).normal(size=(2, 100))
        moved = noise + np.array([[before], [after]])
        old, new = ({"sample_id": np.arange(100), "delta_bits_per_dim": values} for values in moved)
        change = metric.difference(old, new, 0.05)[""]
        assert change.low <= change.value <= change.high
        truth = abs(after) - abs(before)
        below += change.low > truth
        above += change.high < truth
    assert max(below, above) / 400 <= 0.075


def test_a_worse_run_is_told_from_its_baseline():
    bits = random_rows()["bits_per_dim"].reshape(3, -1)
    worse = bits + np.array([0, 0.1, 0.2])[:, None]
    change = DELTA_BITS_PER_DIM.difference(rows(bits), rows(worse), 0.05)["1"]
    assert change.value == pytest.approx(0.2)
    assert change.p_increase < 1e-6
    assert change.p_decrease > 0.5
    better = BITFLIP_BITS_PER_DIM.difference(rows(bits), rows(bits - 0.1), 0.05)
    assert better["0"].value == pytest.approx(-0.1)
    assert better["0"].high < 0


def test_accuracy_change_is_paired():
    found = random_rows(n=300)
    correct = found["correct"].reshape(3, -1)
    estimates = BITFLIP_ACCURACY_CHANGE.estimate(found, 0.95)
    assert list(estimates) == ["0.5", "1"]
    lost, gained = int((correct[0] & ~correct[2]).sum()), int((~correct[0] & correct[2]).sum())
    expected = paired_proportions(lost, gained, 300, 0.025)
    assert estimates["1"].value == pytest.approx(correct[2].mean() - correct[0].mean())
    assert (estimates["1"].low, estimates["1"].high) == (expected.low, expected.high)
    shares = BITFLIP_ACCURACY.estimate(found, 0.95)
    assert [e.value for e in shares.values()] == pytest.approx(correct.mean(axis=1))


def test_accuracy_that_falls_further_in_the_candidate():
    n = 300
    first = np.ones((3, n), dtype=bool)
    second = first.copy()
    second[2, : n // 5] = False
    change = BITFLIP_ACCURACY_CHANGE.difference(rows(np.zeros((3, n)), first), rows(np.zeros((3, n)), second), 0.05)
    assert change["1"].value == pytest.approx(-0.2)
    assert change["1"].low < -0.2 < change["1"].high < 0
    assert change["1"].p_decrease < 1e-6
    assert change["0.5"].value == 0
    assert change["0.5"].low < 0 < change["0.5"].high
    # The changes of two runs can differ by 2: one loses all that the other gains.
    wrong = np.zeros((3, n), dtype=bool)
    gains, loses = wrong.copy(), wrong.copy()
    gains[1:], loses[0] = True, True
    extreme = BITFLIP_ACCURACY_CHANGE.difference(rows(np.zeros((3, n)), loses), rows(np.zeros((3, n)), gains), 0.05)
    assert extreme["1"].value == pytest.approx(2)


def test_detection_is_the_auroc_against_the_same_images_clean():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=150)
    scores = np.stack([clean, clean + 0.1, clean + 0.4 + 0.1 * rng.normal(size=150)])
    found = BITFLIP_AUROC.estimate(rows(np.zeros((3, 150)), scores=scores), 0.95)
    assert list(found) == ["0.5", "1"]
    expected = roc_auc_score(np.repeat([0, 1], 150), np.r_[scores[0], scores[2]])
    assert found["1"].value == pytest.approx(expected)
    assert found["1"].n == 150
    # A score that moves with its image says more than two unrelated images would.
    shuffled = np.stack([scores[0], scores[1], rng.permutation(scores[2])])
    apart = BITFLIP_AUROC.estimate(rows(np.zeros((3, 150)), scores=shuffled), 0.95)["1"]
    assert found["1"].high - found["1"].low < 0.6 * (apart.high - apart.low)
    change = BITFLIP_AUROC.difference(
        rows(np.zeros((3, 150)), scores=scores), rows(np.zeros((3, 150)), scores=scores[[0, 1, 1]]), 0.05
    )["1"]
    assert change.value == pytest.approx(roc_auc_score(np.repeat([0, 1], 150), np.r_[scores[0], scores[1]]) - expected)
    assert change.p_decrease < 0.01


def test_a_model_that_looks_away_has_no_delta_and_nobody_calls_that_a_pass():
    found = rows(np.full((3, 50), 8.0))
    delta = DELTA_BITS_PER_DIM.estimate(found, 0.95)["1"]
    assert (delta.value, delta.low, delta.high) == (0, 0, 0)
    assert BITFLIP_AUROC.estimate(found, 0.95)["1"].value == 0.5
    assert BITFLIP_ACCURACY_CHANGE.estimate(found, 0.95)["1"].low < 0


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: repr(metric)[:40])
def test_a_run_against_itself_changed_nothing(metric):
    found = random_rows(60)
    for change in metric.difference(found, found, 0.05).values():
        assert change.value == 0
        assert change.low <= 0 <= change.high
        assert min(change.p_decrease, change.p_increase) >= 0.5


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: repr(metric)[:40])
def test_the_order_of_rows_does_not_matter(metric):
    found = random_rows(60)
    order = np.random.default_rng(1).permutation(180)
    first = metric.estimate(found, 0.95)
    second = metric.estimate({name: column[order] for name, column in found.items()}, 0.95)
    for key, estimate in first.items():
        assert second[key].value == pytest.approx(estimate.value)
        assert (second[key].low, second[key].high) == (pytest.approx(estimate.low), pytest.approx(estimate.high))


def test_an_impossible_image_is_a_reason_not_a_number():
    bits = np.full((3, 20), 4.0)
    bits[2, 3] = np.inf
    for metric in (BITFLIP_BITS_PER_DIM, DELTA_BITS_PER_DIM, SIGNED_DELTA_BITS_PER_DIM):
        found = metric.estimate(rows(bits), 0.95)
        assert found["1"].value is None
        assert "not finite in 1 of 20 rows" in found["1"].reason
        assert found["0.5"].value is not None
        assert metric.difference(rows(bits), rows(bits), 0.05)["1"].value is None
    one = DELTA_BITS_PER_DIM.estimate(rows(np.zeros((3, 1))), 0.95)["1"]
    assert one.reason == "fewer than two samples"
