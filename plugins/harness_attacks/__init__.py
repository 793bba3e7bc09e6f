"""Threats that move an image to fool a classifier, and the clean reference they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import ThreatInfo, hookimpl

_BALL: dict[str, Any] = {
    "requires": frozenset({"Classifier"}),
    "budget_option": "eps",
    "probes": "harness.standard_probes:probes_of_ball",
}
_CROCE_HEIN = "Croce & Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse attacks"

THREATS = (
    ThreatInfo(
        name="clean",
        summary="the images as they are: confidence, entropy and likelihood of each",
        factory="harness_attacks.clean:build",
        options="harness_attacks.clean:CleanOptions",
    ),
    ThreatInfo(
        name="pgd",
        summary="projected gradient descent in an l-inf, l2 or l1 ball, also past a detector or against randomness",
        source="Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks",
        factory="harness_attacks.pgd:build",
        options="harness_attacks.options:PGDOptions",
        needs_reference=lambda options: options.evade != "none",
        **{**_BALL, "probes": "harness_attacks.probes:probes_of"},
    ),
    ThreatInfo(
        name="apgd",
        summary="Auto-PGD: chooses its own step sizes; cross-entropy, margin or DLR, also towards several classes",
        source=_CROCE_HEIN,
        factory="harness_attacks.apgd:build",
        options="harness_attacks.apgd:APGDOptions",
        **_BALL,
    ),
    ThreatInfo(
        name="fab",
        summary="the fast adaptive boundary attack, towards the likeliest wrong classes",
        source="Croce & Hein 2020, Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
        factory="harness_attacks.fab:build",
        options="harness_attacks.fab:FABOptions",
        **_BALL,
    ),
    ThreatInfo(
        name="square",
        summary="random search with square-shaped changes: needs scores, no gradients",
        source="Andriushchenko et al. 2020, Square Attack",
        factory="harness_attacks.square:build",
        options="harness_attacks.square:SquareOptions",
        **{**_BALL, "probes": None},
    ),
    ThreatInfo(
        name="autoattack",
        summary="Auto-PGD, targeted Auto-PGD, FAB and Square, each on what the others left standing",
        source=_CROCE_HEIN,
        factory="harness_attacks.autoattack:build",
        options="harness_attacks.autoattack:AutoAttackOptions",
        **_BALL,
    ),
    ThreatInfo(
        name="cw",
        summary="the smallest l2 perturbation by Carlini & Wagner, also past a density; preset of the IB-INN paper",
        source="Carlini & Wagner 2017, section VI.A; Mackowiak et al. 2021, appendix D.2",
        factory="harness_attacks.cw:build",
        options="harness_attacks.cw_options:CWOptions",
        requires=frozenset({"Classifier"}),
        needs_reference=lambda options: options.uses_held_out,
        lacking=lambda options, capabilities: (
            "the detection term needs a model with a density; set detection = 0"
            if options.detection and not capabilities & {"Density", "ClassDensity"}
            else ""
        ),
    ),
    ThreatInfo(
        name="minimal-norm",
        summary="the smallest l-inf, l2 or l1 perturbation of each image: the whole security curve from one run",
        source="Pintor et al. 2021, Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints",
        factory="harness_attacks.minimal_norm:build",
        options="harness_attacks.minimal_norm:MinimalNormOptions",
        requires=frozenset({"Classifier"}),
    ),
    ThreatInfo(
        name="noise",
        summary="the best of several random images of the ball",
        source="Carlini et al. 2019, On Evaluating Adversarial Robustness, section 5",
        factory="harness_attacks.noise:build",
        options="harness_attacks.noise:NoiseOptions",
        **{**_BALL, "probes": None},
    ),
    ThreatInfo(
        name="unbounded",
        summary="an attack with a budget that covers the image space: nothing should withstand it",
        source="Athalye et al. 2018, Obfuscated Gradients Give a False Sense of Security, section 3.1",
        factory="harness_attacks.under_test:build_unbounded",
        options="harness_attacks.under_test:UnboundedOptions",
        requires=frozenset({"Classifier"}),
    ),
    ThreatInfo(
        name="binarised",
        summary="tasks on the model's logits with a known solution, for an attack to find",
        source="Zimmermann et al. 2022, Increasing Confidence in Adversarial Robustness Evaluations",
        factory="harness_attacks.binarised:build",
        options="harness_attacks.binarised:BinarisedOptions",
        requires=frozenset({"Classifier"}),
    ),
    ThreatInfo(
        name="replay",
        summary="the adversarial images that an earlier run stored, shown to this model",
        factory="harness_attacks.replay:build",
        options="harness_attacks.replay:ReplayOptions",
        **{**_BALL, "probes": None},
    ),
)


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    for info in THREATS:
        register(info)
