"""Mean corruption error, plain and relative: error rates under corruption against those of a reference (eq. 1 and 2 of
Hendrycks & Dietterich 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.alexnet import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, SEVERITIES, STANDARD
from harness.metrics.base import CellRows, Estimate, Rows, Summary, finite_or_undefined, undefined
from harness.metrics.corruption import CLEAN
from harness.metrics.options import ALEXNET, ReferenceOptions
from harness.statistics import Floats, atom_interval, bootstrap, once, sampling_units

_NOTHING_LOST = "the reference loses nothing under a corruption"
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
class Rates:
    """Error rates: `corrupted` (B or 1, 15, 5) and `clean` (B or 1,)."""

    corrupted: Floats
    clean: Floats


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
        if partner is cell:
            return Estimate(1.0, 1.0, 1.0, n)
        own = errors_of(cell.rows)
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
                f" {cell.dataset} with {cell.classes}; name a model of the suite as [metrics.NAME] reference",
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

        def statistic(weights: NDArray[Any]) -> Floats:
            reference = _ALEXNET if other is None else _rates(other, weights)
            return self._of(_rates(own, weights), reference)

        value = float(statistic(once(n))[0])
        if not np.isfinite(value):
            return undefined(n, _NOTHING_LOST)
        result = bootstrap(statistic, sampling_units(own.ids), level)
        low, high = float(result.low), float(result.high)
        if np.isfinite(result.distribution).all() and np.ptp(result.distribution) < 1e-13:
            reference = _ALEXNET if other is None else _rates(other, once(n))
            worst = Rates(np.ones((1, len(STANDARD), len(SEVERITIES))), _rates(own, once(n)).clean)
            top = float(self._of(worst, reference)[0])  # every corrupted image wrong
            low, high = (top * share for share in atom_interval(value / top, n, level))
        return finite_or_undefined(value, min(low, value), max(high, value), n, _NOTHING_LOST)

    def _of(self, own: Rates, reference: Rates) -> Floats:
        """(B,), NaN or infinite where the reference has no errors to be relative to."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self._summed(own) / self._summed(reference)
        return np.asarray(ratios.mean(axis=-1))

    def _summed(self, rates: Rates) -> Floats:
        """(B, 15) error rates summed over severities, less the clean one where relative."""
        taken_off = rates.clean[:, None, None] if self.relative else 0.0
        return np.asarray((rates.corrupted - taken_off).sum(axis=-1))


def _rates(errors: Errors, weights: NDArray[Any]) -> Rates:
    share = weights / weights.sum(axis=-1, keepdims=True)
    flat = share @ errors.corrupted.reshape(errors.ids.size, -1)
    return Rates(flat.reshape(-1, len(STANDARD), len(SEVERITIES)), share @ errors.clean)


_ALEXNET = Rates(np.array([list(ALEXNET_ERRORS.values())]), np.array([ALEXNET_CLEAN_ERROR]))


def lacking(rows: Rows) -> str:
    """Why the rows do not make a mean corruption error, in a line; empty where they do."""
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
