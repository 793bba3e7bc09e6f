"""The attacks that audit PGD: they run beside its cell, to tell an attack that failed from a model that withstood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.info import Probe
from harness.standard_probes import MISLED, WEAK, probe

if TYPE_CHECKING:
    from harness_attacks.options import PGDOptions

_NOT_SHARED = frozenset(
    {"eps", "steps", "step_size", "random_start", "restarts", "early_stop", "target", "targets"}
    | {"evade", "evade_weight", "evade_fpr"}
)
"""Options of the attack that its probes do not take over."""


def probes_of(options: PGDOptions) -> Sequence[Probe]:
    """The probes of a PGD cell.

    By default 193 model calls, forward and backward, on each of the first 64 samples at most: `noise` 10, `square` 100,
    `other_loss` 62, `unbounded` 21. The others run with ``probes = "all"``. An attack that must also reach a class,
    or evade a detector, is not expected to find what one without such a task does: it only gets `unbounded`.
    """
    if not options.eps > 0:
        return ()
    own = options.model_dump(mode="json", exclude_unset=True)
    ball = {"norm": options.norm, "eps": own["eps"]}
    shared = {key: value for key, value in own.items() if key not in _NOT_SHARED}
    unbounded = {"plugin": "pgd", **shared, "steps": 10, "random_start": False}
    found = [probe("unbounded", "unbounded", {"attack": unbounded}, "unbounded", MISLED)]
    if options.target is not None or options.evade != "none":
        return found
    steps, restarts = options.steps, options.restarts
    other = "cross-entropy" if options.loss == "margin" else "margin"
    longer = {"random_start": True, "steps": 2 * steps, "restarts": 3 * restarts}
    tested = {"plugin": "pgd", **shared, **ball, "steps": steps}
    if options.loss == "dlr":  # of two classes, which it is tested on, there is no such ratio
        tested["loss"] = "margin"
    return [
        *found,
        probe("noise", "noise", {**ball, "images": 10}, "stronger", MISLED),
        probe("square", "square", {**ball, "queries": 100}, "stronger", MISLED),
        probe("other_loss", "pgd", {**shared, **ball, "loss": other, "steps": 15, "restarts": 2}, "stronger", WEAK),
        probe("more_noise", "noise", {**ball, "images": 100}, "stronger", MISLED, default=False),
        probe("long_square", "square", {**ball, "queries": 500}, "stronger", MISLED, default=False),
        probe("longer", "pgd", {**shared, **ball, **longer}, "stronger", WEAK, default=False),
        probe("longer_other", "pgd", {**shared, **ball, **longer, "loss": other}, "stronger", WEAK, default=False),
        # In l1 random points of the surface are no fair task: they lie where sparse steps do not go.
        *(
            [probe("binarised", "binarised", {"attack": tested}, "guaranteed", MISLED, default=False)]
            if options.norm != "l1"
            else []
        ),
    ]
