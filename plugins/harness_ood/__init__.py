"""Out-of-distribution images: does the model's score tell them from its own?"""

from __future__ import annotations

from collections.abc import Callable

from harness import ThreatInfo, hookimpl


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    register(
        ThreatInfo(
            name="ood",
            summary="out-of-distribution scores of the data and of sets that lie outside it",
            source="sets as in Du & Mordatch 2019, Implicit Generation and Modeling with Energy-Based Models",
            factory="harness_ood.ood:build",
            options="harness_ood.ood:OODOptions",
            requires=frozenset({"Detector"}),
            variants=("set",),
        )
    )
