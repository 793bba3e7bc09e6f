"""The attacks that audit an attack: they run beside its cell, to tell one that failed from a model that withstood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.info import Probe, ProbeJudge

if TYPE_CHECKING:
    from harness_attacks.ball_options import BallOptions
    from harness_attacks.fab import FABOptions
    from harness_attacks.options import PGDOptions

FEW = 64  # samples of a default probe
MANY = 512  # of the others

_MISLED = (
    "its gradients mislead: attack a differentiable surrogate of the model (BPDA), average over its randomness (EOT),"
    " or believe the black-box attack"
)
_WEAK = "raise steps and restarts, and try the other losses, until the number no longer falls"
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
    found = [_probe("unbounded", "unbounded", {"attack": unbounded}, "unbounded", _MISLED)]
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
        _probe("noise", "noise", {**ball, "images": 10}, "stronger", _MISLED),
        _probe("square", "square", {**ball, "queries": 100}, "stronger", _MISLED),
        _probe("other_loss", "pgd", {**shared, **ball, "loss": other, "steps": 15, "restarts": 2}, "stronger", _WEAK),
        _probe("more_noise", "noise", {**ball, "images": 100}, "stronger", _MISLED, default=False),
        _probe("long_square", "square", {**ball, "queries": 500}, "stronger", _MISLED, default=False),
        _probe("longer", "pgd", {**shared, **ball, **longer}, "stronger", _WEAK, default=False),
        _probe("longer_other", "pgd", {**shared, **ball, **longer, "loss": other}, "stronger", _WEAK, default=False),
        # In l1 random points of the surface are no fair task: they lie where sparse steps do not go.
        *(
            [_probe("binarised", "binarised", {"attack": tested}, "guaranteed", _MISLED, default=False)]
            if options.norm != "l1"
            else []
        ),
    ]


def probes_of_ball(options: BallOptions | FABOptions) -> Sequence[Probe]:
    """The probes of any other attack with a norm and a budget: `noise`, `square` and PGD on the margin.

    By default 172 model calls, forward and backward, on each of the first 64 samples at most.
    """
    if options.eps is None or not options.eps > 0:  # of an attack that looks for the smallest norm nothing is asked
        return ()
    ball = {"norm": options.norm, "eps": options.model_dump(mode="json")["eps"]}
    return [
        _probe("noise", "noise", {**ball, "images": 10}, "stronger", _MISLED),
        _probe("square", "square", {**ball, "queries": 100}, "stronger", _MISLED),
        _probe("margin", "pgd", {**ball, "loss": "margin", "steps": 15, "restarts": 2}, "stronger", _WEAK),
        _probe("long_square", "square", {**ball, "queries": 500}, "stronger", _MISLED, default=False),
        _probe("long_margin", "pgd", {**ball, "loss": "margin", "restarts": 3}, "stronger", _WEAK, default=False),
    ]


def _probe(
    name: str, plugin: str, table: dict[str, Any], judge: ProbeJudge, advice: str, default: bool = True
) -> Probe:
    samples = FEW if default else MANY
    return Probe(
        name=f"probe_{name}", plugin=plugin, table=table, samples=samples, judge=judge, advice=advice, default=default
    )
