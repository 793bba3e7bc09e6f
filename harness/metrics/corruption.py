"""What corruptions do to a model: accuracy, entropy, detection and likelihood, by corruption and severity.

Rows hold each sample under each `corruption` at each `severity`, and once clean (`corruption` "none", `severity` 0).
Estimates are keyed by corruption and severity, ``gaussian_noise,3``; by corruption, ``gaussian_noise``, the mean over
its severities; ``mean,3`` and "" are means over those of the 15 standard corruptions that the rows hold, at a severity
and at all; ``without_noise`` leaves out the three noises; ``none`` is of the clean images; ``all`` is the mean over
every corruption, where there are others than the standard ones. MNIST-C has 15 of its own: ``all`` is the mean that its
paper reports, and those over the standard ones are left out. Rows of one sample are one cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.accuracy import Mask, Proportion
from harness.metrics.alexnet import NOISES, STANDARD
from harness.metrics.base import Estimate, Metric, PairedDifference, Rows, part_of, undefined
from harness.metrics.means import Mean
from harness.metrics.paired import compared, incomparable
from harness.statistics import AurocComponents, Floats, auroc_components, auroc_difference, auroc_interval

CLEAN = "none"
MNIST_C = "mnist-c"  # in the column `table`, which only some threats write


def parts(rows: Rows) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The row numbers of every key, those of the means first, the clean images last."""
    names, severities = np.asarray(rows["corruption"]).astype(str), np.asarray(rows["severity"])
    standard, noise = np.isin(names, STANDARD), np.isin(names, NOISES)
    corrupted, found = names != CLEAN, []
    if MNIST_C in np.asarray(rows.get("table", ())):
        found += [("all", corrupted)]
    else:
        found += [("", standard), ("without_noise", standard & ~noise)]
        found += [(f"mean,{s}", standard & (severities == s)) for s in np.unique(severities[standard])]
        found += [("all", corrupted)] * bool((corrupted & ~standard).any())
    held = set(names.tolist()) - {CLEAN}
    for name in (*(n for n in STANDARD if n in held), *sorted(held - set(STANDARD))):
        own = names == name
        found += [(name, own), *((f"{name},{s}", own & (severities == s)) for s in np.unique(severities[own]))]
    for key, mask in [*found, (CLEAN, names == CLEAN)]:
        if mask.any():
            yield key, np.flatnonzero(mask)


def _is_mean(key: str) -> bool:
    return key in ("", "without_noise") or key.startswith("mean,")


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
        absent = [name for name in STANDARD if name not in set(np.asarray(rows["corruption"]).astype(str).tolist())]
        note = f"a mean over {len(STANDARD) - len(absent)} of the 15 standard corruptions, without {', '.join(absent)}"
        estimates = {key: self.metric.estimate(part_of(rows, which), level)[""] for key, which in parts(rows)}
        return {
            key: replace(found, reason=note) if absent and _is_mean(key) and found.value is not None else found
            for key, found in estimates.items()
        }

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        old, new = self.prepare(baseline), self.prepare(candidate)
        return {
            key: self.metric.difference(part_of(old, which), part_of(new, which), alpha)[""]
            for key, which in parts(old)
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
            return {**part_of(rows, np.empty(0, dtype=np.int64)), "change": np.empty(0)}
        place = np.minimum(np.searchsorted(known, ids), known.size - 1)
        kept = np.flatnonzero(~clean & (known[place] == ids))
        return {**part_of(rows, kept), "change": values[kept] - values[clean][first][place[kept]]}

    return change


@dataclass(frozen=True)
class _Scores:
    """Scores of clean and corrupted images, their images, and the number of each row's corruption and severity."""

    score: Floats
    ids: NDArray[Any]
    cell: NDArray[np.int64]
    clean: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows) -> _Scores:
        names, code = np.unique(np.asarray(rows["corruption"]).astype(str), return_inverse=True)
        _, level = np.unique(np.asarray(rows["severity"]), return_inverse=True)
        clean = np.flatnonzero(names[code] == CLEAN)
        cell = code * (int(level.max(initial=0)) + 1) + level
        return cls(np.asarray(rows["ood_score"], dtype=float), np.asarray(rows["sample_id"]), cell, clean)

    def problem(self, which: NDArray[np.int64]) -> str:
        """Why nothing can be said of these rows, or an empty string."""
        if min(np.unique(self.ids[part]).size for part in (self.clean, which)) < 2:
            return "fewer than two clean or corrupted images"
        both = np.concatenate([self.clean, which])
        broken = int(np.isnan(self.score[both]).sum())
        return f"{broken} of {both.size} ood_score values are NaN" if broken else ""

    def components(self, which: NDArray[np.int64]) -> tuple[AurocComponents, NDArray[Any]]:
        """The components of each corruption and severity among these rows, and the image of every score."""
        groups = [which[self.cell[which] == cell] for cell in np.unique(self.cell[which])]
        components = auroc_components(self.score[self.clean], [self.score[group] for group in groups])
        return components, self.ids[np.concatenate([self.clean, *groups])]

    def estimate(self, which: NDArray[np.int64], level: float) -> Estimate:
        n = int(np.unique(self.ids[which]).size)
        if reason := self.problem(which):
            return undefined(n, reason)
        components, ids = self.components(which)
        return Estimate(components.value, *auroc_interval(components, level, ids), n)


@dataclass(frozen=True)
class CorruptionAuroc:
    """AUROC of corrupted against clean images by `ood_score`, for a mean over corruptions the mean of their AUROCs.

    Both sides are the same images, so DeLong's variance is taken over images (Obuchowski 1997).
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        scores = _Scores.of(rows)
        return {key: scores.estimate(which, level) for key, which in parts(rows) if key != CLEAN}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        old, new = _Scores.of(baseline), _Scores.of(candidate)
        out = {}
        for key, which in parts(baseline):
            if key == CLEAN:
                continue
            before, after = old.estimate(which, 1 - alpha), new.estimate(which, 1 - alpha)
            if before.value is None or after.value is None:
                out[key] = incomparable(before.n, before, after)
                continue
            (components, ids), (others, _) = old.components(which), new.components(which)
            change = auroc_difference(components, others, alpha, ids)
            out[key] = compared(change, before.n, before, after, alpha)
        return out


def _correct(rows: Rows) -> Mask:
    return np.asarray(rows["correct"], dtype=bool)


CORRUPTION_ACCURACY = ByCorruption(Proportion(_correct))
ENTROPY_RISE = ByCorruption(Mean("change"), against_clean("entropy"))
CORRUPTION_BITS_PER_DIM = ByCorruption(Mean("bits_per_dim"))
CORRUPTION_AUROC = CorruptionAuroc()
