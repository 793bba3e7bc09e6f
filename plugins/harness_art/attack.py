"""Threat `art`: an evasion attack of the Adversarial Robustness Toolbox on any of our models."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

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

    from harness.backends.served import Centre, ServedModel

INSTALL = 'pip install "harness-robustness[art]"'
_OURS = {
    "norm": "give norm beside attack, so that the harness can check it",
    "eps": "give eps beside attack, so that the harness can check it",
    "targeted": "robust accuracy counts any wrong class: leave out targeted",
    "summary_writer": "the harness writes the report: leave out summary_writer",
}
_WANT_PROBABILITIES = ("SimBA",)
_WANT_TARGETS = ("SaliencyMapMethod",)  # what they call y is the class to reach; without it they draw one
_NORMS = {"linf": np.inf, "l2": 2, "l1": 1}


def build(options: BackendOptions, context: ThreatContext) -> BackendThreat:
    """The attack `options.attack`.

    Raises:
        HarnessError: ART is not installed, has no such attack or none for image classifiers, or the attack takes other
            arguments.
    """
    evasion = library("art.attacks.evasion", "ART", INSTALL)
    attack = named(options.attack, _classes(evasion), "ART")
    known = parameters(attack, ("estimator", "classifier"))
    check_arguments(options.attack, options.arguments, known, _OURS)
    arguments = options.numbers
    for name, value in (("norm", _NORMS[options.norm]), ("targeted", False), ("verbose", False)):
        if name in known and name not in arguments:
            arguments[name] = value
    if "eps" in known:
        if options.eps is None:
            raise HarnessError(f"eps: {options.attack} needs a budget")
        eps = float(options.eps)
        arguments = {**scaled_step(known, "eps_step", "eps", eps), **arguments, "eps": eps}
    _try(attack, arguments, context)
    run = partial(_run, attack, arguments, "batch_size" in known and "batch_size" not in options.arguments)
    files = release("adversarial-robustness-toolbox")
    centre: Centre = "probability" if options.attack in _WANT_PROBABILITIES else "log-probability"
    return BackendThreat("art", options, run, files=files, centre=centre, budget_given="eps" in known)


def _classes(evasion: Any) -> dict[str, type]:
    base = library("art.attacks.attack", "ART", INSTALL).EvasionAttack
    found = inspect.getmembers(evasion, inspect.isclass)
    return {name: kind for name, kind in found if issubclass(kind, base) and not inspect.isabstract(kind)}


def _try(attack: type, arguments: dict[str, Any], context: ThreatContext) -> None:
    """Let ART check model type and arguments once, on a model of the data's shape, before any work is done."""
    if float(arguments.get("eps", 1.0)) == 0:
        return  # nothing will be run, and ART refuses it
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(context.data.shape)), 2))
    try:
        attack(estimator(flat, context.data.shape, context.data.num_classes, torch.device("cpu")), **arguments)
    except Exception as error:
        text = " ".join(str(error).split())
        raise HarnessError(f"{attack.__name__}: ART refuses it: {text}") from None


def estimator(model: torch.nn.Module, shape: tuple[int, ...], num_classes: int, device: torch.device) -> Any:
    """ART's view of a module that answers images (n, *shape) in [0, 1] with logits (n, K)."""
    from harness_art.estimator import Estimator

    return Estimator(model, shape, num_classes, device)


def _run(
    attack: type, arguments: dict[str, Any], whole: bool, served: ServedModel, x: Tensor, y: Tensor, seed: int
) -> Returned:
    """Attack; randomness is in NumPy's and torch's global generators, which the caller has seeded."""
    del seed
    if whole and len(x) > 1:
        arguments = {**arguments, "batch_size": len(x)}
    target = estimator(served, tuple(x.shape[1:]), served.num_classes, x.device)
    labels = None
    if attack.__name__ not in _WANT_TARGETS:
        labels = torch.nn.functional.one_hot(y, served.num_classes).float().cpu().numpy()
    images = attack(target, **arguments).generate(x=x.cpu().numpy(), y=labels)  # type: ignore[attr-defined]
    return Returned(torch.from_numpy(np.asarray(images)))
