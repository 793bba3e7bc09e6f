"""Curves of likelihood between images: what is convex, means and spreads by t, comparisons by pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics.interpolation import (
    INTERPOLATION_CONVEX_SHARE,
    INTERPOLATION_LOG_PROB_MEAN,
    INTERPOLATION_LOG_PROB_SD,
    curves_of,
    is_convex,
    standard_deviations,
)
from harness.statistics import clopper_pearson

T = np.arange(24) / 23
EVERY = [INTERPOLATION_LOG_PROB_MEAN, INTERPOLATION_LOG_PROB_SD, INTERPOLATION_CONVEX_SHARE]


def rows(curves):
    """Rows as the threat returns them: all pairs at one t, then at the next."""
    curves = np.asarray(curves, dtype=float)
    n, points = curves.shape
    return {
        "sample_id": np.tile(np.arange(n) + 3, points),
        "t": np.repeat(np.arange(points) / (points - 1), n),
        "log_prob": curves.T.ravel(),
    }


def parabolas(n=100, seed=0, sag=1.0):
    """log p of a Gaussian along lines, up to its sign: a + b t + c t^2 with the sign of `sag` before c."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(-50, 5, n), rng.normal(0, 3, n), rng.exponential(20, n) + 1
    return a[:, None] + b[:, None] * T + sag * c[:, None] * T**2


@given(
    st.lists(st.tuples(st.integers(-100, 100), st.integers(0, 50), st.floats(0.1, 0.9)), min_size=1, max_size=4),
    st.integers(-10_000, 10_000),
)
def test_sums_of_kinks_and_lines_are_convex_and_their_negatives_are_not(parts, level):
    """Every convex curve is one: a line and kinks bent upwards."""
    curve = level + sum(slope * T + bend * np.maximum(T - at, 0) for slope, bend, at in parts)
    assert is_convex(curve[None])[0]
    assert is_convex(curve[None].astype(np.float32).astype(float))[0]
    bent = sum(bend for _, bend, _ in parts)
    if bent > 0.1 * max(np.ptp(curve), 1e-2 * abs(level), 1e-9):
        assert not is_convex(-curve[None])[0]


def test_a_line_is_convex_and_one_dent_is_enough_not_to_be():
    line = -3000 + 7 * T
    assert is_convex(line[None])[0]
    assert is_convex(line.astype(np.float32).astype(float)[None])[0]
    assert is_convex((T**2)[None])[0]
    assert not is_convex((-(T**2))[None])[0]
    dent = T**2
    dent[12] += 0.01
    assert not is_convex(dent[None])[0]
    assert is_convex((7 * T + 0.11 * T * (1 - T) * 4)[None])[0]
    assert not is_convex((7 * T + 0.13 * T * (1 - T) * 4)[None])[0]
    within = T**2
    within[12] += 2.0**-11  # second difference 2 / 23^2 - 2^-10 is above zero still
    assert is_convex(within[None])[0]


def test_share_of_convex_curves():
    curves = np.concatenate([parabolas(70), parabolas(30, sag=-1.0)])
    found = INTERPOLATION_CONVEX_SHARE.estimate(rows(curves), 0.95)[""]
    assert found.value == 0.7
    assert (found.low, found.high) == clopper_pearson(70, 100, 0.95)
    assert found.n == 100
    better = INTERPOLATION_CONVEX_SHARE.difference(rows(curves), rows(parabolas(100)), 0.05)[""]
    assert better.value == pytest.approx(0.3)
    assert better.p_increase < 1e-6
    assert better.low > 0.2


def test_mean_and_spread_by_t():
    curves = parabolas(200)
    mean = INTERPOLATION_LOG_PROB_MEAN.estimate(rows(curves), 0.95)
    spread = INTERPOLATION_LOG_PROB_SD.estimate(rows(curves), 0.95)
    assert list(mean) == list(spread)
    assert len(mean) == 24
    assert [e.value for e in mean.values()] == pytest.approx(curves.mean(axis=0))
    assert [e.value for e in spread.values()] == pytest.approx(curves.std(axis=0, ddof=1))
    assert all(e.low < e.value < e.high for e in [*mean.values(), *spread.values()])
    first = mean["0"]
    assert first.high - first.low == pytest.approx(2 * 1.959964 * curves[:, 0].std(ddof=1) / 200**0.5)


def test_intervals_of_the_spread_cover():
    hits = 0
    for seed in range(60):
        values = np.random.default_rng(seed).normal(size=(100, 3)) * 2
        found = INTERPOLATION_LOG_PROB_SD.estimate(rows(values), 0.9)["0.5"]
        hits += found.low <= 2 <= found.high
    assert hits / 60 >= 0.75


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(lambda w: sum(w) > 1))
def test_weighted_spread_is_that_of_the_repeated_rows(weights):
    values = np.random.default_rng(0).normal(1000, 1, size=(6, 4))
    ours = standard_deviations(values)(np.array([weights]))[:, 0]
    assert ours == pytest.approx(np.repeat(values, weights, axis=0).std(axis=0, ddof=1), abs=1e-6)


def test_runs_are_compared_by_pair():
    curves = parabolas(150)
    lower = curves - 1 - 2 * T
    mean = INTERPOLATION_LOG_PROB_MEAN.difference(rows(curves), rows(lower), 0.05)
    assert mean["0"].value == pytest.approx(-1)
    assert mean["1"].value == pytest.approx(-3)
    assert mean["1"].high < -2.99
    wider = INTERPOLATION_LOG_PROB_SD.difference(rows(curves), rows(2 * curves), 0.05)
    assert wider["0"].value == pytest.approx(curves[:, 0].std(ddof=1))
    assert wider["0"].p_increase < 0.01


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: type(metric).__name__)
def test_a_run_against_itself_and_rows_in_any_order(metric):
    found = rows(parabolas(60))
    for change in metric.difference(found, found, 0.05).values():
        assert change.value == 0
        assert change.low <= 0 <= change.high
    order = np.random.default_rng(1).permutation(60 * 24)
    shuffled = {name: column[order] for name, column in found.items()}
    first, second = metric.estimate(found, 0.95), metric.estimate(shuffled, 0.95)
    for key, estimate in first.items():
        assert second[key].value == pytest.approx(estimate.value)
        assert second[key].low == pytest.approx(estimate.low)


def test_a_curve_that_lacks_a_point_is_left_out_and_an_infinite_one_is_a_reason():
    curves = parabolas(20)
    whole = rows(curves)
    part = {name: column[:-1] for name, column in whole.items()}
    assert curves_of(part).log_prob.shape == (19, 24)
    assert INTERPOLATION_CONVEX_SHARE.estimate(part, 0.95)[""].n == 19
    curves[4, 10] = -np.inf
    for metric in EVERY:
        estimates = metric.estimate(rows(curves), 0.95)
        reasons = [e.reason for e in estimates.values() if e.value is None]
        assert any("log_prob is not finite in 1 of" in reason for reason in reasons)
        assert any(d.value is None for d in metric.difference(rows(curves), rows(curves), 0.05).values())
    one = INTERPOLATION_CONVEX_SHARE.estimate(rows(parabolas(1)), 0.95)[""]
    assert one.reason == "fewer than two samples"
