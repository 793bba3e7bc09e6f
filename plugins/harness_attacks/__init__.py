"""Threats that move an image to fool a classifier, and the clean reference they are compared with."""

from __future__ import annotations

from collections.abc import Callable

from harness import ThreatInfo, hookimpl


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    register(
        ThreatInfo(
            name="clean",
            summary="the images as they are: confidence, entropy and likelihood of each",
            factory="harness_attacks.clean:build",
            options="harness_attacks.clean:CleanOptions",
        )
    )
    register(
        ThreatInfo(
            name="pgd",
            summary="projected gradient descent in an l-inf or l2 ball, with restarts",
            source="Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks",
            factory="harness_attacks.pgd:build",
            options="harness_attacks.options:PGDOptions",
            requires=frozenset({"Classifier"}),
            budget_option="eps",
        )
    )
    register(
        ThreatInfo(
            name="replay",
            summary="the adversarial images that an earlier run stored, shown to this model",
            factory="harness_attacks.replay:build",
            options="harness_attacks.replay:ReplayOptions",
            requires=frozenset({"Classifier"}),
            budget_option="eps",
        )
    )
