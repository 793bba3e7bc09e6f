"""From a statistic of two runs to what a gate reads."""

from __future__ import annotations

import math

from harness.metrics.base import Estimate, PairedDifference
from harness.statistics import Difference, spread_of


def compared(change: Difference, n: int, baseline: Estimate, candidate: Estimate, alpha: float) -> PairedDifference:
    """The paired difference over n samples, or an undefined one where a bound is not finite."""
    if not all(math.isfinite(v) for v in change):
        return incomparable(n, baseline, candidate, "the difference or a bound of it is not finite")
    return PairedDifference(
        value=change.value,
        low=change.low,
        high=change.high,
        p_decrease=change.p_decrease,
        p_increase=change.p_increase,
        n=n,
        spread=spread_of(change.value, change.low, change.high, n, alpha),
        baseline=baseline,
        candidate=candidate,
    )


def incomparable(n: int, baseline: Estimate, candidate: Estimate, reason: str = "") -> PairedDifference:
    """No difference, with `reason` or else that of the estimate which is undefined."""
    reasons = (f"{side}: {e.reason}" for side, e in (("baseline", baseline), ("candidate", candidate)) if e.reason)
    return PairedDifference(None, None, None, None, None, n, None, baseline, candidate, reason or "; ".join(reasons))
