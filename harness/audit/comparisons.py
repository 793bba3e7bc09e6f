"""Checks that set the rows of one cell against those of another: a larger budget, or a probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.audit.checks import SIGNIFICANCE, Check, clearly_above
from harness.info import ProbeJudge
from harness.metrics.base import Rows
from harness.statistics import clopper_pearson, mcnemar

RISE = 0.005  # of robust accuracy with eps
STRONGER_SHARE = 0.015  # of the samples: what a probe may find beyond the attack
UNBOUNDED_SHARE = 0.05  # of the samples: what may stand where nothing is out of reach
GUARANTEED_SHARE = 0.95  # of the tasks: what an attack must solve (Zimmermann et al. 2022, section 4)


def judge_probe(probe: str, judge: ProbeJudge, advice: str, rows: Rows, probe_rows: Rows) -> Check:
    """What the rows of a probe say about an attack.

    Args:
        probe: the probe's name, which is the check's.
        judge: "stronger": flagged where the probe surely fools more than 1.5 % of the samples that the attack did not
            fool. "unbounded": where surely more than 5 % of the samples withstand a budget that covers the image space
            (Athalye et al. 2018, section 3.1). "guaranteed": where the attack surely solves fewer than 95 % of the
            tasks whose solution is known to exist. Surely: by a one-sided exact binomial bound at 5 %.
        advice: what to do, half a sentence.
        rows, probe_rows: of the cell and of the probe, with ``sample_id``, ``clean_correct`` and ``success``; a
            probe that poses tasks of its own has ``task_posed`` and ``task_solved`` instead of the last two.
    """
    count, n = _COUNTED[judge](rows, probe_rows)
    if not tells(judge, count, n):
        return Check(probe, True, "")
    name = probe.removeprefix("probe_").replace("_", " ")
    return Check(probe, False, f"{_SEEN[judge].format(count=count, n=n, name=name)}; {advice}")


def tells(judge: ProbeJudge, count: int, n: int) -> bool:
    """Whether `count` of `n` samples, fooled, standing or solved as `judge` has it, prove that the attack failed."""
    if judge == "guaranteed":
        return n > 0 and clopper_pearson(count, n, 1 - 2 * SIGNIFICANCE).high < GUARANTEED_SHARE
    return clearly_above(count, n, STRONGER_SHARE if judge == "stronger" else UNBOUNDED_SHARE)


def _fooled_beyond(rows: Rows, probe_rows: Rows) -> tuple[int, int]:
    _, i, j = np.intersect1d(rows["sample_id"], probe_rows["sample_id"], return_indices=True)
    found = _robust(rows)[i] & np.asarray(probe_rows["success"], dtype=bool)[j]
    return int(found.sum()), int(np.asarray(rows["clean_correct"], dtype=bool)[i].sum())


def _standing(rows: Rows, probe_rows: Rows) -> tuple[int, int]:  # noqa: ARG001 - at its own budget anything may stand
    return int(_robust(probe_rows).sum()), int(np.asarray(probe_rows["clean_correct"], dtype=bool).sum())


def _solved(rows: Rows, probe_rows: Rows) -> tuple[int, int]:  # noqa: ARG001 - the tasks are the probe's own
    posed, solved = ("task_posed", "task_solved") if "task_posed" in probe_rows else ("clean_correct", "success")
    there = np.asarray(probe_rows[posed], dtype=bool)
    return int((there & np.asarray(probe_rows[solved], dtype=bool)).sum()), int(there.sum())


_COUNTED = {"stronger": _fooled_beyond, "unbounded": _standing, "guaranteed": _solved}
_SEEN = {
    "stronger": "probe '{name}' fooled {count} of {n} samples that the attack left standing: the number is too high",
    "unbounded": "{count} of {n} samples withstood a budget that covers the image space, so the attack is blind",
    "guaranteed": "the attack found {count} of {n} adversarial images that are known to exist",
}


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


def _robust(rows: Rows) -> NDArray[np.bool_]:
    robust: NDArray[np.bool_] = np.asarray(rows["clean_correct"], dtype=bool) & ~np.asarray(rows["success"], dtype=bool)
    return robust
