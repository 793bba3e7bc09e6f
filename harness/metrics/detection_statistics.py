"""Statistics of a detector's scores, for a bootstrap: weights say how often each row was drawn.

Weights are (B, rows), rows "in" first, then those out of distribution; a statistic gives (B,). Scores are higher for
what is more out-of-distribution. `limits` functions give the interval where every resample gave the same value.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.statistics import Floats, Interval, Statistic, atom_interval, clopper_pearson

_SHOWN = 200


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
        with np.errstate(invalid="ignore"):  # a resample without any image of the set
            return np.asarray((out * (outside <= threshold[:, None])).sum(axis=-1) / out.sum(axis=-1))

    return statistic


def id_rejected(inside: Floats, outside: Floats, tpr: float = 0.95) -> Statistic:
    """Share of images "in" rejected by a detector that rejects `tpr` of the out-of-distribution ones.

    Out-of-distribution is the positive class: an image is rejected when its score is at least t, and t is the largest
    score that rejects at least `tpr` of the out-of-distribution images.
    """
    swapped, n = false_positive_rate(-outside, -inside, tpr), inside.size

    def statistic(weights: NDArray[Any]) -> Floats:
        return swapped(np.concatenate([weights[:, n:], weights[:, :n]], axis=-1))

    return statistic


def detection_accuracy(inside: Floats, outside: Floats) -> Statistic:
    """Largest mean of the two shares decided rightly, (TNR + TPR) / 2, over all thresholds (Liang et al. 2018, ODIN).

    One minus their detection error, with both groups weighing the same whatever their sizes. The threshold is chosen
    on the same rows: a little flattering where these are few.
    """
    scores = np.concatenate([inside, outside])
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    tied = ends.size < order.size
    isin = order < inside.size

    def statistic(weights: NDArray[Any]) -> Floats:
        n, m = (part.sum(axis=-1, keepdims=True) for part in np.split(weights, [inside.size], axis=-1))
        # Accepted of "in" less accepted of the others, times n m; the last threshold accepts everything: a gap of 0.
        gap = np.cumsum(weights.take(order, axis=-1) * np.where(isin, m, -n), axis=-1)
        largest = (gap[:, ends] if tied else gap).max(axis=-1)
        return np.asarray((1 + np.maximum(largest, 0) / (n * m)[:, 0]) / 2)

    return statistic


def tied_pairs(inside: Floats, outside: Floats) -> Statistic:
    """Share of pairs of an image "in" and one out of distribution whose scores are equal."""
    n = inside.size
    values, code = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    shared = np.isin(values, inside) & np.isin(values, outside)
    place = np.where(shared, np.cumsum(shared) - 1, -1)[code]
    groups = [np.flatnonzero(place[:n] >= 0), n + np.flatnonzero(place[n:] >= 0)]
    orders = [rows[np.argsort(place[rows], kind="stable")] for rows in groups]
    starts = [np.searchsorted(place[order], np.arange(int(shared.sum()))) for order in orders]

    def statistic(weights: NDArray[Any]) -> Floats:
        pairs = weights[:, :n].sum(axis=-1) * weights[:, n:].sum(axis=-1)
        if not shared.any():
            return np.zeros(len(weights))
        one, other = (
            np.add.reduceat(weights[:, order], start, axis=-1) for order, start in zip(orders, starts, strict=True)
        )
        return np.asarray((one * other).sum(axis=-1) / pairs)

    return statistic


def roc_points(inside: Floats, outside: Floats) -> tuple[Floats, Floats]:
    """The ROC curve for a plot, out-of-distribution the positive class: false- and true-positive rates, ascending.

    From (0, 0) to (1, 1), at most 200 points, spread evenly along the curve. Ties give slanted pieces, so that the
    area under all points is the AUROC.
    """
    scores = np.concatenate([inside, outside])
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    out = order >= inside.size
    tpr, fpr = (np.concatenate([[0.0], np.cumsum(g)[ends] / g.sum()]) for g in (out, ~out))
    if fpr.size > _SHOWN:
        along = fpr + tpr  # the length of a staircase
        kept = np.unique(np.searchsorted(along, np.linspace(0, 2, _SHOWN)).clip(0, fpr.size - 1))
        fpr, tpr = fpr[kept], tpr[kept]
    return fpr, tpr


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


def fpr_ood_limits(value: float, n: int, m: int, level: float) -> Interval:  # noqa: ARG001
    return clopper_pearson(value * m, m, level)


def fpr_id_limits(value: float, n: int, m: int, level: float) -> Interval:  # noqa: ARG001
    return clopper_pearson(value * n, n, level)


def aupr_out_limits(value: float, n: int, m: int, level: float) -> Interval:
    return saturated_average_precision(n, m, level) if value == 1 else atom_interval(value, min(n, m), level)


def aupr_in_limits(value: float, n: int, m: int, level: float) -> Interval:
    return aupr_out_limits(value, m, n, level)


def aupr_out(inside: Floats, outside: Floats) -> Statistic:
    """Average precision with out-of-distribution as the positive class; a random score has the share of these rows."""
    return average_precision(inside, outside)


def aupr_in(inside: Floats, outside: Floats) -> Statistic:
    """Average precision with in-distribution as the positive class."""
    return average_precision(-outside, -inside, positives_first=True)


def atom_limits(value: float, n: int, m: int, level: float) -> Interval:
    """As for a quantity in [0, 1] that every disjoint pair of an image "in" and one outside gives."""
    return atom_interval(value, min(n, m), level)
