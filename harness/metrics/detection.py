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
    Difference,
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
    normal_difference,
    once,
    sampling_units,
)

IN = "in"


class Groups(NamedTuple):
    """The row numbers of the images "in" and of one or more out-of-distribution sets."""

    inside: NDArray[np.int64]
    outside: dict[str, NDArray[np.int64]]

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.concatenate([self.inside, *self.outside.values()])

    def alone(self, name: str) -> Groups:
        return Groups(self.inside, {name: self.outside[name]})

    @property
    def each(self) -> list[Groups]:
        """All sets together, then each by itself."""
        return [self, *(self.alone(name) for name in self.outside)]


def groups_of(rows: Rows) -> Groups:
    names = np.asarray(rows["set"]).astype(str)
    outside = {str(name): np.flatnonzero(names == name) for name in np.unique(names) if name != IN}
    return Groups(np.flatnonzero(names == IN), outside)


def problem(rows: Rows, groups: Groups) -> str:
    """Why nothing can be said of these rows, or an empty string."""
    if not groups.outside:
        return "there is no out-of-distribution set"
    ids = np.asarray(rows["sample_id"])
    if any(np.unique(ids[g]).size < 2 for g in (groups.inside, *groups.outside.values())):
        return 'a set (or "in") has fewer than two images'
    broken = int(np.isnan(np.asarray(rows["ood_score"], dtype=float)[groups.rows]).sum())
    return f"{broken} of {groups.rows.size} ood_score values are NaN" if broken else ""


class _OfSets(Protocol):
    """What a detection metric implements for sets without a problem: one number for the mean, then one per set."""

    def of_sets(self, rows: Rows, groups: Groups, level: float) -> list[Estimate]: ...

    def changes(self, baseline: Rows, candidate: Rows, groups: Groups, alpha: float) -> list[Difference]: ...


def _estimates(metric: _OfSets, rows: Rows, level: float) -> dict[str, Estimate]:
    everything = groups_of(rows)
    sound = {k: v for k, v in everything.outside.items() if not problem(rows, everything.alone(k))}
    reason = problem(rows, everything)
    out = {"": undefined(everything.rows.size, reason)}
    for name in everything.outside:
        alone = everything.alone(name)
        out[name] = undefined(alone.rows.size, problem(rows, alone))
    if sound:
        total, *each = metric.of_sets(rows, Groups(everything.inside, sound), level)
        out |= dict(zip(sound, each, strict=True))
        if not reason:
            out[""] = total
    return out


def _differences(metric: _OfSets, baseline: Rows, candidate: Rows, alpha: float) -> dict[str, PairedDifference]:
    before, after = _estimates(metric, baseline, 1 - alpha), _estimates(metric, candidate, 1 - alpha)
    keys = [key for key in before if before[key].value is not None and after[key].value is not None]
    out = {key: incomparable(before[key].n, before[key], after[key]) for key in before}
    everything = groups_of(baseline)
    sound = {k: v for k, v in everything.outside.items() if k in keys}
    if sound:
        groups = Groups(everything.inside, sound)
        changes = metric.changes(baseline, candidate, groups, alpha)
        for key, group, change in zip(("", *sound), groups.each, changes, strict=True):
            if key in keys:
                out[key] = compared(change, group.rows.size, before[key], after[key], alpha)
    return out


def _scores(rows: Rows, groups: Groups) -> tuple[Floats, list[Floats]]:
    scores = np.asarray(rows["ood_score"], dtype=float)
    return scores[groups.inside], [scores[g] for g in groups.outside.values()]


@dataclass(frozen=True)
class Auroc:
    """Probability that an out-of-distribution image scores above one "in", ties counting half (DeLong intervals)."""

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return _estimates(self, rows, level)

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        return _differences(self, baseline, candidate, alpha)

    def of_sets(self, rows: Rows, groups: Groups, level: float) -> list[Estimate]:
        out = []
        for group in groups.each:
            components = auroc_components(*_scores(rows, group))
            low, high = auroc_interval(components, level, np.asarray(rows["sample_id"])[group.rows])
            out.append(Estimate(components.value, low, high, group.rows.size))
        return out

    def changes(self, baseline: Rows, candidate: Rows, groups: Groups, alpha: float) -> list[Difference]:
        ids = np.asarray(baseline["sample_id"])
        return [
            auroc_difference(
                auroc_components(*_scores(baseline, group)),
                auroc_components(*_scores(candidate, group)),
                alpha,
                ids[group.rows],
            )
            for group in groups.each
        ]


