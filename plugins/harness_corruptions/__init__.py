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
    register(
        ThreatInfo(
            name="ready-made-corruptions",
            summary="a corrupted test set read from files: CIFAR-10-C, ImageNet-C, MNIST-C; beside the clean images",
            source="Hendrycks & Dietterich 2019; MNIST-C: Mu & Gilmer 2019",
            factory="harness_corruptions.ready_made:build",
            options="harness_corruptions.ready_made:ReadyMadeOptions",
            variants=("corruption", "severity"),
        )
    )
