"""Means of a column of the rows, with normal intervals over samples; and a metric taken at each value of a column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.metrics.base import Estimate, Metric, PairedDifference, Rows, part_of, undefined
from harness.metrics.paired import compared, incomparable
from harness.statistics import Floats, cluster_sums, mean_difference, mean_interval

TOO_FEW = "fewer than two samples"


@dataclass(frozen=True)
class Mean:
    """Mean of a numerical column over rows; rows of one ``sample_id`` are one cluster.

    Undefined, with the number of rows that are to blame, where the column is not finite.
    """

    column: str

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {"": self._estimate(rows, level)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self._estimate(baseline, 1 - alpha), self._estimate(candidate, 1 - alpha)
        if before.value is None or after.value is None:
            return {"": incomparable(before.n, before, after)}
        change = per_sample(candidate, self._values(candidate) - self._values(baseline))
        return {"": compared(mean_difference(change, alpha), before.n, before, after, alpha)}

    def _values(self, rows: Rows) -> Floats:
        return np.asarray(rows[self.column], dtype=np.float64)

    def _estimate(self, rows: Rows, level: float) -> Estimate:
        values, ids = self._values(rows), np.asarray(rows["sample_id"])
        n = int(np.unique(ids).size)
        if n < 2:
            return undefined(n, TOO_FEW)
        if reason := not_finite(values, self.column):
            return undefined(n, reason)
        low, high = mean_interval(values, ids, level)
        return Estimate(float(values.mean()), low, high, n)


@dataclass(frozen=True)
class AtEach:
    """A metric of the rows at each value of the numerical column `variant`, keyed by that value: "0.5".

    Attributes:
        metric: has one estimate, keyed "".
        variant: the column.
        without: a value that is left out.
    """

    metric: Metric
    variant: str
    without: float | None = None

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {key_of(v): self.metric.estimate(part, level)[""] for v, part in self._parts(rows).items()}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        after = self._parts(candidate)
        return {
            key_of(value): self.metric.difference(part, after[value], alpha)[""]
            for value, part in self._parts(baseline).items()
        }

    def _parts(self, rows: Rows) -> dict[float, Rows]:
        variant = np.asarray(rows[self.variant], dtype=np.float64)
        values = [float(v) for v in np.unique(variant) if v != self.without]
        return {v: part_of(rows, variant == v) for v in values}


def key_of(value: float) -> str:
    """How a variant's number is written in the name of an estimate: ``bits_per_dim[0.5]``."""
    return f"{value:.6g}"


def per_sample(rows: Rows, values: Floats) -> Floats:
    """The contribution of each sample to the mean of `values` (rows,), in the order of ids: their mean is that mean."""
    sums, sizes = cluster_sums(values, np.asarray(rows["sample_id"]))
    return np.asarray(sums / sizes.mean())


def not_finite(values: Floats, what: str) -> str:
    """Why `values` have no mean, or an empty string."""
    broken = int((~np.isfinite(values)).sum())
    return f"{what} is not finite in {broken} of {values.size} rows" if broken else ""
