"""Sizes of perturbations. A failed attack is censored: its norm is infinite, neither zero nor left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.accuracy import Mask, clean_correct, fallen
from harness.metrics.base import Estimate, PairedDifference, Rows, finite_or_undefined, undefined
from harness.metrics.paired import compared, incomparable
from harness.statistics import Floats, Statistic, bootstrap, bootstrap_difference, sampling_units

_TOO_FEW = "fewer than two samples to resample"


def weighted_median(values: Floats) -> Statistic:
    """The median of `values` (rows,), +inf allowed, each row counted as often as its weight; NaN without weight."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]

    def statistic(weights: NDArray[Any]) -> Floats:
        counts = np.cumsum(weights[:, order], axis=-1)
        half = counts[:, -1] / 2
        lower = [np.searchsorted(c, h, "left") for c, h in zip(counts, half, strict=True)]
        upper = [np.searchsorted(c, h, "right") for c, h in zip(counts, half, strict=True)]
        last = ordered.size - 1
        median = (ordered[np.minimum(lower, last)] + ordered[np.minimum(upper, last)]) / 2
        return np.where(half > 0, median, np.nan)

    return statistic


def weighted_mean(values: Floats) -> Statistic:
    """The mean of finite `values` (rows,), each row counted as often as its weight; NaN without weight."""

    def statistic(weights: NDArray[Any]) -> Floats:
        total = weights.sum(axis=-1)
        mean: Floats = np.divide(weights @ values, total, out=np.full(total.shape, np.nan), where=total > 0)
        return mean

    return statistic


@dataclass(frozen=True)
class MedianNorm:
    """Median norm of the perturbation over the initially correct samples, failed attacks infinite.

    Undefined, with a reason, where half of them or more withstood the attack. Bootstrap over samples. The difference
    resamples the same samples for both models, each with the samples that it classifies correctly itself. A success
    shared from a smaller budget comes with the norm of the image found there.
    """

    norm: str

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {"": self._estimate(rows, level)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self._estimate(baseline, 1 - alpha), self._estimate(candidate, 1 - alpha)
        units = sampling_units(np.asarray(baseline["sample_id"]))
        n = units.strata[0] if units.strata else 0
        if before.value is None or after.value is None:
            return {"": incomparable(n, before, after)}
        (change,) = bootstrap_difference(self._statistic(baseline), self._statistic(candidate), units, alpha)
        return {"": compared(change, n, before, after, alpha)}

    def _censored(self, rows: Rows) -> Floats:
        return np.where(fallen(rows), np.asarray(rows[self.norm], dtype=float), np.inf)

    def _statistic(self, rows: Rows) -> Statistic:
        correct = clean_correct(rows)
        median = weighted_median(self._censored(rows)[correct])
        return lambda weights: median(weights[:, correct])

    def _estimate(self, rows: Rows, level: float) -> Estimate:
        correct = clean_correct(rows)
        if not correct.any():
            return undefined(0, "no sample is classified correctly before the attack")
        values = self._censored(rows)[correct]
        units = sampling_units(np.asarray(rows["sample_id"])[correct])
        n = units.strata[0]
        failed = f"the attack failed on {np.isinf(values).mean():.1%} of the initially correct samples"
        value = float(np.median(values))
        if not np.isfinite(value):
            return undefined(n, f"{failed}: the median is infinite")
        if n < 2:
            return undefined(n, _TOO_FEW)
        result = bootstrap(weighted_median(values), units, level)
        reason = f"{failed}: the median's upper confidence limit is infinite"
        return finite_or_undefined(value, float(result.low), float(result.high), n, reason)


@dataclass(frozen=True)
class MeanNormOfSuccesses:
    """Mean norm over the successful attacks only; bootstrap over samples.

    A stronger model can lower it (only its weak samples fall), so it has no direction. The difference is over the
    samples on which the attack succeeded against both models, and its two estimates are of those samples.
    """

    norm: str

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {"": self._estimate(rows, fallen(rows), level)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        joint = fallen(baseline) & fallen(candidate)
        before = self._estimate(baseline, joint, 1 - alpha)
        after = self._estimate(candidate, joint, 1 - alpha)
        if before.value is None or after.value is None:
            return {"": incomparable(before.n, before, after)}
        units = sampling_units(np.asarray(baseline["sample_id"])[joint])
        old, new = (weighted_mean(np.asarray(rows[self.norm], dtype=float)[joint]) for rows in (baseline, candidate))
        (change,) = bootstrap_difference(old, new, units, alpha)
        return {"": compared(change, before.n, before, after, alpha)}

    def _estimate(self, rows: Rows, among: Mask, level: float) -> Estimate:
        if not among.any():
            return undefined(0, "no attack succeeded")
        values = np.asarray(rows[self.norm], dtype=float)[among]
        units = sampling_units(np.asarray(rows["sample_id"])[among])
        n = units.strata[0]
        if n < 2:
            return undefined(n, _TOO_FEW)
        result = bootstrap(weighted_mean(values), units, level)
        return finite_or_undefined(
            float(values.mean()), float(result.low), float(result.high), n, f"{self.norm} is not finite"
        )


LINF_MEDIAN = MedianNorm("linf")
L2_MEDIAN = MedianNorm("l2")
LINF_MEAN_OF_SUCCESSES = MeanNormOfSuccesses("linf")
L2_MEAN_OF_SUCCESSES = MeanNormOfSuccesses("l2")
