"""Flipped bits: does an invisible change of the least significant bit change what a model says?"""

from __future__ import annotations

from collections.abc import Callable

from harness import ThreatInfo, hookimpl


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    register(
        ThreatInfo(
            name="bitflip",
            summary="one bit of every grey level flipped with probability pi: likelihood, scores, predictions",
            source="Autoregressive Generative Modeling with Noise Conditional Maximum Likelihood Estimation (2022),"
            " section 3.1",
            factory="harness_bitflip.bitflip:build",
            options="harness_bitflip.bitflip:BitFlipOptions",
            variants=("pi",),
        )
    )
