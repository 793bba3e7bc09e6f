"""May a robust accuracy be believed? It is an upper bound, and these checks say when an attack failed rather than lost.

Pure functions of an attack cell's rows. Sources: Carlini et al., "On Evaluating Adversarial Robustness" (2019);
Athalye et al., "Obfuscated Gradients Give a False Sense of Security" (2018); Pintor et al., "Indicators of Attack
Failure" (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.info import ProbeJudge
from harness.metrics.base import Rows
from harness.statistics import clopper_pearson, mcnemar

ZERO_GRADIENT_SHARE = 0.01
FLAT_LOSS_SHARE = 0.10
LATE_SUCCESS_SHARE = 0.05
LATE_STEPS = 0.10  # the part of the steps, at their end, in which a success counts as late
STRONGER_SHARE = 0.002  # of the probed images
UNBOUNDED_SHARE = 0.10  # chance of ten classes
MISSED_SHARE = 0.05
RISE = 0.005  # of robust accuracy with eps
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Check:
    """One check: whether it passed, and if not a sentence that says what was seen and what to do."""

    check: str
    ok: bool
    message: str


def audit(rows: Rows) -> list[Check]:
    """The checks whose columns are among `rows`; none for rows that are not those of an iterative attack."""
    checks = []
    for name, (columns, finding) in _CHECKS.items():
        if all(column in rows for column in columns):
            message = finding({column: np.asarray(rows[column]) for column in columns})
            checks.append(Check(name, not message, message))
    return checks


def non_monotone(cells: Sequence[tuple[float, Rows]]) -> list[Check]:
    """Whether raw robust accuracy rises with eps over the cells of one attack (Carlini et al., section 5).

    An adversarial image for a smaller eps is one for a larger, so a rise says that the attack with the larger eps
    failed. `cells` are (eps, rows) with ``sample_id``, ``clean_correct`` and ``success`` before the cells share their
    successes. Flagged: a rise above half a point that is significant (exact McNemar over the shared samples).
    """
    ordered = sorted(cells, key=lambda cell: cell[0])
    for number, (smaller, before) in enumerate(ordered):
        for larger, after in ordered[number + 1 :]:
            _, i, j = np.intersect1d(before["sample_id"], after["sample_id"], return_indices=True)
            had, has = _robust(before)[i], _robust(after)[j]
            lost, gained = int((had & ~has).sum()), int((~had & has).sum())
            if gained - lost > RISE * len(had) and mcnemar(lost, gained).p_increase < SIGNIFICANCE:
                message = (
                    f"robust accuracy rises from {had.mean():.1%} at eps {smaller:g} to {has.mean():.1%} at eps"
                    f" {larger:g}: the attack fails at the larger eps; use more steps or restarts, or another loss"
                )
                return [Check("non_monotone", False, message)]
    return [Check("non_monotone", True, "")]


def judge_probe(name: str, judge: ProbeJudge, advice: str, rows: Rows, probe: Rows) -> Check:
    """What a probe's rows say about an attack's (see `harness.info.Probe`)."""
    found = _PROBE_JUDGES[judge](rows, probe)
    return Check(name, not found, f"{found}; {advice}" if found else "")


def _stronger(rows: Rows, probe: Rows) -> str:
    """The probe fools images that the attack did not, and more than the other way round by chance."""
    _, i, j = np.intersect1d(rows["sample_id"], probe["sample_id"], return_indices=True)
    withstood, withstood_probe = _robust(rows)[i], _robust(probe)[j]
    more, fewer = int((withstood & ~withstood_probe).sum()), int((~withstood & withstood_probe).sum())
    if more - fewer <= STRONGER_SHARE * len(i) or mcnemar(more, fewer).p_decrease >= SIGNIFICANCE:
        return ""
    return f"another attack fools {more} of {int(withstood.sum())} images that this one did not, of {len(i)} probed"


def _unbounded(rows: Rows, probe: Rows) -> str:  # noqa: ARG001 - one signature for all judges
    """With a budget that allows any image nothing withstands (Carlini et al., section 5)."""
    robust = _robust(probe)
    count, n = int(robust.sum()), len(robust)
    if not _clearly_above(count, n, UNBOUNDED_SHARE):
        return ""
    return f"{count} of {n} images withstand the attack even where it may change them almost freely, so it is blind"


def _guaranteed(rows: Rows, probe: Rows) -> str:  # noqa: ARG001
    """Each sample has an adversarial image (Zimmermann et al. 2022), so an attack that works finds nearly all."""
    attacked = np.asarray(probe["clean_correct"], dtype=bool)
    missed, n = int((attacked & ~np.asarray(probe["success"], dtype=bool)).sum()), int(attacked.sum())
    if not _clearly_above(missed, n, MISSED_SHARE):
        return ""
    return f"the attack misses {missed} of {n} adversarial images that are there for certain"


_PROBE_JUDGES: dict[str, Callable[[Rows, Rows], str]] = {
    "stronger": _stronger,
    "unbounded": _unbounded,
    "guaranteed": _guaranteed,
}


def _robust(rows: Rows) -> NDArray[np.bool_]:
    robust: NDArray[np.bool_] = np.asarray(rows["clean_correct"], dtype=bool) & ~np.asarray(rows["success"], dtype=bool)
    return robust


def _clearly_above(count: int, n: int, share: float) -> bool:
    """Whether `count` of `n` proves more than `share`: a few samples never raise a flag."""
    return n > 0 and clopper_pearson(count, n, 1 - 2 * SIGNIFICANCE).low > share


def _zero_gradients(rows: Rows) -> str:
    """Masked gradients: more than 1 % of the attacked samples met a gradient that is zero in every entry."""
    attacked = rows["clean_correct"].astype(bool) & (rows["gradient_steps"] > 0)
    count, n = int((rows["zero_gradient_steps"][attacked] > 0).sum()), int(attacked.sum())
    if not _clearly_above(count, n, ZERO_GRADIENT_SHARE):
        return ""
    return (
        f"the input gradient was exactly zero at some step for {count} of {n} attacked samples, so the attack was"
        " blind there; attack the margin loss or a smooth copy of the model, and add a black-box attack (Square)"
    )


def _nonfinite_gradients(rows: Rows) -> str:
    """An attack cannot follow an infinite or undefined gradient at all, so one sample is enough."""
    attacked = rows["clean_correct"].astype(bool) & (rows["gradient_steps"] > 0)
    count = int((rows["nonfinite_gradient_steps"][attacked] > 0).sum())
    if not count:
        return ""
    return (
        f"the input gradient was infinite or NaN at some step for {count} of {int(attacked.sum())} attacked samples;"
        " find the operation that overflows, or attack in higher precision"
    )


def _loss_not_increasing(rows: Rows) -> str:
    """The attack's own objective did not rise for more than 10 % of the samples that withstood it (Pintor et al.)."""
    robust = rows["clean_correct"].astype(bool) & ~rows["success"].astype(bool) & (rows["gradient_steps"] > 0)
    known = robust & np.isfinite(rows["loss_first"]) & np.isfinite(rows["loss_last"])
    flat = known & (rows["loss_last"] <= rows["loss_first"])
    count, n = int(flat.sum()), int(known.sum())
    if not _clearly_above(count, n, FLAT_LOSS_SHARE):
        return ""
    return (
        f"the attack's loss did not rise for {count} of {n} samples that withstood it; try a smaller step size, another"
        " loss, more restarts, or EOT if the model is random"
    )


