"""Flipped bits (p_pi): bits per dimension at each pi, what flipping changes, and whether a detector sees it.

Rows of each sample at each `pi`; those at pi = 0 are the clean images. Estimates are keyed by pi: "0.5". Every
comparison with the clean image is paired by sample. A model that answers nothing about the least significant bit, such
as a uniform density, changes nothing: no number here is a pass or a failure by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.accuracy import Proportion
from harness.metrics.base import Estimate, PairedDifference, Rows, undefined
from harness.metrics.detection import AUROC, IN
from harness.metrics.means import TOO_FEW, AtEach, Mean, key_of, not_finite, per_sample
from harness.metrics.paired import compared, incomparable
from harness.statistics import Difference, Floats, Interval, mean_difference, mean_interval, paired_mean
from harness.statistics import paired_proportions as proportions

_CLEAN = 0.0


@dataclass(frozen=True)
class AbsoluteMean:
    """The absolute value of a mean: |mean NLL(p_data) - mean NLL(p_pi)| of `delta_bits_per_dim` (eq. 9 of Park et al.).

    Its interval is the image under |.| of the signed mean's normal interval, so it covers at least as often; it starts
    at 0 where the sign is not certain. The difference of two runs, | b | - | a |, is s b - r a with the signs s and r
    of the two means; bounds and p-values are the worst over the signs that the data leave open.
    """

    column: str

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {"": self._estimate(rows, level)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self._estimate(baseline, 1 - alpha), self._estimate(candidate, 1 - alpha)
        if before.value is None or after.value is None:
            return {"": incomparable(before.n, before, after)}
        a, b = (per_sample(rows, np.asarray(rows[self.column], dtype=np.float64)) for rows in (baseline, candidate))
        signs = itertools.product(_open_signs(a, alpha), _open_signs(b, alpha))
        changes = [mean_difference(s * b - r * a, alpha) for r, s in signs]
        change = Difference(
            abs(float(b.mean())) - abs(float(a.mean())),
            min(c.low for c in changes),
            max(c.high for c in changes),
            max(c.p_decrease for c in changes),
            max(c.p_increase for c in changes),
        )
        return {"": compared(change, before.n, before, after, alpha)}

    def _estimate(self, rows: Rows, level: float) -> Estimate:
        values, ids = np.asarray(rows[self.column], dtype=np.float64), np.asarray(rows["sample_id"])
        n = int(np.unique(ids).size)
        if n < 2:
            return undefined(n, TOO_FEW)
        if reason := not_finite(values, self.column):
            return undefined(n, reason)
        low, high = absolute(mean_interval(values, ids, level))
        return Estimate(abs(float(values.mean())), low, high, n)


def absolute(interval: Interval) -> Interval:
    """The absolute values of the numbers in an interval."""
    low, high = sorted((abs(interval.low), abs(interval.high)))
    return Interval(0.0 if interval.low <= 0 <= interval.high else low, high)


def _open_signs(values: Floats, alpha: float) -> tuple[int, ...]:
    """The signs that the mean of `values` may have: both, unless one of its one-sided bounds excludes one."""
    bounds = mean_difference(values, alpha)
    likely = 1 if bounds.value >= 0 else -1
    certain = bounds.low > 0 or bounds.high < 0 or bounds.low == bounds.high
    return (likely,) if certain else (likely, -likely)


@dataclass(frozen=True)
class AccuracyChange:
    """Accuracy at each pi less accuracy of the clean images: paired, interval of `paired_proportions`.

    The difference of two runs is that of the two changes, over the same samples.
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {key: _change(flips, level) for key, flips in _correct(rows).items()}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        old, new = _correct(baseline), _correct(candidate)
        out = {}
        for key, flips in old.items():
            before, after = _change(flips, 1 - alpha), _change(new[key], 1 - alpha)
            if before.value is None or after.value is None:
                out[key] = incomparable(before.n, before, after)
                continue
            # A change of a change is within [-2, 2]: halved for a bound of [-1, 1], and doubled again.
            moved = (new[key][:, 1] - new[key][:, 0] - flips[:, 1] + flips[:, 0]) / 2
            half = paired_mean(float(moved.mean()), moved, 1.0, alpha)
            change = half._replace(value=2 * half.value, low=2 * half.low, high=2 * half.high)
            out[key] = compared(change, before.n, before, after, alpha)
        return out


def _change(flips: Floats, level: float) -> Estimate:
    n = len(flips)
    if not n:
        return undefined(0, "no sample has rows at pi = 0 and at this pi")
    lost, gained = (int(side.sum()) for side in (flips[:, 0] > flips[:, 1], flips[:, 0] < flips[:, 1]))
    value, low, high, *_ = proportions(lost, gained, n, (1 - level) / 2)
    return Estimate(value, low, high, n)


def _correct(rows: Rows) -> dict[str, Floats]:
    """For each pi above 0, (samples, 2): whether a sample's clean and flipped image are classified rightly, as 0 or 1.

    Samples in the order of their ids.
    """
    pi, ids = np.asarray(rows["pi"], dtype=np.float64), np.asarray(rows["sample_id"])
    correct = np.asarray(rows["correct"], dtype=np.float64)
    clean = pi == _CLEAN
    out = {}
    for value in np.unique(pi[~clean]):
        flipped = pi == value
        _, first, second = np.intersect1d(ids[clean], ids[flipped], return_indices=True)
        out[key_of(value)] = np.stack([correct[clean][first], correct[flipped][second]], axis=1)
    return out


@dataclass(frozen=True)
class DetectionOfFlipped:
    """AUROC of flipped against original images under the model's `ood_score`, at each pi.

    Both sides are the same images, so the variance is taken over images (Obuchowski 1997), not over scores.
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        found = AUROC.estimate(_as_sets(rows), level)
        n = int(np.unique(rows["sample_id"]).size)
        return {key: Estimate(e.value, e.low, e.high, n, e.reason) for key, e in found.items() if key}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        return {k: d for k, d in AUROC.difference(_as_sets(baseline), _as_sets(candidate), alpha).items() if k}


def _as_sets(rows: Rows) -> dict[str, NDArray[Any]]:
    """Rows as the detection metrics take them: the clean images are "in", those at each pi a set."""
    sets = [IN if pi == _CLEAN else key_of(pi) for pi in np.asarray(rows["pi"], dtype=np.float64).tolist()]
    scores = np.asarray(rows["ood_score"], dtype=np.float64)
    return {"sample_id": np.asarray(rows["sample_id"]), "set": np.array(sets, dtype=str), "ood_score": scores}


def _is_correct(rows: Rows) -> NDArray[np.bool_]:
    return np.asarray(rows["correct"], dtype=bool)


BITFLIP_BITS_PER_DIM = AtEach(Mean("bits_per_dim"), "pi")
DELTA_BITS_PER_DIM = AtEach(AbsoluteMean("delta_bits_per_dim"), "pi", without=_CLEAN)
SIGNED_DELTA_BITS_PER_DIM = AtEach(Mean("delta_bits_per_dim"), "pi", without=_CLEAN)
BITFLIP_ACCURACY = AtEach(Proportion(_is_correct), "pi")
BITFLIP_ACCURACY_CHANGE = AccuracyChange()
BITFLIP_LOGIT_CHANGE = AtEach(Mean("logit_change"), "pi", without=_CLEAN)
BITFLIP_AUROC = DetectionOfFlipped()
