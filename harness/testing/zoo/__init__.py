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


ZOO: tuple[Deception, ...] = (
    Deception("quantised-16", lambda m: preprocessing.Preprocessed(m, preprocessing.quantised(16)), tuned=True),
    Deception("quantised-256", lambda m: preprocessing.Preprocessed(m, preprocessing.quantised(256)), tuned=False),
    Deception("jpeg-75", lambda m: preprocessing.Preprocessed(m, preprocessing.jpeg(75)), tuned=False),
    Deception("thermometer-16", lambda m: preprocessing.Preprocessed(m, preprocessing.thermometer(16)), tuned=True),
    Deception("steep-sigmoid", lambda m: preprocessing.Preprocessed(m, preprocessing.squashed(60.0)), tuned=False),
    Deception("ripple", lambda m: preprocessing.Preprocessed(m, preprocessing.rippled(0.02, 97.3)), tuned=True),
    Deception("fine-ripple", lambda m: preprocessing.Preprocessed(m, preprocessing.rippled(0.005, 1234.5)), tuned=False),
    Deception("input-noise", lambda m: preprocessing.Noisy(m, 0.2), tuned=True),
    Deception("activation-pruning", lambda m: activations.RandomActivations(m, 0.5), tuned=False),
    Deception(
        "winners-take-all",
        lambda m: activations.Reactivated(
            m, lambda _: activations.WinnersTakeAll(0.2), lambda _: activations.WinnersTakeAll(0.2, True)
        ),
        tuned=True,
    ),
    Deception("cold-logits", lambda m: answers.Reworded(m, answers.cold(1e-3)), tuned=True),
    Deception("softmax-twice", lambda m: answers.Reworded(m, answers.softmax_twice(1.0)), tuned=False),
    Deception("cold-softmax-twice", lambda m: answers.Reworded(m, answers.softmax_twice(1e-2)), tuned=True),
    Deception("shifted-logits", lambda m: answers.Reworded(m, answers.shifted(1e7)), tuned=False),
    Deception("shrunk-logits", lambda m: answers.Reworded(m, answers.shrunk(1e-43)), tuned=True),
    Deception("flipped-gradient", lambda m: gradients.Tampered(m, gradients.flipped), tuned=False),
    Deception("scrambled-gradient", lambda m: gradients.Tampered(m, gradients.scrambled), tuned=True),
    Deception("narrowed-gradient", lambda m: gradients.Tampered(m, gradients.narrowed), tuned=False),
    Deception("detached", gradients.Detached, tuned=True),
    Deception("boundary-detector", answers.BoundaryDetector, tuned=False),
)
"""The deceptive classifiers, by mechanism."""

__all__ = ["ZOO", "Deception", "activations", "answers", "gradients", "preprocessing"]