def _not_converged(rows: Rows) -> str:
    """More than 5 % of the successes came in the last tenth of the steps (Carlini et al., section 5)."""
    timed = rows["clean_correct"].astype(bool) & rows["success"].astype(bool) & (rows["success_step"] >= 0)
    late = timed & (rows["success_step"] > (1 - LATE_STEPS) * rows["steps"])
    count, n = int(late.sum()), int(timed.sum())
    if not _clearly_above(count, n, LATE_SUCCESS_SHARE):
        return ""
    return (
        f"{count} of {n} successes came in the last {LATE_STEPS:.0%} of the steps, so more steps would find more;"
        " raise steps until the number no longer falls"
    )


_CHECKS: dict[str, tuple[tuple[str, ...], Callable[[Rows], str]]] = {
    "zero_gradients": (("clean_correct", "gradient_steps", "zero_gradient_steps"), _zero_gradients),
    "nonfinite_gradients": (("clean_correct", "gradient_steps", "nonfinite_gradient_steps"), _nonfinite_gradients),
    "loss_not_increasing": (
        ("clean_correct", "success", "gradient_steps", "loss_first", "loss_last"),
        _loss_not_increasing,
    ),
    "not_converged": (("clean_correct", "success", "success_step", "steps"), _not_converged),
}

COLUMNS: tuple[str, ...] = tuple(
    dict.fromkeys(("sample_id", *(column for columns, _ in _CHECKS.values() for column in columns)))
)
"""The columns that the checks look for."""
