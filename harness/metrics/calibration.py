"""Is a classifier as often right as it says? Calibration errors, and what rejecting by a score is worth.

Two views of a prediction: *one against all*, every class of every sample is a prediction, made with that class's
probability (Mackowiak et al. 2021, appendix B.3); *top label*, one prediction a sample, its most likely class (Guo et
al. 2017). C of a bin is the mean probability of its predictions, R the share of them that are right. The authors take
the bin's centre for C: for 1,000 classes nearly all predictions lie far below the centre of the lowest bin, and their
expected calibration error is mostly that distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

from harness.metrics.accuracy import Mask, Proportion, clean_correct
from harness.metrics.base import Estimate, PairedDifference, Rows, finite_or_undefined, undefined
from harness.metrics.paired import compared, incomparable
from harness.models import CONFIDENCE_BINS
from harness.statistics import (
    Floats,
    Statistic,
    atom_interval,
    bootstrap,
    bootstrap_difference,
    clopper_pearson,
    normal_difference,
    once,
    sampling_units,
)

CRITICAL = 0.997
"""Confidence from which a prediction counts for the overconfidence error (Mackowiak et al. 2021, C_crit)."""
_TOP_LABEL_BINS = 15
_SPARSE = 20  # a bin of no more predictions is left out, as the authors' code does: its R is noise
_SHOWN = 200


class Bins(NamedTuple):
    """Predictions in bins of their confidence, each sample's own: (rows, bins)."""

    predictions: Floats
    confidence: Floats  # sum over the predictions
    right: Floats


def one_against_all(rows: Rows) -> Bins:
    """Every class of every sample: columns `class_confidence_count`, `class_confidence_sum`, and the probability of the
    label, exp of minus `negative_log_likelihood`."""
    label = np.exp(-np.asarray(rows["negative_log_likelihood"], dtype=float))
    count = np.asarray(rows["class_confidence_count"], dtype=float)
    place = np.searchsorted(CONFIDENCE_BINS[1:-1], label, side="right")
    return Bins(count, np.asarray(rows["class_confidence_sum"], dtype=float), np.eye(count.shape[1])[place])


def top_label(rows: Rows) -> Bins:
    """The predicted class of each sample, in 15 bins of one width: columns `confidence` and `clean_correct`."""
    confidence = np.asarray(rows["confidence"], dtype=float)
    place = np.minimum((confidence * _TOP_LABEL_BINS).astype(int), _TOP_LABEL_BINS - 1)
    count = np.eye(_TOP_LABEL_BINS)[place]
    return Bins(count, count * confidence[:, None], count * clean_correct(rows)[:, None])


def _gaps(bins: Bins, sparse: int) -> Callable[[NDArray[Any]], tuple[Floats, Floats]]:
    """Of weighted rows: |C - R| and the number of predictions of every bin, (B, bins) each; 0 for a sparse bin.

    Which bins are sparse is decided on the rows as they are, not on each resample.
    """
    filled = bins.predictions.sum(axis=0) > sparse

    def gaps(weights: NDArray[Any]) -> tuple[Floats, Floats]:
        counts, confidence, right = (weights.astype(float) @ part for part in bins)
        counts = np.where(filled, counts, 0.0)
        gap = np.divide(np.abs(confidence - right), counts, out=np.zeros_like(counts), where=counts > 0)
        return gap, counts

    return gaps


def expected(bins: Bins) -> Statistic:
    """sum over bins of n(C) |C - R(C)| / n (eq. 17)."""
    gaps = _gaps(bins, 0)

    def statistic(weights: NDArray[Any]) -> Floats:
        gap, counts = gaps(weights)
        return np.asarray((gap * counts).sum(axis=-1) / counts.sum(axis=-1))

    return statistic


def maximum(bins: Bins) -> Statistic:
    """The largest |C - R(C)| of the bins with more than 20 predictions (eq. 18); NaN where there is none."""
    gaps = _gaps(bins, _SPARSE)
    none = not (bins.predictions.sum(axis=0) > _SPARSE).any()

    def statistic(weights: NDArray[Any]) -> Floats:
        largest = gaps(weights)[0].max(axis=-1)
        return np.full_like(largest, np.nan) if none else np.asarray(largest)

    return statistic


