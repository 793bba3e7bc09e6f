"""Out-of-distribution images: does the model's score tell them from its own? And likelihood between two images."""

from __future__ import annotations

from collections.abc import Callable

from harness import ThreatInfo, hookimpl

_THREATS = (
    ThreatInfo(
        name="ood",
        summary="out-of-distribution scores of the data, of noise, of its own images changed, of other data sets",
        source="Du & Mordatch 2019, Implicit Generation and Modeling with Energy-Based Models; Hendrycks et al. 2019,"
        " Deep Anomaly Detection with Outlier Exposure",
        factory="harness_ood.ood:build",
        options="harness_ood.ood:OODOptions",
        requires=frozenset({"Detector"}),
        variants=("set", "score"),
        needs_reference=lambda options: options.uses_held_out,
        lacking=lambda options, capabilities: options.lacking(capabilities),
    ),
    ThreatInfo(
        name="interpolation",
        summary="log-likelihood along the lines between pairs of the data's images",
        source="Zimmermann et al. 2021, Score-Based Generative Classifiers, section 3.4",
        factory="harness_ood.interpolation:build",
        options="harness_ood.interpolation:InterpolationOptions",
        requires=frozenset({"Density"}),
        variants=("t",),
    ),
)


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    for info in _THREATS:
        register(info)
