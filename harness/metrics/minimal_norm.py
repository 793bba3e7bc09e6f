"""Minimal-norm attacks: how far the nearest adversarial image is, and robust accuracy at every budget from one run.

Rows hold `minimal_norm`: the norm of the smallest perturbation found to fool the model, infinite where none was found,
0 for a sample that is misclassified as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from harness.metrics.accuracy import Mask, Proportion
from harness.metrics.base import Estimate, PairedDifference, Rows
from harness.metrics.norms import MedianNorm
from harness.metrics.paired import incomparable
from harness.statistics import Floats

_GREY_STEPS = 255


@dataclass(frozen=True)
class MinimalNormMedian(MedianNorm):
    """Median of the smallest norms over the initially correct samples, failed attacks infinite (see `MedianNorm`)."""

    norm: str = "minimal_norm"

    def _censored(self, rows: Rows) -> Floats:
        return np.asarray(rows[self.norm], dtype=float)


@dataclass(frozen=True)
class SecurityCurve:
    """Robust accuracy at each budget of the column `curve`: the share of all samples whose `minimal_norm` is larger.

    A failed attack's norm is infinite, so it counts as robust at every budget; a clean error at none. An interval per
    point, Clopper-Pearson. Runs with different budgets are compared at those that they share.
    """

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        return {budget_text(eps): _robust_at(eps).estimate(rows, level)[""] for eps in _budgets(rows)}

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        before, after = self.estimate(baseline, 1 - alpha), self.estimate(candidate, 1 - alpha)
        out = {}
        for eps in _budgets(baseline):
            name = budget_text(eps)
            if name in after:
                out[name] = _robust_at(eps).difference(baseline, candidate, alpha)[""]
            else:
                reason = f"the candidate's curve has no budget {name}"
                out[name] = incomparable(before[name].n, before[name], before[name], reason)
        return out


def budget_text(eps: float) -> str:
    """A budget as people write it: "8/255" for grey levels, else its shortest decimal form."""
    text = f"{eps:g}"
    steps = round(eps * _GREY_STEPS)
    grey = 0 < steps <= _GREY_STEPS and abs(eps * _GREY_STEPS - steps) < 1e-9
    return f"{steps}/255" if grey and len(text) > 4 else text


def _budgets(rows: Rows) -> list[float]:
    curve = np.asarray(rows["curve"], dtype=float)
    return [float(eps) for eps in curve[0]] if len(curve) else []


def _robust_at(eps: float) -> Proportion:
    return Proportion(_withstands(eps))


def _withstands(eps: float) -> Callable[[Rows], Mask]:
    return lambda rows: np.asarray(rows["minimal_norm"], dtype=float) > eps


MINIMAL_NORM_MEDIAN = MinimalNormMedian()
ROBUST_ACCURACY_AT = SecurityCurve()
