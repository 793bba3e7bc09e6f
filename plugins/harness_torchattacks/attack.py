"""Threat `torchattacks`: an attack of torchattacks on any of our models."""

from __future__ import annotations

import contextlib
import io
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.backends.options import (
    BackendOptions,
    check_arguments,
    library,
    named,
    parameters,
    release,
    scaled_step,
)
from harness.backends.threat import BackendThreat, Returned
from harness.errors import HarnessError
from harness.threats import ThreatContext

if TYPE_CHECKING:
    from torch import Tensor

    from harness.backends.served import ServedModel

# It asks for torchvision, which it does not use, and for an old release of requests.
INSTALL = "pip install --no-deps torchattacks"
_BUDGETS = ("eps", "max_epsilon")
_OURS = {
    "norm": "give norm beside attack, so that the harness can check it",
    **dict.fromkeys(_BUDGETS, "give eps beside attack, so that the harness can check it"),
    "n_classes": "the harness knows the number of classes: leave out n_classes",
    "seed": "the harness seeds each sample from the suite's seed: leave out seed",
}
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_OF_MODELS = ("MultiAttack", "LGV")  # made of other attacks, or of training data


def build(options: BackendOptions, context: ThreatContext) -> BackendThreat:
    """The attack `options.attack`.

    Raises:
        HarnessError: torchattacks is not installed or has no such attack, or the attack takes other arguments.
    """
    package = library("torchattacks", "torchattacks", INSTALL)
    classes = {name: getattr(package, name) for name in package.__all__ if name not in _OF_MODELS}
    attack = named(options.attack, classes, "torchattacks")
    known = parameters(attack, ("model",))
    check_arguments(options.attack, options.arguments, known, _OURS)
    arguments = options.numbers
    if "norm" in known:
        arguments["norm"] = _NORMS[options.norm]
    if "n_classes" in known:
        arguments["n_classes"] = context.data.num_classes
    given = bool(set(_BUDGETS) & set(known))
    for budget in set(_BUDGETS) & set(known):
        if options.eps is None:
            raise HarnessError(f"eps: {options.attack} needs a budget")
        eps = float(options.eps)
        arguments = {**scaled_step(known, "alpha", budget, eps), **arguments, budget: eps}
    run = partial(_run, attack, arguments, "seed" in known)
    return BackendThreat(
        "torchattacks", options, run, files=release("torchattacks"), centre="positive", budget_given=given
    )


def _run(
    attack: type, arguments: dict[str, Any], seeded: bool, served: ServedModel, x: Tensor, y: Tensor, seed: int
) -> Returned:
    """Attack; those without a seed of their own draw from the global generators, which the caller has seeded."""
    if seeded:
        arguments = {**arguments, "seed": seed}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        return Returned(attack(served, **arguments)(x, y))
