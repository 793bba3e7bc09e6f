"""Classifiers built to fool an attack: every one of them is as weak as the classifier inside it.

An attack that takes such a model at its word reports a robust accuracy that is far too high; the audit must say so.
`ZOO` lists them; each knows its `adaptive` form, a model with the same largest logit whose gradient can be followed, so
that the truth can be measured: attack the adaptive form, and judge the images on the deceptive model.

Needs torch; the classifiers inside are any with `logits` (those of `activations` copy a module that has nn.ReLU).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.testing.zoo import activations, answers, gradients, preprocessing


@dataclass(frozen=True)
class Deception:
    """One way to fool an attack.

    Attributes:
        name: as in tables.
        wrap: makes a deceptive classifier of a classifier; the result has `logits`, `num_classes`, `stochastic` and
            `adaptive()`, the form that an adaptive attack differentiates.
        tuned: whether the audit's thresholds were chosen with it in view; the others test them.
    """

    name: str
    wrap: Callable[[Any], Any]
    tuned: bool


def _behind(step: preprocessing.Step, backward_step: preprocessing.Step | None = None) -> Callable[[Any], Any]:
    return lambda inner: preprocessing.Preprocessed(inner, step, backward_step)


def _reworded(transformation: answers.Transformation) -> Callable[[Any], Any]:
    return lambda inner: answers.Reworded(inner, transformation)


def _tampered(tampering: gradients.Tampering) -> Callable[[Any], Any]:
    return lambda inner: gradients.Tampered(inner, tampering)


def _winners(share: float) -> Callable[[Any], Any]:
    return lambda inner: activations.Reactivated(
        inner,
        lambda _: activations.WinnersTakeAll(share),
        lambda _: activations.WinnersTakeAll(share, straight_through=True),
    )


ZOO: tuple[Deception, ...] = (
    Deception("quantised-16", _behind(preprocessing.quantised(16)), tuned=True),
    Deception("quantised-256", _behind(preprocessing.quantised(256)), tuned=False),
    Deception("jpeg-75", _behind(preprocessing.jpeg(75)), tuned=False),
    Deception("thermometer-16", _behind(preprocessing.thermometer(16)), tuned=True),
    Deception("steep-sigmoid", _behind(preprocessing.squashed(60), preprocessing.squashed(10)), tuned=False),
    Deception("ripple", _behind(preprocessing.rippled(0.02, 97.3)), tuned=True),
    Deception("fine-ripple", _behind(preprocessing.rippled(0.005, 1234.5)), tuned=False),
    Deception("input-noise", lambda inner: preprocessing.Noisy(inner, 0.2), tuned=True),
    Deception("activation-pruning", lambda inner: activations.RandomActivations(inner, 2.0), tuned=False),
    Deception("winners-take-all", _winners(0.35), tuned=True),
    Deception("cold-logits", _reworded(answers.cold(1e-3)), tuned=True),
    Deception("softmax-twice", _reworded(answers.softmax_twice(1.0)), tuned=False),
    Deception("cold-softmax-twice", _reworded(answers.softmax_twice(1e-2)), tuned=True),
    Deception("shifted-logits", _reworded(answers.shifted(1e7)), tuned=False),
    Deception("shrunk-logits", _reworded(answers.shrunk(1e-43)), tuned=True),
    Deception("flipped-gradient", _tampered(gradients.flipped), tuned=False),
    Deception("scrambled-gradient", _tampered(gradients.scrambled), tuned=True),
    Deception("narrowed-gradient", _tampered(gradients.narrowed), tuned=False),
    Deception("detached", gradients.Detached, tuned=True),
    Deception("boundary-detector", answers.BoundaryDetector, tuned=False),
)
"""The deceptive classifiers, by mechanism."""

__all__ = ["ZOO", "Deception", "activations", "answers", "gradients", "preprocessing"]
