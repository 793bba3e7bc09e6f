"""Threat `foolbox`: an attack of Foolbox on any of our models, for a fixed budget or for the smallest norm."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.backends.options import BackendOptions, check_arguments, library, named, parameters, release
from harness.backends.threat import BackendThreat, Returned
from harness.errors import HarnessError
from harness.threats import ThreatContext

if TYPE_CHECKING:
    from torch import Tensor

    from harness.backends.served import ServedModel

INSTALL = 'pip install "harness-robustness[foolbox]"'
_OURS = {
    "distance": "give norm beside attack",
    "constraint": "give norm beside attack",
    "tensorboard": "the harness writes the report: leave out tensorboard",
}
_ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


def build(options: BackendOptions, context: ThreatContext) -> BackendThreat:
    """The attack `options.attack`.

    Raises:
        HarnessError: Foolbox is not installed or has no such attack, the attack takes other arguments, bounds another
            norm or needs a budget.
    """
    del context
    package = library("foolbox", "Foolbox", INSTALL)
    attack = named(options.attack, _classes(package), "Foolbox")
    known = parameters(attack, ())
    check_arguments(options.attack, options.arguments, known, _OURS)
    arguments = options.numbers
    if "distance" in known:
        arguments["distance"] = getattr(package.distances, options.norm)
    if "constraint" in known and options.norm in ("linf", "l2"):
        arguments["constraint"] = options.norm
    try:
        made = attack(**arguments)
    except Exception as error:
        text = " ".join(str(error).split())
        raise HarnessError(f"{options.attack}: Foolbox refuses it: {type(error).__name__}: {text}") from None
    if issubclass(attack, package.attacks.base.FixedEpsilonAttack) and options.eps is None:
        raise HarnessError(f"eps: {options.attack} needs a budget")
    order = float(made.distance.p)
    if order != _ORDERS[options.norm] and not (order == 0 and options.eps is None):
        theirs = {value: name for name, value in _ORDERS.items()}.get(order, "l0")
        advice = "leave out eps" if theirs == "l0" else f'set norm = "{theirs}"'
        raise HarnessError(f"norm: {options.attack} bounds {theirs}, not {options.norm}; {advice}")
    run = partial(_run, package, attack, arguments, None if options.eps is None else float(options.eps))
    return BackendThreat(
        "foolbox", options, run, files=release("foolbox"), centre="log-probability", budget_given=False
    )


def _classes(package: Any) -> dict[str, type]:
    base = package.attacks.base.AttackWithDistance
    found = inspect.getmembers(package.attacks, inspect.isclass)
    return {name: kind for name, kind in found if issubclass(kind, base) and not inspect.isabstract(kind)}


def _run(
    package: Any,
    attack: type,
    arguments: dict[str, Any],
    eps: float | None,
    served: ServedModel,
    x: Tensor,
    y: Tensor,
    seed: int,
) -> Returned:
    """Attack; randomness is in torch's and NumPy's global generators, which the caller has seeded."""
    del seed
    target = package.PyTorchModel(served, bounds=(0, 1), device=x.device)
    try:
        _, images, claimed = attack(**arguments)(target, x, package.criteria.Misclassification(y), epsilons=eps)
    except ValueError as error:
        # Decision-based attacks that find no starting point say so by raising.
        if "init_attack failed" not in str(error) or len(x) > 1:
            raise
        return Returned(x, y != y)
    # Carlini-Wagner and EAD return black images where they found nothing, and take them for adversarial ones.
    nothing = images.flatten(1).eq(0).all(dim=1)
    return Returned(images.where(~nothing[:, None, None, None], x), claimed)