@dataclass(frozen=True)
class CalibrationError:
    """A calibration error of two views: "" is one against all, "top_label" what the word means elsewhere.

    Bootstrap over samples. Noise in R makes the error larger than it is, by a bias b, and resampling, which adds as
    much noise again, raises it by a further d between 0 (where the gaps between C and R dwarf the noise) and
    (sqrt(2) - 1) b (where they are nothing but noise, for the error is a norm of the gaps). The percentile limits are
    lowered by d, the lower one by d / (sqrt(2) - 1) as well, or it would leave out the small errors of a calibrated
    model.
    """

    statistic: Callable[[Bins], Statistic]

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {view: self._estimate(bins(rows), rows, level) for view, bins in _VIEWS.items()}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self.estimate(baseline, 1 - alpha), self.estimate(candidate, 1 - alpha)
        out = {}
        for view, bins in _VIEWS.items():
            old, new = before[view], after[view]
            if old.value is None or new.value is None:
                out[view] = incomparable(old.n, old, new)
                continue
            statistics = [self.statistic(bins(rows)) for rows in (baseline, candidate)]
            out[view] = _paired(statistics[0], statistics[1], baseline, old, new, alpha)
        return out

    def _estimate(self, bins: Bins, rows: Rows, level: float) -> Estimate:
        n = int(np.unique(np.asarray(rows["sample_id"])).size)
        if n < 2:
            return undefined(n, "fewer than two samples")
        statistic = self.statistic(bins)
        value = float(statistic(once(len(bins.predictions)))[0])
        if math.isnan(value):
            return undefined(n, f"no bin holds more than {_SPARSE} predictions")
        result = bootstrap(statistic, sampling_units(np.asarray(rows["sample_id"])), level)
        if np.ptp(result.distribution) < 1e-13:
            low, high = atom_interval(value, n, level)
        else:
            raised = max(float(result.distribution.mean()) - value, 0.0)
            noise = raised / (math.sqrt(2) - 1)
            low, high = float(result.low) - raised - noise, float(result.high) - raised
            low = 0.0 if value <= noise else low  # noise alone makes as large an error
        return Estimate(value, min(max(low, 0.0), value), max(min(high, 1.0), value), n)


_VIEWS: dict[str, Callable[[Rows], Bins]] = {"": one_against_all, "top_label": top_label}


def _paired(
    old: Statistic, new: Statistic, rows: Rows, before: Estimate, after: Estimate, alpha: float
) -> PairedDifference:
    (change,) = bootstrap_difference(old, new, sampling_units(np.asarray(rows["sample_id"])), alpha)
    if change.high - change.low < 1e-13:  # no sample changed anything: still not certain
        change = normal_difference(change.value, 0.0, [before.n], alpha)
    return compared(change, before.n, before, after, alpha)


@dataclass(frozen=True)
class OverconfidenceError:
    """Error rate of the predictions with confidence 0.997 or more, over the 0.003 that such confidence allows (eq. 19).

    The sum of the equation is over one bin, from C_crit up, as the example in the text shows (1.1 % wrong: 3.7); one
    prediction a sample, its most likely class. 1 is calibrated, 3 three times more often wrong than allowed. Interval
    by Clopper-Pearson.
    """

    rate: Proportion

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {"": _scaled(self.rate.estimate(rows, level)[""])}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        found = self.rate.difference(baseline, candidate, alpha)[""]
        value, low, high, spread = (_times(v) for v in (found.value, found.low, found.high, found.spread))
        sides = _scaled(found.baseline), _scaled(found.candidate)
        return {
            "": replace(found, value=value, low=low, high=high, spread=spread, baseline=sides[0], candidate=sides[1])
        }


def _times(value: float | None) -> float | None:
    return None if value is None else value / (1 - CRITICAL)


def _scaled(estimate: Estimate) -> Estimate:
    value, low, high = (_times(v) for v in (estimate.value, estimate.low, estimate.high))
    return replace(estimate, value=value, low=low, high=high)


def _wrong(rows: Rows) -> Mask:
    return ~clean_correct(rows)


def _confident(rows: Rows) -> Mask:
    return np.asarray(rows["confidence"], dtype=float) >= CRITICAL


