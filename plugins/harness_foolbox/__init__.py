"""Attacks of Foolbox, an optional extra that is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable

from harness import ThreatInfo, hookimpl


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    register(
        ThreatInfo(
            name="foolbox",
            summary="any attack of Foolbox that bounds or minimises a norm, by name and arguments",
            source="Rauber et al. 2020, Foolbox Native",
            factory="harness_foolbox.attack:build",
            options="harness.backends.options:BackendOptions",
            requires=frozenset({"Classifier"}),
            budget_option="eps",
            probes="harness.standard_probes:probes_of_ball",
        )
    )
