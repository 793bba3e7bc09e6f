"""How well a score tells out-of-distribution from in-distribution images.

Rows hold `ood_score` (higher is more out-of-distribution) and `set`: "in", or the name of an out-of-distribution set.
Estimates are keyed by the set's name, and by "" for the mean over the sets, which all share the images "in". A NaN
score makes the numbers of its set undefined; infinite scores are fine. Images are the units: rows of one ``sample_id``
are one image, also across sets (attacked against clean images).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.metrics.base import Estimate, PairedDifference, Rows, finite_or_undefined, undefined
from harness.metrics.paired import compared, incomparable
from harness.statistics import (
    AurocComponents,
    Floats,
    Interval,
    Statistic,
    Units,
    atom_interval,
    auroc_components,
    auroc_difference,
    auroc_interval,
    bootstrap,
    bootstrap_difference,
    clopper_pearson,
    sampling_units,
)

IN = "in"


class Groups(NamedTuple):
    """The row numbers of the images "in" and of one or more out-of-distribution sets."""

    inside: NDArray[np.int64]
    outside: tuple[NDArray[np.int64], ...]

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.concatenate([self.inside, *self.outside])


def groups_by_key(rows: Rows) -> dict[str, Groups]:
    """One entry per set, and "" for all of them together."""
    names = np.asarray(rows["set"]).astype(str)
    inside = np.flatnonzero(names == IN)
    outside = {str(name): np.flatnonzero(names == name) for name in np.unique(names) if name != IN}
    return {"": Groups(inside, tuple(outside.values())), **{k: Groups(inside, (v,)) for k, v in outside.items()}}


def problem(rows: Rows, groups: Groups) -> str:
    """Why nothing can be said of these rows, or an empty string."""
    if not groups.outside:
        return "there is no out-of-distribution set"
    ids = np.asarray(rows["sample_id"])
    if any(np.unique(ids[g]).size < 2 for g in (groups.inside, *groups.outside)):
        return 'a set (or "in") has fewer than two images'
    broken = int(np.isnan(np.asarray(rows["ood_score"], dtype=float)[groups.rows]).sum())
    return f"{broken} of {groups.rows.size} ood_score values are NaN" if broken else ""


class _PerSet(Protocol):
    """What the two kinds of detection metric implement for one key."""

    def one(self, rows: Rows, groups: Groups, level: float) -> Estimate: ...

    def change(
        self, baseline: Rows, candidate: Rows, groups: Groups, before: Estimate, after: Estimate, alpha: float
    ) -> PairedDifference: ...


def _estimates(metric: _PerSet, rows: Rows, level: float) -> dict[str, Estimate]:
    keyed = groups_by_key(rows)
    out: dict[str, Estimate] = {}
    for key, groups in reversed(keyed.items()):
        reason = problem(rows, groups)
        if reason:
            out[key] = undefined(groups.rows.size, reason)
        elif key == "" and len(keyed) == 2:  # the mean over a single set is that set
            out[key] = next(iter(out.values()))
        else:
            out[key] = metric.one(rows, groups, level)
    return {key: out[key] for key in keyed}


def _differences(metric: _PerSet, baseline: Rows, candidate: Rows, alpha: float) -> dict[str, PairedDifference]:
    before, after = _estimates(metric, baseline, 1 - alpha), _estimates(metric, candidate, 1 - alpha)
    out: dict[str, PairedDifference] = {}
    for key, groups in groups_by_key(baseline).items():
        if before[key].value is None or after[key].value is None:
            out[key] = incomparable(groups.rows.size, before[key], after[key])
        else:
            out[key] = metric.change(baseline, candidate, groups, before[key], after[key], alpha)
    return out


def _scores(rows: Rows, groups: Groups) -> tuple[Floats, list[Floats]]:
    scores = np.asarray(rows["ood_score"], dtype=float)
    return scores[groups.inside], [scores[g] for g in groups.outside]


@dataclass(frozen=True)
class Auroc:
    """Probability that an out-of-distribution image scores above one "in", ties counting half (DeLong intervals)."""

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return _estimates(self, rows, level)

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        return _differences(self, baseline, candidate, alpha)

    def one(self, rows: Rows, groups: Groups, level: float) -> Estimate:
        components = self._components(rows, groups)
        low, high = auroc_interval(components, level, np.asarray(rows["sample_id"])[groups.rows])
        return Estimate(components.value, low, high, groups.rows.size)

    def change(
        self, baseline: Rows, candidate: Rows, groups: Groups, before: Estimate, after: Estimate, alpha: float
    ) -> PairedDifference:
        ids = np.asarray(baseline["sample_id"])[groups.rows]
        change = auroc_difference(self._components(baseline, groups), self._components(candidate, groups), alpha, ids)
        return compared(change, groups.rows.size, before, after)

    @staticmethod
    def _components(rows: Rows, groups: Groups) -> AurocComponents:
        return auroc_components(*_scores(rows, groups))


def false_positive_rate(inside: Floats, outside: Floats, tpr: float = 0.95) -> Statistic:
    """Share of out-of-distribution images accepted by a detector that accepts `tpr` of the images "in".

    In-distribution is the positive class. An image is accepted when its score is at most t, and t is the smallest
    score that accepts at least `tpr` of the images "in". Weights: rows "in" first, then the others.
    """
    order = np.argsort(inside, kind="stable")
    ordered, n = inside[order], inside.size

    def statistic(weights: NDArray[Any]) -> float:
        counts = np.cumsum(weights[:n][order])
        # Compared in exact multiples: 0.95 * n in floating point may lie just above an integer.
        threshold = ordered[np.searchsorted(counts, math.ceil(round(tpr * counts[-1], 9)))]
        out = weights[n:]
        return float(out @ (outside <= threshold) / out.sum())

    return statistic


def average_precision(negatives: Floats, positives: Floats, positives_first: bool = False) -> Statistic:
    """Area under the precision-recall curve as a sum over thresholds, sum of (R_k - R_(k-1)) P_k, as in scikit-learn.

    Tied scores share a threshold. Weights are ordered negatives, positives, or the other way with `positives_first`.
    """
    parts = (positives, negatives) if positives_first else (negatives, positives)
    scores = np.concatenate(parts)
    positive = np.concatenate([np.full(p.size, p is positives) for p in parts])
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    positive = positive[order]

    def statistic(weights: NDArray[Any]) -> float:
        drawn = weights[order]
        found = np.cumsum(drawn * positive)[ends]
        precision = found / np.maximum(np.cumsum(drawn)[ends], 1)
        return float(np.diff(found, prepend=0) @ precision / found[-1])

    return statistic


def saturated_average_precision(n: int, m: int, level: float) -> Interval:
    """Interval of the average precision where n negatives and m positives were separated perfectly.

    With confidence `level` at most a share q0 of negatives lies above the largest of n seen, and at most q1 of
    positives below the smallest of m seen (Wilks's tolerance limits, 1941; half of the error each). The worst case
    that this allows is q0 of the negatives above all positives and q1 of the positives below all negatives; with
    precision r / (r + c) at recall r, c the negatives passed per positive, its area is what `low` is.
    """
    q0, q1 = (1 - ((1 - level) / 2) ** (1 / size) for size in (n, m))
    ratio = n / m

    def area(recall: float, c: float) -> float:
        return recall - c * math.log1p(recall / c)

    return Interval(area(1 - q1, ratio * q0) + area(1, ratio) - area(1 - q1, ratio), 1.0)


def _fpr_limits(value: float, n: int, m: int, level: float) -> Interval:  # noqa: ARG001
    return clopper_pearson(value * m, m, level)


def _aupr_out_limits(value: float, n: int, m: int, level: float) -> Interval:
    return saturated_average_precision(n, m, level) if value == 1 else atom_interval(value, min(n, m), level)


def _aupr_in_limits(value: float, n: int, m: int, level: float) -> Interval:
    return _aupr_out_limits(value, m, n, level)


@dataclass(frozen=True)
class Bootstrapped:
    """The mean over the sets of a statistic of the scores, bootstrapped over images within "in" and within each set.

    A set that shares images with "in" is resampled together with it. `statistic` takes the scores "in" and those of a
    set; `limits(value, n, m, level)` is the interval where every resample gave the same value, as with perfect
    separation, and the bootstrap would claim certainty.
    """

    statistic: Callable[[Floats, Floats], Statistic]
    limits: Callable[[float, int, int, float], Interval]

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return _estimates(self, rows, level)

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        return _differences(self, baseline, candidate, alpha)

    def one(self, rows: Rows, groups: Groups, level: float) -> Estimate:
        inside, sets = _scores(rows, groups)
        mean = self._mean(inside, sets)
        value = mean(np.ones(groups.rows.size, dtype=np.int64))
        low, high, distribution = bootstrap(mean, _units(rows, groups), level)
        if np.ptp(distribution) == 0:
            each = [self.limits(self._mean(inside, [s])(np.ones(inside.size + s.size)), inside.size, s.size, level)
                    for s in sets]  # fmt: skip
            low, high = (float(np.mean(side)) for side in zip(*each, strict=True))
        return finite_or_undefined(value, low, high, groups.rows.size, "a resample has no value: too few images")

    def change(
        self, baseline: Rows, candidate: Rows, groups: Groups, before: Estimate, after: Estimate, alpha: float
    ) -> PairedDifference:
        old, new = (self._mean(*_scores(rows, groups)) for rows in (baseline, candidate))
        units = _units(baseline, groups)
        change = bootstrap_difference(old, new, units, alpha, bounded=True)
        return compared(change, sum(units.strata), before, after)

    def _mean(self, inside: Floats, sets: list[Floats]) -> Statistic:
        statistics = [self.statistic(inside, s) for s in sets]
        n = inside.size
        starts = np.cumsum([n, *(s.size for s in sets)])
        parts = [np.r_[0:n, a:b] for a, b in pairwise(starts)]
        if len(statistics) == 1:
            return statistics[0]
        return lambda w: float(np.mean([s(w[part]) for s, part in zip(statistics, parts, strict=True)]))


def _units(rows: Rows, groups: Groups) -> Units:
    ids = np.asarray(rows["sample_id"])
    strata = [np.zeros(groups.inside.size, dtype=np.int64)]
    for number, outside in enumerate(groups.outside, start=1):
        shared = np.isin(ids[outside], ids[groups.inside]).any()
        strata.append(np.full(outside.size, 0 if shared else number))
    return sampling_units(ids[groups.rows], np.concatenate(strata))


def _aupr_out(inside: Floats, outside: Floats) -> Statistic:
    return average_precision(inside, outside)


def _aupr_in(inside: Floats, outside: Floats) -> Statistic:
    return average_precision(-outside, -inside, positives_first=True)


AUROC = Auroc()
FPR_OOD_AT_95_TPR_ID = Bootstrapped(false_positive_rate, _fpr_limits)
AUPR_OUT = Bootstrapped(_aupr_out, _aupr_out_limits)
AUPR_IN = Bootstrapped(_aupr_in, _aupr_in_limits)
