"""Shares of samples: clean accuracy, robust accuracy, attack success rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.base import CellRows, Estimate, PairedDifference, Rows, Summary, undefined
from harness.metrics.paired import compared, incomparable
from harness.models import DETECTOR_FPRS
from harness.statistics import cluster_sums, clustered_proportion, paired_mean, paired_proportions

Mask = NDArray[np.bool_]


def clean_correct(rows: Rows) -> Mask:
    """Classified rightly before anything was done to the sample."""
    return np.asarray(rows["clean_correct"], dtype=bool)


def _success(rows: Rows) -> Mask:
    return np.asarray(rows["success"], dtype=bool)


def withstood(rows: Rows) -> Mask:
    """Classified rightly before and after the attack."""
    return clean_correct(rows) & ~_success(rows)


def fallen(rows: Rows) -> Mask:
    """Classified rightly before the attack and wrongly after it."""
    return clean_correct(rows) & _success(rows)


@dataclass(frozen=True)
class Proportion:
    """The share of rows with `outcome`, of all rows or of those in `among`.

    Interval by Clopper-Pearson. Difference of shares of all samples: exact McNemar, bounds of Bonett-Price and Tango.
    Rows of one ``sample_id`` are one cluster. With `among` the two models' denominators differ, so the difference of
    the two ratios is linearised per sample.
    """

    outcome: Callable[[Rows], Mask]
    among: Callable[[Rows], Mask] | None = None
    nothing: str = "no rows"  # why it is undefined where the denominator is empty

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {"": self._estimate(rows, level)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self._estimate(baseline, 1 - alpha), self._estimate(candidate, 1 - alpha)
        ids = np.asarray(baseline["sample_id"])
        n = int(np.unique(ids).size)
        if before.value is None or after.value is None:
            return {"": incomparable(n, before, after)}
        if self.among is None and n == ids.size:
            had, has = self.outcome(baseline), self.outcome(candidate)
            change = paired_proportions(int((had & ~has).sum()), int((~had & has).sum()), n, alpha)
            return {"": compared(change, n, before, after, alpha)}
        old, old_weight = self._contributions(baseline, before.value)
        new, new_weight = self._contributions(candidate, after.value)
        scale = max(1 / old_weight, 1 / new_weight)
        value = after.value - before.value
        return {"": compared(paired_mean(value, value + new - old, scale, alpha), n, before, after, alpha)}

    def _estimate(self, rows: Rows, level: float) -> Estimate:
        outcome, inside = self.outcome(rows), self._inside(rows)
        ids = np.asarray(rows["sample_id"])[inside]
        if not ids.size:
            return undefined(0, self.nothing)
        counted = outcome[inside]
        low, high = clustered_proportion(counted, ids, level)
        return Estimate(float(counted.mean()), low, high, int(np.unique(ids).size))

    def _inside(self, rows: Rows) -> Mask:
        return np.ones(len(rows["sample_id"]), dtype=bool) if self.among is None else self.among(rows)

    def _contributions(self, rows: Rows, value: float) -> tuple[NDArray[Any], float]:
        """What each sample adds to the ratio's error (linearised), and the mean denominator."""
        inside = self._inside(rows)
        residuals, sizes = cluster_sums(inside * (self.outcome(rows) - value), np.asarray(rows["sample_id"]))
        share = float(inside.sum()) / sizes.size
        return residuals / share, min(share, 1.0)


@dataclass(frozen=True)
class WorstCaseRobustAccuracy:
    """Share of samples, of those that all attacks saw, which a model classifies rightly under every attack.

    Per model, data set and norm, over two or more attack cells: a per-sample "and" over attacks, never the smallest of
    their averages. The threat model is the largest budget of the norm; attacks without a budget (`unbounded`) are left
    out beside such with one.
    """

    def summarise(self, cells: Sequence[CellRows], level: float) -> Sequence[Summary]:
        groups: dict[tuple[str, str, str], list[CellRows]] = {}
        for cell in cells:
            groups.setdefault((cell.model, cell.dataset, cell.norm), []).append(cell)
        several = len({cell.dataset for cell in cells}) > 1
        found = []
        for (model, dataset, norm), group in groups.items():
            budgets = [cell.budget for cell in group if cell.budget is not None]
            members = [cell for cell in group if cell.budget is not None or not budgets]
            if len(members) > 1:
                about = [model, norm, f"eps {max(budgets):.4g}" if budgets else "", f"on {dataset}" if several else ""]
                found.append(
                    Summary(
                        subject=" ".join(part for part in about if part),
                        cells=tuple(cell.id for cell in members),
                        estimate=_worst_case([cell.rows for cell in members], level),
                    )
                )
        return found


def _worst_case(attacks: Sequence[Rows], level: float) -> Estimate:
    standing: dict[Any, bool] = {}
    for number, rows in enumerate(attacks):
        failures, _ = cluster_sums(~withstood(rows), np.asarray(rows["sample_id"]))
        seen = dict(zip(np.unique(rows["sample_id"]).tolist(), (failures == 0).tolist(), strict=True))
        standing = seen if number == 0 else {k: v and seen[k] for k, v in standing.items() if k in seen}
    if not standing:
        return undefined(0, "the attacks share no sample")
    robust = np.fromiter(standing.values(), dtype=bool)
    low, high = clustered_proportion(robust, np.arange(robust.size), level)
    return Estimate(float(robust.mean()), low, high, robust.size)


CLEAN_ACCURACY = Proportion(clean_correct)
ROBUST_ACCURACY = Proportion(withstood)
ATTACK_SUCCESS_RATE = Proportion(fallen, clean_correct, "no sample is classified correctly before the attack")
WORST_CASE_ROBUST_ACCURACY = WorstCaseRobustAccuracy()


@dataclass(frozen=True)
class AtDetectorRates:
    """Robust accuracy of the classifier with its detector, one variant for each false-positive rate of the detector.

    A sample counts as withstood if its clean image is classified rightly and accepted, and the attacked one is
    classified rightly or rejected.
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {rate: share.estimate(rows, level)[""] for rate, share in _AT_RATES.items()}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        return {rate: share.difference(baseline, candidate, alpha)[""] for rate, share in _AT_RATES.items()}


def _at_rate(index: int) -> Callable[[Rows], Mask]:
    return lambda rows: np.asarray(rows["robust_at_detector_fpr"], dtype=bool)[:, index]


_AT_RATES = {f"{fpr:.0%}": Proportion(_at_rate(index)) for index, fpr in enumerate(DETECTOR_FPRS)}
ROBUST_ACCURACY_AT_DETECTOR_FPR = AtDetectorRates()
CLEAN_ACCURACY_BY_MEAN = Proportion(lambda rows: np.asarray(rows["clean_correct_mean"], dtype=bool))
ROBUST_ACCURACY_BY_MEAN = Proportion(
    lambda rows: np.asarray(rows["clean_correct_mean"], dtype=bool) & ~np.asarray(rows["success_mean"], dtype=bool)
)
