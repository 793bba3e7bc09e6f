"""Likelihood along interpolations: log p by t, its spread, and how many curves are convex.

Rows hold `log_prob` (nats) of every pair at the same values of `t`; rows of one ``sample_id`` are one pair. Estimates
by t are keyed by it: "0.5". Intervals are over pairs, taken as independent: they are too narrow (80 % for 95 % at
worst) where every image is in two pairs, and right where `limit` takes a small part of the data, as 500 of 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.metrics.base import Estimate, PairedDifference, Rows, finite_or_undefined, undefined
from harness.metrics.means import TOO_FEW, AtEach, Mean, key_of, not_finite
from harness.metrics.paired import compared, incomparable
from harness.statistics import (
    Floats,
    Statistic,
    bootstrap,
    bootstrap_difference,
    clopper_pearson,
    once,
    paired_proportions,
    sampling_units,
)

CONVEX_TOLERANCE = 2.5e-4
"""How far a second difference of a convex curve may be below zero, as a share of the curve's range."""
_ROUNDING = 2.0**-22  # of the largest |log p|: three values rounded to float32, one of them counted twice


class Curves(NamedTuple):
    """The curves of n pairs at T values of t.

    Attributes:
        t: (T,), ascending.
        log_prob: (n, T), pairs in the order of their ids.
    """

    t: Floats
    log_prob: Floats

    @property
    def problem(self) -> str:
        """Why nothing can be said of the curves, or an empty string."""
        return TOO_FEW if len(self.log_prob) < 2 else not_finite(self.log_prob, "log_prob")


def curves_of(rows: Rows) -> Curves:
    """The curves that are whole: those of samples with a row at every t."""
    points, column = np.unique(np.asarray(rows["t"], dtype=np.float64), return_inverse=True)
    ids, line = np.unique(np.asarray(rows["sample_id"]), return_inverse=True)
    values = np.full((ids.size, points.size), np.nan)
    there = np.zeros(values.shape, dtype=bool)
    values[line, column] = np.asarray(rows["log_prob"], dtype=np.float64)
    there[line, column] = True
    return Curves(points, values[there.all(axis=1)])


def is_convex(log_prob: Floats) -> NDArray[np.bool_]:
    """Which curves (n, T), at evenly spaced t, are convex: no second difference below minus the tolerance.

    f(k - 1) - 2 f(k) + f(k + 1) >= -(max f - min f) / 4000 - max |f| / 2^22 at every inner point k: room for an
    inexact integral, and for values rounded to float32. A straight line is convex. With 24 points, so is one that bows
    upwards by less than 1.6 % of its range.
    """
    second = np.diff(log_prob, n=2, axis=1)
    tolerance = CONVEX_TOLERANCE * np.ptp(log_prob, axis=1) + _ROUNDING * np.abs(log_prob).max(axis=1)
    convex: NDArray[np.bool_] = (second >= -tolerance[:, None]).all(axis=1)
    return convex


@dataclass(frozen=True)
class ConvexShare:
    """Share of pairs along which log p is convex (`is_convex`): Clopper-Pearson; difference by McNemar.

    Convex is as it should be: the mixture of two images is less likely than they are (Zimmermann et al. 2021, fig. 2).
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {"": self._estimate(curves_of(rows), level)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        old, new = curves_of(baseline), curves_of(candidate)
        before, after = self._estimate(old, 1 - alpha), self._estimate(new, 1 - alpha)
        if before.value is None or after.value is None:
            return {"": incomparable(before.n, before, after)}
        was, now = is_convex(old.log_prob), is_convex(new.log_prob)
        change = paired_proportions(int((was & ~now).sum()), int((~was & now).sum()), was.size, alpha)
        return {"": compared(change, was.size, before, after, alpha)}

    def _estimate(self, curves: Curves, level: float) -> Estimate:
        n = len(curves.log_prob)
        if curves.problem:
            return undefined(n, curves.problem)
        convex = is_convex(curves.log_prob)
        return Estimate(float(convex.mean()), *clopper_pearson(int(convex.sum()), n, level), n)


@dataclass(frozen=True)
class Spread:
    """Standard deviation of log p over pairs at each t; bootstrap over pairs, the same resamples at every t."""

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        curves = curves_of(rows)
        n = len(curves.log_prob)
        if curves.problem:
            return {key_of(t): undefined(n, curves.problem) for t in curves.t}
        statistic = standard_deviations(curves.log_prob)
        result = bootstrap(statistic, sampling_units(np.arange(n)), level)
        values = statistic(once(n))[:, 0]
        return {
            key_of(t): finite_or_undefined(float(v), float(low), float(high), n, "a resample has no spread")
            for t, v, low, high in zip(curves.t, values, result.low, result.high, strict=True)
        }

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self.estimate(baseline, 1 - alpha), self.estimate(candidate, 1 - alpha)
        old, new = curves_of(baseline), curves_of(candidate)
        if old.problem or new.problem:
            return {key: incomparable(before[key].n, before[key], after[key]) for key in before}
        n = len(old.log_prob)
        was, now = standard_deviations(old.log_prob), standard_deviations(new.log_prob)
        changes = bootstrap_difference(was, now, sampling_units(np.arange(n)), alpha)
        return {
            key: compared(change, n, before[key], after[key], alpha)
            for key, change in zip(before, changes, strict=True)
        }


def standard_deviations(values: Floats) -> Statistic:
    """Of each column of `values` (n, T), each row counted as often as its weight: (T, B), by n - 1 of the weights."""
    centred = values - values.mean(axis=0)

    def statistic(weights: NDArray[Any]) -> Floats:
        total = weights.sum(axis=-1, keepdims=True)
        mean = weights @ centred / total
        variance = (weights @ centred**2 / total - mean**2) * total / (total - 1)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)).T)

    return statistic


INTERPOLATION_LOG_PROB_MEAN = AtEach(Mean("log_prob"), "t")
INTERPOLATION_LOG_PROB_SD = Spread()
INTERPOLATION_CONVEX_SHARE = ConvexShare()
