"""What an evaluation cost: the model evaluations that the host counted per sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.metrics.base import Estimate, Rows
from harness.metrics.means import Mean


@dataclass(frozen=True)
class MeanCost(Mean):
    """Mean of a counting column over rows: as `Mean`, its interval from 0 up."""

    def _estimate(self, rows: Rows, level: float) -> Estimate:
        found = super()._estimate(rows, level)
        return found if found.low is None else replace(found, low=max(found.low, 0.0))


FORWARDS_MEAN = MeanCost("forwards")
BACKWARDS_MEAN = MeanCost("backwards")
