"""What an evaluation cost: the model evaluations that the host counted per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.metrics.base import Estimate, PairedDifference, Rows, undefined
from harness.metrics.paired import compared, incomparable
from harness.statistics import cluster_sums, mean_difference, mean_interval


@dataclass(frozen=True)
class MeanCost:
    """Mean of a counting column over rows, with a normal interval from 0 up; rows of one sample are a cluster."""

    column: str

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        values, ids = np.asarray(rows[self.column], dtype=float), np.asarray(rows["sample_id"])
        n = int(np.unique(ids).size)
        if n < 2:
            return {"": undefined(n, "fewer than two samples")}
        low, high = mean_interval(values, ids, level)
        return {"": Estimate(float(values.mean()), max(low, 0.0), high, n)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self.estimate(baseline, 1 - alpha)[""], self.estimate(candidate, 1 - alpha)[""]
        if before.value is None or after.value is None:
            return {"": incomparable(before.n, before, after)}
        change = np.asarray(candidate[self.column], dtype=float) - np.asarray(baseline[self.column], dtype=float)
        sums, sizes = cluster_sums(change, np.asarray(baseline["sample_id"]))
        return {"": compared(mean_difference(sums / sizes.mean(), alpha), before.n, before, after, alpha)}


FORWARDS_MEAN = MeanCost("forwards")
BACKWARDS_MEAN = MeanCost("backwards")
