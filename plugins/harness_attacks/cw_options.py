"""Options of `cw`, and those that make it the attack of Mackowiak et al."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, ValidationInfo, WithJsonSchema, field_validator, model_validator
from pydantic.functional_validators import PlainValidator

from harness.options import Options, option, problem

Target = int | Literal["any", "random", "least-likely"]
_WORDS = ("any", "random", "least-likely")
_KAPPA_SCHEMA = {"anyOf": [{"type": "number", "minimum": 0}, {"const": "inf"}], "default": 0.0}
_TARGET_SCHEMA = {"anyOf": [{"enum": list(_WORDS)}, {"type": "integer", "minimum": 0}], "default": "any"}

IB_INN = {
    "distance": "l2",
    "c": 10.0,
    "search_steps": 0,
    "steps": 1000,
    "patience": 20,
    "learning_rate": 0.01,
    "normalise": False,
    "target": "random",
    "kappa": 0.01,
}
"""Mackowiak et al. 2021, appendix D.2; `steps`, which the paper does not name, only bounds the time."""


def _target(value: Any) -> Target:
    if value in _WORDS or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value  # type: ignore[no-any-return]
    raise problem(f'{value!r} is not a target: expected "any", "random", "least-likely" or the index of a class')


def _as_written(number: float) -> float | str:
    """JSON, and a suite, have no infinite number: that is written as text."""
    return "inf" if math.isinf(number) else number


class CWOptions(Options):
    """Options of `cw`."""

    paper: Literal["ib-inn"] | None = option(
        None, help='"ib-inn": the attack of Mackowiak et al. 2021; options given beside it still count'
    )
    distance: Literal["l2", "squared-l2"] = option(
        "squared-l2", help="what is made small: the Euclidean norm of the perturbation, or its square"
    )
    c: float = option(1.0, help="weight of the classification term, the first one where it is searched", gt=0)
    search_steps: int = option(9, help="values of c tried for each sample by binary search; 0 keeps c as it is", ge=0)
    steps: int = option(200, help="gradient steps for each value of c", ge=1)
    patience: int | None = option(50, help="a sample's run ends after so many steps without a smaller objective", ge=1)
    learning_rate: float = option(0.03, help="of Adam, on w where the image is (tanh(w) + 1) / 2", gt=0)
    kappa: Annotated[float, PlainSerializer(_as_written, when_used="json"), WithJsonSchema(_KAPPA_SCHEMA)] = option(
        0.0, help='by how much the wrong class must win; "inf": by as much as possible (needs a fixed c)', ge=0
    )
    target: Annotated[Target, PlainValidator(_target), WithJsonSchema(_TARGET_SCHEMA)] = option(
        "any", help='class to reach: "any" wrong one, "random" (one a sample), "least-likely", or a class index'
    )
    normalise: bool = option(True, help="measure margins and kappa in units of the sample's clean margin")
    units: Literal["nats-per-dim", "nats"] = option(
        "nats-per-dim",
        help="of log-likelihoods in the detection term and, where margins are not normalised, of class log-likelihoods",
    )
    detection: float = option(0.0, help="weight of (median log-likelihood - log-likelihood)^2", ge=0)
    median_log_prob: float | None = option(
        None, help="median log-likelihood of the training data; of held-out images unless given", unit="nats"
    )
    eot: int = option(1, help="gradients averaged in each step, on a draw each, for a model with randomness", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return {**IB_INN, **given} if isinstance(given, dict) and given.get("paper") == "ib-inn" else given

    @field_validator("c", "learning_rate", "detection", "median_log_prob")
    @classmethod
    def _finite(cls, number: float | None) -> float | None:
        if number is not None and not math.isfinite(number):
            raise problem(f"{number} is not finite")
        return number

    @field_validator("kappa")
    @classmethod
    def _kappa_can_be_reached(cls, kappa: float, info: ValidationInfo) -> float:
        if math.isnan(kappa):
            raise problem("nan is not a margin")
        if math.isinf(kappa) and info.data.get("search_steps") != 0:
            raise problem("inf is never reached, so c cannot be searched for: set search_steps = 0 and give c")
        return kappa

    @property
    def uses_held_out(self) -> bool:
        """Whether the median, or the detector's thresholds, come from held-out images."""
        return self.median_log_prob is None and (self.detection > 0 or self.paper is not None)
