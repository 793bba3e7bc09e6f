"""The attacks that audit any attack with a norm and a budget, by the names of the threats that they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from harness.info import Probe, ProbeJudge

FEW = 64  # samples of a default probe
MANY = 512  # of the others

MISLED = (
    "its gradients mislead: attack a differentiable surrogate of the model (BPDA), average over its randomness (EOT),"
    " or believe the black-box attack"
)
WEAK = "raise steps and restarts, and try the other losses, until the number no longer falls"


def probes_of_ball(options: BaseModel) -> Sequence[Probe]:
    """The probes of an attack whose options have `norm` and `eps`: `noise`, `square` and PGD on the margin.

    By default 172 model calls, forward and backward, on each of the first 64 samples at most. Of an attack that looks
    for the smallest norm (no eps, or an infinite one) nothing is asked, nor of a library's attack that must reach a
    class (an argument `targeted`).
    """
    own = options.model_dump(mode="json")
    eps = getattr(options, "eps", None)
    if eps is None or not 0 < eps < float("inf") or own.get("arguments", {}).get("targeted"):
        return ()
    ball = {"norm": own["norm"], "eps": own["eps"]}
    return [
        probe("noise", "noise", {**ball, "images": 10}, "stronger", MISLED),
        probe("square", "square", {**ball, "queries": 100}, "stronger", MISLED),
        probe("margin", "pgd", {**ball, "loss": "margin", "steps": 15, "restarts": 2}, "stronger", WEAK),
        probe("long_square", "square", {**ball, "queries": 500}, "stronger", MISLED, default=False),
        probe("long_margin", "pgd", {**ball, "loss": "margin", "restarts": 3}, "stronger", WEAK, default=False),
    ]


def probe(
    name: str, plugin: str, table: Mapping[str, Any], judge: ProbeJudge, advice: str, default: bool = True
) -> Probe:
    """A probe on the first 64 samples, or on the first 512 where it runs on request."""
    samples = FEW if default else MANY
    return Probe(
        name=f"probe_{name}", plugin=plugin, table=table, samples=samples, judge=judge, advice=advice, default=default
    )
