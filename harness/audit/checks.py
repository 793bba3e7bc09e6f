"""Checks that cost nothing: they read what an attack's rows say of its own course.

Sources: Carlini et al., "On Evaluating Adversarial Robustness" (2019); Athalye et al., "Obfuscated Gradients Give a
False Sense of Security" (2018); Pintor et al., "Indicators of Attack Failure" (2022); the sanity checks of AutoAttack
(Croce and Hein 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.metrics.base import Rows
from harness.statistics import clopper_pearson

ZERO_GRADIENT_SHARE = 0.01
FLAT_LOSS_SHARE = 0.10
LATE_SUCCESS_SHARE = 0.05
LATE_STEPS = 0.10  # the part of the steps, at their end, in which a success counts as late
LOST_SHARE = 0.01  # of the samples: what the attack called a success and the host did not
ROUNDED_SHARE = 0.50  # of the successes: what may be lost in an 8-bit file (an image just over the boundary easily is)
BLACK_BOX_SHARE = 0.01  # of the samples: what a black-box part may find that the parts with gradients did not
REJECTED_SHARE = 0.50  # of the successes: what the model's own detector may reject
REFUSED_SHARE = 0.05
NOT_SHOWN_SHARE = 0.05
NOT_FOUND_SHARE = 0.05
BLACK_BOX = ("square",)  # parts of an ensemble that use no gradient
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
        if all(column in rows for column in columns) and _UNLESS.get(name) not in rows:
            message = finding({column: np.asarray(rows[column]) for column in columns})
            checks.append(Check(name, not message, message))
    return checks


def clearly_above(count: int, n: int, share: float) -> bool:
    """Whether `count` of `n` proves more than `share`, by an exact one-sided bound: a few samples raise no flag."""
    return n > 0 and clopper_pearson(count, n, 1 - 2 * SIGNIFICANCE).low > share


def _zero_gradients(rows: Rows) -> str:
    """Masked gradients: more than 1 % of the attacked samples met a gradient that is zero in every entry."""
    attacked = rows["clean_correct"].astype(bool) & (rows["gradient_steps"] > 0)
    count, n = int((rows["zero_gradient_steps"][attacked] > 0).sum()), int(attacked.sum())
    if not clearly_above(count, n, ZERO_GRADIENT_SHARE):
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
    if not clearly_above(count, n, FLAT_LOSS_SHARE):
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
    if not clearly_above(count, n, LATE_SUCCESS_SHARE):
        return ""
    return (
        f"{count} of {n} successes came in the last {LATE_STEPS:.0%} of the steps, so more steps would find more;"
        " raise steps until the number no longer falls"
    )


def _silent_success(rows: Rows) -> str:
    """The attack believed in images that do not fool (Pintor et al.); lucky draws of a random model do not count."""
    attacked = rows["clean_correct"].astype(bool) & ~rows["stochastic"].astype(bool)
    lost = attacked & (rows["success_step"] >= 0) & ~rows["success"].astype(bool)
    count, n = int(lost.sum()), int(attacked.sum())
    if not clearly_above(count, n, LOST_SHARE):
        return ""
    return (
        f"the attack met a misclassified image for {count} of {n} samples but the image stored does not fool; look for"
        " answers that depend on the batch or change from call to call (declare the model random)"
    )


def _random_without_eot(rows: Rows) -> str:
    """One draw of the gradient is not the gradient of what is judged (Athalye et al., section 4.2)."""
    blind = rows["stochastic"].astype(bool) & (rows["eot"] <= 1) & (rows["gradient_steps"] > 0)
    if not blind.any():
        return ""
    return (
        "the model is random and the attack follows the gradient of one draw, so the number may be far too high; set"
        " eot = 10 or more, and raise it until the number no longer falls"
    )


def _lost_by_rounding(rows: Rows) -> str:
    """Images that fool only between two grey levels are no images that could be stored."""
    success = rows["success"].astype(bool)
    lost = success & ~rows["success_rounded"].astype(bool)
    count, n = int(lost.sum()), int(success.sum())
    if not clearly_above(count, n, ROUNDED_SHARE):
        return ""
    return (
        f"{count} of {n} adversarial images no longer fool once rounded to 8 bits, so the number is about images that"
        " no file can hold; attack at a larger eps, or read the rounded column"
    )


def _black_box_wins(rows: Rows) -> str:
    """A part without gradients found what those with gradients, which came first, did not."""
    attacked = rows["clean_correct"].astype(bool)
    found = attacked & rows["success"].astype(bool) & np.isin(rows["attack"].astype(str), BLACK_BOX)
    count, n = int(found.sum()), int(attacked.sum())
    if not clearly_above(count, n, BLACK_BOX_SHARE):
        return ""
    return (
        f"the black-box part fooled {count} of {n} samples that withstood the parts with gradients, so the gradients"
        " mislead; give the model a differentiable surrogate (BPDA), or spend more queries"
    )


def _fails_without_budget(rows: Rows) -> str:
    """Where any perturbation will do, an attack that finds none has failed (Athalye et al. 2018, section 3.1)."""
    right = rows["clean_correct"].astype(bool)
    count, n = int((right & ~rows["found"].astype(bool)).sum()), int(right.sum())
    if not clearly_above(count, n, NOT_FOUND_SHARE):
        return ""
    return (
        f"the attack found nothing for {count} of {n} samples although it has no budget, so the norms and the curve say"
        " how weak it is; give it more steps or restarts, or a surrogate with a gradient (BPDA)"
    )


def _refused(rows: Rows) -> str:
    """A library's attack was given the budget, and returned what lies outside it: another norm, or a fault."""
    given = rows["clean_correct"].astype(bool) & rows["budget_given"].astype(bool)
    count, n = int((given & rows["refused"].astype(bool)).sum()), int(given.sum())
    if not clearly_above(count, n, REFUSED_SHARE):
        return ""
    return (
        f"the library's image was refused for {count} of {n} samples, because it lies outside the budget or is not"
        " finite, and counts as a failed attack; set the norm that the attack itself bounds"
    )


