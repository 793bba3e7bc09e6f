"""What corruptions do to a model: accuracy, entropy, detection and likelihood, by corruption and severity.

Rows hold each sample under each `corruption` at each `severity`, and once clean (`corruption` "none", `severity` 0).
Estimates are keyed by corruption and severity, ``gaussian_noise,3``; by corruption, ``gaussian_noise``, the mean over
its severities; ``mean,3`` and "" are means over those of the 15 standard corruptions that the rows hold, at a severity
and at all; ``without_noise`` leaves out the three noises; ``none`` is of the clean images. Rows of one sample are one
cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.accuracy import Mask, Proportion
from harness.metrics.alexnet import NOISES, STANDARD
from harness.metrics.base import Estimate, Metric, PairedDifference, Rows, undefined
from harness.metrics.cost import MeanCost
from harness.metrics.paired import compared, incomparable
from harness.statistics import AurocComponents, auroc_components, auroc_difference, auroc_interval

CLEAN = "none"


def parts(rows: Rows) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The row numbers of every key, those of the means first, the clean images last."""
    names, severities = np.asarray(rows["corruption"]).astype(str), np.asarray(rows["severity"])
    standard, noise = np.isin(names, STANDARD), np.isin(names, NOISES)
    found = [("", standard), ("without_noise", standard & ~noise)]
    found += [(f"mean,{s}", standard & (severities == s)) for s in np.unique(severities[standard])]
    held = set(names.tolist()) - {CLEAN}
    for name in (*(n for n in STANDARD if n in held), *sorted(held - set(STANDARD))):
        own = names == name
        found += [(name, own), *((f"{name},{s}", own & (severities == s)) for s in np.unique(severities[own]))]
    for key, mask in [*found, (CLEAN, names == CLEAN)]:
        if mask.any():
            yield key, np.flatnonzero(mask)


def _part(rows: Rows, which: NDArray[np.int64]) -> Rows:
    return {name: np.asarray(values)[which] for name, values in rows.items()}


@dataclass(frozen=True)
class ByCorruption:
    """A metric with one number, of the rows of every key.

    Attributes:
        metric: has the variant "" alone.
        prepare: what it is a metric of, from the rows of the cell; may leave rows out.
    """

    metric: Metric
    prepare: Callable[[Rows], Rows] = lambda rows: rows

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        rows = self.prepare(rows)
        return {key: self.metric.estimate(_part(rows, which), level)[""] for key, which in parts(rows)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        old, new = self.prepare(baseline), self.prepare(candidate)
        return {
            key: self.metric.difference(_part(old, which), _part(new, which), alpha)[""] for key, which in parts(old)
        }


def against_clean(column: str) -> Callable[[Rows], Rows]:
    """`column` of each corrupted image less that of the same image clean, as column "change"; no rows but those.

    A sample without a clean row is left out.
    """

    def change(rows: Rows) -> Rows:
        clean = np.asarray(rows["corruption"]).astype(str) == CLEAN
        ids, values = np.asarray(rows["sample_id"]), np.asarray(rows[column], dtype=np.float64)
        known, first = np.unique(ids[clean], return_index=True)
        if not known.size:
            return {**_part(rows, np.empty(0, dtype=np.int64)), "change": np.empty(0)}
        place = np.minimum(np.searchsorted(known, ids), known.size - 1)
        kept = np.flatnonzero(~clean & (known[place] == ids))
        return {**_part(rows, kept), "change": values[kept] - values[clean][first][place[kept]]}

    return change


@dataclass(frozen=True)
class CorruptionAuroc:
    """AUROC of corrupted against clean images by `ood_score`, for a mean over corruptions the mean of their AUROCs.

    Both sides are the same images, so DeLong's variance is taken over images (Obuchowski 1997).
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {key: self._estimate(rows, which, level) for key, which in _corrupted(rows)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        out = {}
        for key, which in _corrupted(baseline):
            before, after = (self._estimate(rows, which, 1 - alpha) for rows in (baseline, candidate))
            if before.value is None or after.value is None:
                out[key] = incomparable(before.n, before, after)
                continue
            (old, ids), (new, _) = (self._components(rows, which) for rows in (baseline, candidate))
            out[key] = compared(auroc_difference(old, new, alpha, ids), before.n, before, after, alpha)
        return out

    def _estimate(self, rows: Rows, which: NDArray[np.int64], level: float) -> Estimate:
        clean = _clean(rows)
        both = np.concatenate([clean, which])
        ids = np.asarray(rows["sample_id"])
        n = int(np.unique(ids[which]).size)
        if n < 2 or np.unique(ids[clean]).size < 2:
            return undefined(n, "fewer than two clean or corrupted images")
        if broken := int(np.isnan(np.asarray(rows["ood_score"], dtype=float)[both]).sum()):
            return undefined(n, f"{broken} of {both.size} ood_score values are NaN")
        components, clusters = self._components(rows, which)
        return Estimate(components.value, *auroc_interval(components, level, clusters), n)

    def _components(self, rows: Rows, which: NDArray[np.int64]) -> tuple[AurocComponents, NDArray[Any]]:
        """The components of each corruption and severity among these rows, and the image of every score."""
        scores, ids = np.asarray(rows["ood_score"], dtype=float), np.asarray(rows["sample_id"])
        names, severities = np.asarray(rows["corruption"]).astype(str)[which], np.asarray(rows["severity"])[which]
        _, cell = np.unique(names, return_inverse=True)
        _, cell = np.unique(cell * (int(severities.max()) + 1) + severities, return_inverse=True)
        groups = [which[cell == k] for k in range(int(cell.max()) + 1)]
        clean = _clean(rows)
        components = auroc_components(scores[clean], [scores[group] for group in groups])
        return components, ids[np.concatenate([clean, *groups])]


def _clean(rows: Rows) -> NDArray[np.int64]:
    return np.flatnonzero(np.asarray(rows["corruption"]).astype(str) == CLEAN)


def _corrupted(rows: Rows) -> Iterator[tuple[str, NDArray[np.int64]]]:
    return ((key, which) for key, which in parts(rows) if key != CLEAN)


def _correct(rows: Rows) -> Mask:
    return np.asarray(rows["correct"], dtype=bool)


CORRUPTION_ACCURACY = ByCorruption(Proportion(_correct))
ENTROPY_RISE = ByCorruption(MeanCost("change"), against_clean("entropy"))
CORRUPTION_BITS_PER_DIM = ByCorruption(MeanCost("bits_per_dim"))
CORRUPTION_AUROC = CorruptionAuroc()
