"""Attacks of torchattacks, an optional extra that is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable

from harness import ThreatInfo, hookimpl


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    register(
        ThreatInfo(
            name="torchattacks",
            summary="any attack of torchattacks, by name and arguments",
            source="Kim 2020, Torchattacks: A PyTorch Repository for Adversarial Attacks",
            factory="harness_torchattacks.attack:build",
            options="harness.backends.options:BackendOptions",
            requires=frozenset({"Classifier"}),
            budget_option="eps",
            probes="harness.standard_probes:probes_of_ball",
        )
    )