def false_positive_rate(inside: Floats, outside: Floats, tpr: float = 0.95) -> Statistic:
    """Share of out-of-distribution images accepted by a detector that accepts `tpr` of the images "in".

    In-distribution is the positive class. An image is accepted when its score is at most t, and t is the smallest
    score that accepts at least `tpr` of the images "in". Weights: rows "in" first, then the others.
    """
    order = np.argsort(inside, kind="stable")
    ordered, n = inside[order], inside.size

    def statistic(weights: NDArray[Any]) -> Floats:
        counts = np.cumsum(weights[:, :n][:, order], axis=-1)
        # Rounded before the ceiling: 0.95 * n in floating point may lie just above an integer.
        least = np.ceil(np.round(tpr * counts[:, -1], 9))
        threshold = ordered[[np.searchsorted(c, k) for c, k in zip(counts, least, strict=True)]]
        out = weights[:, n:]
        return np.asarray((out * (outside <= threshold[:, None])).sum(axis=-1) / out.sum(axis=-1))

    return statistic


def average_precision(negatives: Floats, positives: Floats, positives_first: bool = False) -> Statistic:
    """Area under the precision-recall curve as a sum over thresholds, sum of (R_k - R_(k-1)) P_k, as in scikit-learn.

    Tied scores share a threshold. Weights are ordered negatives, positives, or the other way with `positives_first`.
    """
    parts = (positives, negatives) if positives_first else (negatives, positives)
    scores = np.concatenate(parts)
    positive = np.concatenate([np.full(p.size, p is positives) for p in parts])
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    tied = ends.size < order.size
    positive = positive[order].astype(np.int64)

    def statistic(weights: NDArray[Any]) -> Floats:
        drawn = weights.take(order, axis=-1)
        hits = drawn * positive
        found, passed = np.cumsum(hits, axis=-1), np.cumsum(drawn, axis=-1)
        if tied:
            found, passed = found[:, ends], passed[:, ends]
            hits = np.diff(found, prepend=0, axis=-1)
        precision = found / np.maximum(passed, 1, out=passed)
        return np.asarray(np.einsum("bi,bi->b", hits, precision) / found[:, -1])

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

    def of_sets(self, rows: Rows, groups: Groups, level: float) -> list[Estimate]:
        inside, sets = _scores(rows, groups)
        statistics = self._statistics(inside, sets)
        values = statistics(once(groups.rows.size))[:, 0].tolist()
        result = bootstrap(statistics, _units(rows, groups), level)
        saturated = [self.limits(v, inside.size, s.size, level) for v, s in zip(values[1:], sets, strict=True)]
        mean = Interval(*(float(np.mean(side)) for side in zip(*saturated, strict=True)))
        out = []
        for number, (value, limits, group) in enumerate(zip(values, [mean, *saturated], groups.each, strict=True)):
            low, high = float(result.low[number]), float(result.high[number])
            if np.ptp(result.distribution[number]) < 1e-13:
                low, high = limits
            n = group.rows.size
            out.append(finite_or_undefined(value, low, high, n, "a resample has no value: too few images"))
        return out

    def changes(self, baseline: Rows, candidate: Rows, groups: Groups, alpha: float) -> list[Difference]:
        old, new = (self._statistics(*_scores(rows, groups)) for rows in (baseline, candidate))
        changes = bootstrap_difference(old, new, _units(baseline, groups), alpha)
        for number, (change, group) in enumerate(zip(changes, groups.each, strict=True)):
            if change.high - change.low < 1e-13:  # no image changed anything: still not certain
                sizes = [group.inside.size, *(rows.size for rows in group.outside.values())]
                changes[number] = normal_difference(change.value, 0.0, sizes, alpha)
        return changes

    def _statistics(self, inside: Floats, sets: list[Floats]) -> Statistic:
        """The mean over the sets and the value of each set: (B, rows) -> (1 + K, B)."""
        statistics = [self.statistic(inside, s) for s in sets]
        n = inside.size
        starts = np.cumsum([n, *(s.size for s in sets)])

        def evaluate(weights: NDArray[Any]) -> Floats:
            parts = (np.concatenate([weights[:, :n], weights[:, a:b]], axis=-1) for a, b in pairwise(starts))
            each = np.stack([s(part) for s, part in zip(statistics, parts, strict=True)])
            return np.concatenate([each.mean(axis=0, keepdims=True), each])

        return evaluate


def _units(rows: Rows, groups: Groups) -> Units:
    ids = np.asarray(rows["sample_id"])
    strata = [np.zeros(groups.inside.size, dtype=np.int64)]
    for number, outside in enumerate(groups.outside.values(), start=1):
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