def _nothing_shown(rows: Rows) -> str:
    """A sample of which there is no image to replay counts as robust, and nobody attacked it."""
    right = rows["clean_correct"].astype(bool)
    count, n = int((right & (rows["replayed"] == 0)).sum()), int(right.sum())
    if not clearly_above(count, n, NOT_SHOWN_SHARE):
        return ""
    return (
        f"for {count} of {n} samples the run stored no image inside the budget, and they count as robust; replay a run"
        " that attacked these samples at this budget or a smaller one"
    )


def _detector_ignored(rows: Rows) -> str:
    """An attack that does not know of a detector says nothing about it (Tramèr et al. 2020, section 3)."""
    success = rows["success"].astype(bool)
    limit = rows["ood_threshold"][:, 1]
    count, n = int((success & (rows["adversarial_ood_score"] > limit)).sum()), int(success.sum())
    if not clearly_above(count, n, REJECTED_SHARE):
        return ""
    return (
        f"the model's detector rejects {count} of {n} adversarial images, and the attack did not try to evade it, so"
        " robust accuracy with rejection is no bound; attack with evade set"
    )


_CHECKS: dict[str, tuple[tuple[str, ...], Callable[[Rows], str]]] = {
    "zero_gradients": (("clean_correct", "gradient_steps", "zero_gradient_steps"), _zero_gradients),
    "nonfinite_gradients": (("clean_correct", "gradient_steps", "nonfinite_gradient_steps"), _nonfinite_gradients),
    "loss_not_increasing": (
        ("clean_correct", "success", "gradient_steps", "loss_first", "loss_last"),
        _loss_not_increasing,
    ),
    "not_converged": (("clean_correct", "success", "success_step", "steps"), _not_converged),
    "silent_success": (("clean_correct", "success", "success_step", "stochastic"), _silent_success),
    "random_without_eot": (("stochastic", "eot", "gradient_steps"), _random_without_eot),
    "lost_by_rounding": (("success", "success_rounded"), _lost_by_rounding),
    "black_box_wins": (("clean_correct", "success", "attack"), _black_box_wins),
    "fails_without_budget": (("clean_correct", "found"), _fails_without_budget),
    "refused": (("clean_correct", "budget_given", "refused"), _refused),
    "nothing_shown": (("clean_correct", "replayed"), _nothing_shown),
    "detector_ignored": (("success", "adversarial_ood_score", "ood_threshold"), _detector_ignored),
}

LIMITED = {"detector_ignored": ("robust_accuracy_at_detector_fpr", "evasion_rate")}
"""Checks that say nothing about a cell as a whole, with the metrics that they withhold."""

_UNLESS = {"detector_ignored": "evaded"}
"""Columns that show that a check has no object."""

_OF_PROBES = ("sample_id", "clean_correct", "success", "task_posed", "task_solved")

COLUMNS: tuple[str, ...] = tuple(
    dict.fromkeys([column for columns, _ in _CHECKS.values() for column in columns] + [*_UNLESS.values(), *_OF_PROBES])
)
"""The columns that the checks look for, in an attack's rows and in those of its probes."""
