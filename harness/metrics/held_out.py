"""Do test images look like the reference ones? Two-tailed p-values, and the gap in likelihood.

The reference images are what `ModelView.reference` was made of: 1,000 of the train split, or the suite's `heldout`.

Both read the rows of in-distribution images (`set` "in") of an out-of-distribution cell with several scores, and say
nothing where the score that they need is not among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from harness.metrics.base import Estimate, PairedDifference, Rows, undefined
from harness.metrics.detection import IN
from harness.metrics.paired import compared, incomparable
from harness.statistics import (
    Difference,
    Floats,
    Interval,
    Statistic,
    bootstrap_difference,
    mean_difference,
    normal_difference,
    once,
    sampling_units,
)

_TOO_FEW = "fewer than two images"


def _inside(rows: Rows, score: str) -> NDArray[np.int64]:
    """The rows of in-distribution images under a score."""
    sets, scores = (np.asarray(rows[name]).astype(str) for name in ("set", "score"))
    return np.flatnonzero((sets == IN) & (scores == score))


def kolmogorov_distance(p_values: Floats) -> Statistic:
    """Largest distance of the p-values' distribution function from that of uniform ones (Kolmogorov-Smirnov)."""
    order = np.argsort(p_values, kind="stable")
    ordered = p_values[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    levels = ordered[ends]

    def statistic(weights: NDArray[Any]) -> Floats:
        after = np.cumsum(weights[:, order], axis=-1)[:, ends] / weights.sum(axis=-1, keepdims=True)
        before = np.concatenate([np.zeros((len(after), 1)), after[:, :-1]], axis=1)
        return np.asarray(np.maximum(np.abs(after - levels), np.abs(levels - before)).max(axis=-1))

    return statistic


@dataclass(frozen=True)
class TwoTailedUniformity:
    """Distance from uniform of the two-tailed test's p-values of test images (Mackowiak et al. 2021, appendix A.1).

    The p-value is twice the smaller share of reference images that are less, or more, likely: twice the negated score
    "two-tailed", at least 0. It is uniform where test images are like those. Interval by the bound of Dvoretzky,
    Kiefer, Wolfowitz and Massart (1990) for two samples: the n images and the `held_out_count` reference ones.
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        which = _inside(rows, "two-tailed")
        return {"": self._estimate(rows, which, level)} if which.size else {}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        which = _inside(baseline, "two-tailed")
        if not which.size:
            return {}
        before, after = (self._estimate(rows, which, 1 - alpha) for rows in (baseline, candidate))
        if before.value is None or after.value is None:
            return {"": incomparable(before.n, before, after)}
        old, new = (kolmogorov_distance(_p_values(rows, which)) for rows in (baseline, candidate))
        (change,) = bootstrap_difference(old, new, sampling_units(np.asarray(baseline["sample_id"])[which]), alpha)
        if change.high - change.low < 1e-13:  # no image changed anything: still not certain
            change = normal_difference(change.value, 0.0, [before.n], alpha)
        return {"": compared(change, before.n, before, after, alpha)}

    def _estimate(self, rows: Rows, which: NDArray[np.int64], level: float) -> Estimate:
        p_values = _p_values(rows, which)
        n = p_values.size
        if n < 2 or np.isnan(p_values).any():
            return undefined(n, _TOO_FEW if n < 2 else "a score is NaN")
        value = float(kolmogorov_distance(p_values)(once(n))[0])
        reference = int(np.asarray(rows["held_out_count"])[which[0]])
        reach = math.sqrt(math.log(2 / (1 - level)) / 2 * (1 / n + 1 / reference))
        return Estimate(value, max(value - reach, 0.0), min(value + reach, 1.0), n)


def _p_values(rows: Rows, which: NDArray[np.int64]) -> Floats:
    return np.asarray(np.clip(-2 * np.asarray(rows["ood_score"], dtype=float)[which], 0.0, 1.0))


@dataclass(frozen=True)
class LikelihoodGap:
    """Mean log p of test images less that of the reference ones, nats.

    Below 0 where the model overfits, if the reference images are of those it was trained on. Their mean and its
    standard error are columns `held_out_log_prob` and `held_out_log_prob_error`; normal intervals with the errors of
    all means, in a difference as if the two runs' reference means were independent: wide enough for any pairing.
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        which = _inside(rows, "log-likelihood")
        if not which.size:
            return {}
        change = self._change(rows, which)
        n = change.size
        if n < 2 or not np.isfinite(change).all():
            return {"": undefined(n, _TOO_FEW if n < 2 else "a log-likelihood is not finite")}
        error = math.hypot(
            float(change.std(ddof=1)) / math.sqrt(n), float(np.asarray(rows["held_out_log_prob_error"])[which[0]])
        )
        value, reach = float(change.mean()), float(ndtri((1 + level) / 2)) * error
        interval = Interval(value - reach, value + reach)
        return {"": Estimate(value, *interval, n)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self.estimate(baseline, 1 - alpha), self.estimate(candidate, 1 - alpha)
        if not before or not after:
            return {}
        old, new = before[""], after[""]
        if old.value is None or new.value is None:
            return {"": incomparable(old.n, old, new)}
        which = _inside(baseline, "log-likelihood")
        moved = self._change(candidate, which) - self._change(baseline, which)
        error = float(moved.std(ddof=1)) / math.sqrt(moved.size)
        of_reference = (float(np.asarray(rows["held_out_log_prob_error"])[which[0]]) for rows in (baseline, candidate))
        total = math.hypot(error, *of_reference)
        if error > 0:  # contributions that have the whole error
            moved = moved.mean() + (moved - moved.mean()) * (total / error)
        change: Difference = mean_difference(moved, alpha)
        return {"": compared(change, old.n, old, new, alpha)}

    def _change(self, rows: Rows, which: NDArray[np.int64]) -> Floats:
        held_out = np.asarray(rows["held_out_log_prob"], dtype=float)[which]
        return np.asarray(-np.asarray(rows["ood_score"], dtype=float)[which] - held_out)


TWO_TAILED_UNIFORMITY = TwoTailedUniformity()
HELD_OUT_LIKELIHOOD_GAP = LikelihoodGap()
