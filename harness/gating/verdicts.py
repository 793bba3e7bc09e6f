"""One comparison -> a verdict with its reason in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from harness.gate_options import GateMode
from harness.info import Direction
from harness.metrics.base import Estimate, PairedDifference
from harness.statistics import detectable_effect, samples_needed

Verdict = Literal["ok", "new", "inconclusive", "unreliable", "error", "missing", "regressed"]

WORST_FIRST: tuple[Verdict, ...] = ("regressed", "missing", "error", "unreliable", "inconclusive", "new", "ok")

# A limit that is met to within rounding is met: 0.92 - 0.90 is more than 0.02 in floating point.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """What one row is held to; the amounts are in the metric's own units.

    `comparisons` is the number of tests that share alpha (Holm's family); 1 in the mode `noninferior`, which needs no
    correction: it passes only when every cell passes (intersection-union test, Berger 1982).
    """

    mode: GateMode
    alpha: float
    max_drop: float
    tolerance: float
    floor: float | None = None
    comparisons: int = 1


class Finding(NamedTuple):
    """A verdict, why, and how many samples would settle it where it is inconclusive."""

    verdict: Verdict
    reason: str
    samples_needed: int | None = None


class Gain(NamedTuple):
    """A paired difference counted so that more is better; `p_loss` is the p-value of a true loss."""

    value: float
    low: float
    high: float
    p_loss: float


def gain(difference: PairedDifference, direction: Direction) -> Gain | None:
    """The difference as a gain of the candidate; None where it has no finite value and bounds."""
    d = difference
    numbers = (d.value, d.low, d.high, d.p_decrease, d.p_increase)
    if d.value is None or d.low is None or d.high is None or d.p_decrease is None or d.p_increase is None:
        return None
    if not all(math.isfinite(v) for v in numbers if v is not None):
        return None
    if direction == "lower":
        return Gain(-d.value, -d.high, -d.low, d.p_increase)
    return Gain(d.value, d.low, d.high, d.p_decrease)


def judge(
    difference: PairedDifference,
    unchanged: PairedDifference,
    direction: Direction,
    limits: Limits,
    p_adjusted: float | None = None,
) -> Finding:
    """Judge a candidate's change.

    Args:
        difference: candidate minus baseline.
        unchanged: the baseline minus itself: what so many samples say when nothing changed.
        direction: which way is better; "higher" or "lower".
        limits: what the change is held to.
        p_adjusted: the p-value of a loss, corrected for the family (mode `detect`).
    """
    change, still = gain(difference, direction), gain(unchanged, direction)
    if change is None or still is None:
        return Finding("inconclusive", difference.reason or unchanged.reason or "the difference is undefined")
    if limits.mode == "noninferior":
        return _judge_noninferior(change, difference, limits)
    return _judge_detect(change, still, difference.n, limits, change.p_loss if p_adjusted is None else p_adjusted)


def _judge_detect(change: Gain, still: Gain, n: int, limits: Limits, p: float) -> Finding:
    """Regressed: significant over the family and larger than the tolerance.

    Inconclusive where n samples could not exclude a loss of `max_drop` even if nothing changed: then "no regression
    found" says nothing. What else goes undetected is told by the row's detectable effect.
    """
    loss = -change.value
    family = f" over {limits.comparisons} comparisons" if limits.comparisons > 1 else ""
    if p <= limits.alpha and loss > limits.tolerance + _ROUNDING:
        return Finding("regressed", f"lost {loss:.4g}, more than {limits.tolerance:g}; p = {p:.2g}{family}")
    if still.low <= -limits.max_drop + _ROUNDING:
        needed = unchanged_samples(still.low, limits.max_drop, n)
        reason = f"{n} samples cannot exclude a loss of {limits.max_drop:g} even if nothing changed; use about {needed}"
        return Finding("inconclusive", reason, needed)
    if loss > 0:
        if loss <= limits.tolerance + _ROUNDING:
            return Finding("ok", f"lost {loss:.4g}, within the tolerance {limits.tolerance:g}")
        return Finding("ok", f"lost {loss:.4g}, which may be chance: p = {p:.2g}{family}")
    return Finding("ok", "no loss" if loss == 0 else f"gained {change.value:.4g}")


def _judge_noninferior(change: Gain, difference: PairedDifference, limits: Limits) -> Finding:
    """Ok: the lower bound of the gain is above -max_drop. Regressed: not ok, and the upper bound is below zero."""
    bound = f"lower bound of the change {change.low:+.4g}"
    if change.low > -limits.max_drop + _ROUNDING:
        return Finding("ok", f"{bound} is above {-limits.max_drop:g}")
    if change.high < 0:
        return Finding("regressed", f"lost {-change.value:.4g}: {bound} is not above {-limits.max_drop:g}")
    needed = _settling_samples(change, difference, limits)
    more = f"; about {needed} samples would settle it" if needed else ""
    return Finding("inconclusive", f"{bound} is not above {-limits.max_drop:g}{more}", needed)


def _settling_samples(change: Gain, difference: PairedDifference, limits: Limits) -> int | None:
    """The count at which the difference observed would pass, or be shown to be a loss, whichever is smaller.

    A gain is taken as no change, so that a lucky small run does not promise too much.
    """
    n, spread = difference.n, difference.spread
    if change.value == 0 and difference.p_decrease == 1 and difference.p_increase == 1:
        return unchanged_samples(change.low, limits.max_drop, n)
    margins = [min(change.value, 0.0) + limits.max_drop, -change.value]
    usable = [m for m in margins if m > _ROUNDING]
    if not spread or not usable:
        return None
    return max(samples_needed(spread, max(usable), limits.alpha, 0.5), n + 1)


def unchanged_samples(low: float, max_drop: float, n: int) -> int:
    """How many samples two runs without any difference need to exclude a loss of `max_drop`.

    The score bound without discordance is low = -c / (n + c), so that c = -low n / (1 + low); it reaches -max_drop at
    n = c (1 - max_drop) / max_drop. Where the metric is no share, the bound is taken to shrink as 1 / n.
    """
    if low > -1 and max_drop < 1:
        c = -low * n / (1 + low)
        return max(math.ceil(c * (1 - max_drop) / max_drop), n + 1)
    return max(math.ceil(-low * n / max_drop), n + 1)


def judge_floor(candidate: Estimate, direction: Direction, floor: float) -> Finding:
    """Hold the candidate's own interval to the worst value allowed (a ceiling where lower is better)."""
    if candidate.value is None or candidate.low is None or candidate.high is None:
        return Finding("inconclusive", f"undefined, so not shown to keep the floor {floor:g}: {candidate.reason}")
    sign, word = (-1, "ceiling") if direction == "lower" else (1, "floor")
    worst, best = sorted((sign * candidate.low, sign * candidate.high))
    span = f"[{candidate.low:.4g}, {candidate.high:.4g}]"
    if worst >= sign * floor - _ROUNDING:
        return Finding("ok", f"interval {span} keeps the {word} {floor:g}")
    if best < sign * floor:
        return Finding("regressed", f"interval {span} is beyond the {word} {floor:g}")
    distance = sign * (candidate.value - floor)
    half = sign * candidate.value - worst if distance > 0 else best - sign * candidate.value
    needed = max(math.ceil(candidate.n * (half / distance) ** 2), candidate.n + 1) if distance else None
    more = f"; about {needed} samples would settle it" if needed else ""
    return Finding("inconclusive", f"interval {span} reaches over the {word} {floor:g}{more}", needed)


def minimal_detectable_effect(
    difference: PairedDifference, unchanged: PairedDifference, limits: Limits
) -> float | None:
    """The smallest true loss that this comparison finds in four of five runs, at alpha over the family.

    Never below what two runs without any difference can exclude.
    """
    if difference.spread is None or difference.n == 0:
        return None
    spread = max(difference.spread, unchanged.spread or 0.0)
    return detectable_effect(spread, difference.n, limits.alpha / limits.comparisons)


def worst(findings: Sequence[Finding]) -> Finding:
    """The worst verdict, with the reasons of all that are as bad, and the largest count asked for."""
    verdict = min((f.verdict for f in findings), key=WORST_FIRST.index)
    those = [f for f in findings if f.verdict == verdict]
    counts = [f.samples_needed for f in those if f.samples_needed is not None]
    return Finding(verdict, "; ".join(f.reason for f in those), max(counts, default=None))
