"""Mean corruption error, plain and relative: error rates under corruption against those of a reference (eq. 1 and 2 of
Hendrycks & Dietterich 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.alexnet import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, SEVERITIES, STANDARD
from harness.metrics.base import CellRows, Estimate, Rows, Summary, undefined
from harness.metrics.corruption import CLEAN, MNIST_C
from harness.metrics.options import ALEXNET, ReferenceOptions
from harness.statistics import Floats, atom_interval, bootstrap, once, sampling_units

_IMAGENET_CLASSES = 1000  # whichever plugin reads it: a folder, or arrays
_IMAGENET_C = "imagenet-c"


@dataclass(frozen=True)
class Errors:
    """Which images a model gets wrong: float64, 0 or 1.

    Attributes:
        ids: (n,) sample ids, ascending.
        corrupted: (n, 15, 5).
        clean: (n,).
    """

    ids: NDArray[Any]
    corrupted: Floats
    clean: Floats

    def of(self, ids: NDArray[Any]) -> Errors:
        """Of these samples alone, all of them known."""
        place = np.searchsorted(self.ids, ids)
        return Errors(ids, self.corrupted[place], self.clean[place])


@dataclass(frozen=True)
class MeanCorruptionError:
    """The mean over the 15 corruptions of the error rate summed over severities, over that of the reference.

    The relative one takes the clean error rate off both: what corruption adds. 1 is as bad as the reference. Of each
    model and data set whose rows hold all corruptions at all severities and the clean images; otherwise undefined.
    Bootstrap over samples; a model of the run that serves as reference is resampled along, AlexNet's rates are fixed.
    """

    reference: str
    relative: bool

    def summarise(self, cells: Sequence[CellRows], level: float) -> Sequence[Summary]:
        several = len({(cell.threat, cell.dataset) for cell in cells}) > 1
        found = []
        for cell in cells:
            partner = next((c for c in cells if c.model == self.reference and _alike(c, cell)), None)
            members = {cell.id: cell} if partner is None else {cell.id: cell, partner.id: partner}
            subject = f"{cell.model} under {cell.threat} on {cell.dataset}" if several else cell.model
            found.append(Summary(subject, tuple(members), self._estimate(cell, partner, cells, level)))
        return found

    def _estimate(self, cell: CellRows, partner: CellRows | None, cells: Sequence[CellRows], level: float) -> Estimate:
        n = int(np.unique(cell.rows["sample_id"]).size)
        if reason := lacking(cell.rows):
            return undefined(n, reason)
        own = errors_of(cell.rows)
        if partner is cell:
            free = self._without_loss(self._counted(own, once(n))[0])
            return undefined(n, free) if free else Estimate(1.0, 1.0, 1.0, n)
        if partner is not None:
            if reason := lacking(partner.rows):
                return undefined(n, f"the reference {self.reference}: {reason}")
            other = errors_of(partner.rows)
            shared = np.intersect1d(own.ids, other.ids)
            return self._bootstrapped(own.of(shared), other.of(shared), level)
        if self.reference != ALEXNET:
            names = ", ".join(sorted({c.model for c in cells if _alike(c, cell)}))
            reason = f"no model '{self.reference}' ran these corruptions on these data; {names} did"
            return undefined(n, reason)
        if cell.classes != _IMAGENET_CLASSES:
            return undefined(
                n,
                f"AlexNet's published error rates are of ImageNet-C and its {_IMAGENET_CLASSES:,} classes, not of"
                f" {cell.dataset} with {cell.classes}; give ImageNet photos all class names (class_names of npz), else"
                " name a model of the suite as [metrics.NAME] reference",
            )
        tables = set(np.asarray(cell.rows["table"]).astype(str).tolist())
        if tables != {_IMAGENET_C}:
            reason = f"AlexNet's published error rates are of table {_IMAGENET_C}, not of {', '.join(tables)}"
            return undefined(n, reason)
        return self._bootstrapped(own, None, level)

    def _bootstrapped(self, own: Errors, other: Errors | None, level: float) -> Estimate:
        n = own.ids.size
        if n < 2:
            return undefined(n, "fewer than two samples")

        def reference(weights: NDArray[Any]) -> Floats:
            return self._alexnet * n if other is None else self._counted(other, weights)

        def statistic(weights: NDArray[Any]) -> Floats:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray((self._counted(own, weights) / reference(weights)).mean(axis=-1))

        least = reference(once(n))[0]
        if free := self._without_loss(least):
            return undefined(n, free)
        value = float(statistic(once(n))[0])
        result = bootstrap(statistic, sampling_units(own.ids), level)
        distribution, low, high = result.distribution, float(result.low), float(result.high)
        defined = np.isfinite(distribution)
        if defined.all() and np.ptp(distribution) < 1e-13:
            low, high = self._of_one_value(value, least / n, n, level)
        elif not defined.all():
            # A resample without a ratio could lie anywhere, so it counts as beyond both bounds.
            tail = int((1 - level) / 2 * (distribution.size - 1))
            low = float(np.sort(np.where(defined, distribution, -np.inf))[tail])
            high = float(np.sort(np.where(defined, distribution, np.inf))[-1 - tail])
        return self._stated(value, min(low, value), max(high, value), n, 1 - float(defined.mean()))

    def _stated(self, value: float, low: float, high: float, n: int, broken: float) -> Estimate:
        """The estimate, where the reference loses nothing under a corruption in a share `broken` of resamples."""
        if not broken:
            return Estimate(value, low, high, n)
        what = f"in {100 * broken:.1f} % of the resamples of the images the reference {self._loses_nothing}"
        if np.isfinite([low, high]).all():
            return Estimate(value, low, high, n, f"{what} a corruption; they count as beyond both bounds")
        return undefined(n, f"{100 * value:.1f} % of these images, without an interval: {what} a corruption")

    def _of_one_value(self, value: float, reference: Floats, n: int, level: float) -> tuple[float, float]:
        """Bounds where every resample gives `value`: images not seen may be all wrong, or as good as can be.

        Args:
            reference: (15,) what the reference loses per image.
        """
        most = float((len(SEVERITIES) / np.abs(reference)).mean())
        seen = 1 - atom_interval(0.0, n, level).high  # the least part of all images that those seen stand for
        least = -most if self.relative else 0.0
        return value - (1 - seen) * (value - least), value + (1 - seen) * (most - value)

    def _without_loss(self, reference: Floats) -> str:
        """Why nothing is relative to these numbers (15,), or an empty string."""
        names = [name for name, lost in zip(STANDARD, reference, strict=True) if lost == 0]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"the reference {self._loses_nothing} {', '.join(names[:3])}{more}" if names else ""

    @property
    def _loses_nothing(self) -> str:
        return "loses nothing, over all severities, under" if self.relative else "makes no errors under"

    @property
    def _alexnet(self) -> Floats:
        """(1, 15): what `_counted` gives, per image."""
        rates = np.array(list(ALEXNET_ERRORS.values()))[None]
        return np.asarray((rates - (ALEXNET_CLEAN_ERROR if self.relative else 0.0)).sum(axis=-1))

    def _counted(self, errors: Errors, weights: NDArray[Any]) -> Floats:
        """(B, 15) errors summed over severities, less those on the clean images where relative.

        Whole numbers: what is nothing is 0 exactly, and the models of a run have the same number of images.
        """
        wrong = (weights @ errors.corrupted.reshape(errors.ids.size, -1)).reshape(-1, len(STANDARD), len(SEVERITIES))
        taken_off = (weights @ errors.clean)[:, None, None] if self.relative else 0.0
        return np.asarray((wrong - taken_off).sum(axis=-1))


def lacking(rows: Rows) -> str:
    """Why the rows do not make a mean corruption error, in a line; empty where they do."""
    if MNIST_C in np.asarray(rows["table"]):
        return "MNIST-C has other corruptions than those it is made of; corruption_accuracy[all] is their mean"
    counts = _counts(rows)
    n = max(counts.values(), default=0)
    absent = [name for name in STANDARD if not any(counts.get((name, s)) for s in SEVERITIES)]
    partly = [
        f"{name} severity {s}"
        for name in STANDARD
        for s in SEVERITIES
        if name not in absent and counts.get((name, s), 0) < n
    ]
    clean = [] if counts.get((CLEAN, 0), 0) == n else ["the clean images"]
    missing = [*absent, *partly, *clean]
    if not missing:
        return ""
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"needs every sample under all 15 corruptions at 5 severities; missing: {', '.join(missing[:3])}{more}"


def _counts(rows: Rows) -> Mapping[tuple[str, int], int]:
    names, code = np.unique(np.asarray(rows["corruption"]).astype(str), return_inverse=True)
    severities, level = np.unique(np.asarray(rows["severity"]), return_inverse=True)
    counts = np.bincount(code * severities.size + level, minlength=names.size * severities.size)
    pairs = ((str(name), int(severity)) for name in names for severity in severities)
    return {pair: int(count) for pair, count in zip(pairs, counts, strict=True) if count}


def errors_of(rows: Rows) -> Errors:
    """From rows that lack nothing: columns sample_id, corruption, severity, correct."""
    names, severities = np.asarray(rows["corruption"]).astype(str), np.asarray(rows["severity"]).astype(int)
    ids, wrong = np.asarray(rows["sample_id"]), ~np.asarray(rows["correct"], dtype=bool)

    def of(name: str, severity: int) -> Floats:
        inside = np.flatnonzero((names == name) & (severities == severity))
        return wrong[inside[np.argsort(ids[inside], kind="stable")]].astype(float)

    corrupted = np.stack([np.stack([of(name, s) for s in SEVERITIES], axis=1) for name in STANDARD], axis=1)
    return Errors(np.unique(ids), corrupted, of(CLEAN, 0))


def _alike(a: CellRows, b: CellRows) -> bool:
    return (a.threat, a.dataset) == (b.threat, b.dataset)


def mean_corruption_error(options: ReferenceOptions) -> MeanCorruptionError:
    return MeanCorruptionError(options.reference, relative=False)


def relative_mean_corruption_error(options: ReferenceOptions) -> MeanCorruptionError:
    return MeanCorruptionError(options.reference, relative=True)
