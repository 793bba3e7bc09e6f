"""Evasion attacks of the Adversarial Robustness Toolbox (ART), an optional extra that is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable

from harness import ThreatInfo, hookimpl


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    register(
        ThreatInfo(
            name="art",
            summary="any evasion attack of ART on images, by name and arguments",
            source="Nicolae et al. 2018, Adversarial Robustness Toolbox",
            factory="harness_art.attack:build",
            options="harness.backends.options:BackendOptions",
            requires=frozenset({"Classifier"}),
            budget_option="eps",
            probes="harness.standard_probes:probes_of_ball",
        )
    )
