"""Common corruptions: noise, blur, weather and digital artefacts of five severities."""

from __future__ import annotations

from collections.abc import Callable

from harness import ThreatInfo, hookimpl


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    register(
        ThreatInfo(
            name="corruptions",
            summary="the 15 common corruptions and the four extra ones, at severities 1 to 5, beside the clean images",
            source="Hendrycks & Dietterich 2019, Benchmarking Neural Network Robustness to Common Corruptions",
            factory="harness_corruptions.threat:build",
            options="harness_corruptions.threat:CorruptionsOptions",
            variants=("corruption", "severity"),
        )
    )