def risk_coverage(score: Floats, wrong: Mask) -> Statistic:
    """Area under the risk-coverage curve: the mean over k of the error rate of the k samples with the lowest scores.

    As Geifman, Uziel & El-Yaniv 2019 define it. Samples of one score are rejected in random order, and the area is the
    mean over the orders. With E_a errors among the a samples before m tied ones that hold e errors, these add
    (E_a - a e / m) (H_(a+m) - H_a) + e, H the harmonic numbers.
    """
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    failed = wrong[order].astype(float)

    def statistic(weights: NDArray[Any]) -> Floats:
        drawn = weights[:, order].astype(float)
        after, errors = np.cumsum(drawn, axis=-1)[:, ends], np.cumsum(drawn * failed, axis=-1)[:, ends]
        before, errors_before = (np.concatenate([np.zeros((len(c), 1)), c[:, :-1]], axis=1) for c in (after, errors))
        tied, inside = after - before, errors - errors_before
        share = np.divide(inside, tied, out=np.zeros_like(tied), where=tied > 0)
        harmonic = digamma(after + 1) - digamma(before + 1)
        return np.asarray(((errors_before - before * share) * harmonic + inside).sum(axis=-1) / after[:, -1])

    return statistic


@dataclass(frozen=True)
class Aurc:
    """Area under the risk-coverage curve when images are rejected by `ood_score`, highest first; lower is better.

    The error rate where the score says nothing of the errors. Bootstrap over samples.
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        n = int(np.unique(np.asarray(rows["sample_id"])).size)
        score = np.asarray(rows["ood_score"], dtype=float)
        if n < 2 or np.isnan(score).any():
            return {"": undefined(n, "fewer than two samples" if n < 2 else "an ood_score is NaN")}
        statistic = self._statistic(rows)
        value = float(statistic(once(score.size))[0])
        result = bootstrap(statistic, sampling_units(np.asarray(rows["sample_id"])), level)
        low, high = float(result.low), float(result.high)
        if np.ptp(result.distribution) < 1e-13:  # no error, or nothing but errors
            low, high = clopper_pearson(value * n, n, level)
        return {"": finite_or_undefined(value, min(low, value), max(high, value), n, "a resample has no value")}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self.estimate(baseline, 1 - alpha)[""], self.estimate(candidate, 1 - alpha)[""]
        if before.value is None or after.value is None:
            return {"": incomparable(before.n, before, after)}
        old, new = self._statistic(baseline), self._statistic(candidate)
        return {"": _paired(old, new, baseline, before, after, alpha)}

    def _statistic(self, rows: Rows) -> Statistic:
        return risk_coverage(np.asarray(rows["ood_score"], dtype=float), _wrong(rows))


class Reliability(NamedTuple):
    """A reliability diagram: one entry a bin that holds predictions.

    Attributes:
        confidence: mean probability.
        accuracy, low, high: share that is right, with its Clopper-Pearson interval (one against all: as if the classes
            of a sample were independent).
        predictions: how many there are.
    """

    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    predictions: Floats


def reliability_diagram(bins: Bins, level: float) -> Reliability:
    """What a plot of accuracy over confidence shows, of `one_against_all(rows)` or `top_label(rows)`."""
    count, confidence, right = (part.sum(axis=0) for part in bins)
    held = np.flatnonzero(count)
    limits = [clopper_pearson(float(right[b]), float(count[b]), level) for b in held]
    low, high = (np.array([limit[side] for limit in limits]) for side in (0, 1))
    return Reliability(confidence[held] / count[held], right[held] / count[held], low, high, count[held])


def risk_coverage_curve(score: Floats, wrong: Mask) -> tuple[Floats, Floats]:
    """Coverage (ascending, up to 1) and error rate of the samples accepted, at most 200 points, one a threshold."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    if ends.size > _SHOWN:
        ends = ends[np.unique(np.linspace(0, ends.size - 1, _SHOWN).round().astype(int))]
    accepted = ends + 1.0
    return accepted / order.size, np.cumsum(wrong[order])[ends] / accepted


EXPECTED_CALIBRATION_ERROR = CalibrationError(expected)
MAXIMUM_CALIBRATION_ERROR = CalibrationError(maximum)
OVERCONFIDENCE_ERROR = OverconfidenceError(
    Proportion(_wrong, _confident, f"no prediction has a confidence of {CRITICAL} or more")
)
AURC = Aurc()
