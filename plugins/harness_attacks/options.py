"""Options of the attacks, with the checks that catch a budget in the wrong unit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ValidationInfo, WithJsonSchema, field_validator
from pydantic.functional_validators import PlainValidator

from harness.options import Amount, check_radius, option, problem
from harness_attacks.ball_options import BallOptions

Target = int | Literal["random", "least-likely"] | None
Targets = int | Literal["all"] | None
_TARGETS_SCHEMA = {
    "anyOf": [{"enum": ["all"]}, {"type": "integer", "minimum": 1}, {"type": "null"}],
    "default": None,
}
_TARGET_SCHEMA = {
    "anyOf": [{"enum": ["random", "least-likely"]}, {"type": "integer", "minimum": 0}, {"type": "null"}],
    "default": None,
}


def _target(value: Any) -> Target:
    if value is None or value in ("random", "least-likely"):
        return value  # type: ignore[no-any-return]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise problem(f'{value!r} is not a target: expected "random", "least-likely" or the index of a class')


def _targets(value: Any) -> Targets:
    if value is None or value == "all":
        return value  # type: ignore[no-any-return]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise problem(f'{value!r} is not a choice of targets: expected "all" or the number of likeliest wrong classes')


class PGDOptions(BallOptions):
    """Options of `pgd`."""

    steps: int = option(40, help="gradient steps in each restart", ge=1)
    step_size: Amount | None = option(
        None,
        help="norm of the first step; unless given 2.5 * eps / steps if constant, eps if cosine",
        unit="[0, 1] pixel values",
    )
    random_start: bool = option(True, help="start uniformly in the ball, not at the image")
    schedule: Literal["constant", "cosine"] = option(
        "constant", help="the length of the steps: constant, or falling to 0 as a cosine"
    )
    restarts: int = option(1, help="runs from a fresh random start, for the samples still standing", ge=1)
    loss: Literal["cross-entropy", "margin", "dlr"] = option(
        "cross-entropy",
        help="what a step increases: cross-entropy, the best other logit minus the label's, difference of logits ratio",
    )
    target: Annotated[Target, PlainValidator(_target), WithJsonSchema(_TARGET_SCHEMA)] = option(
        None, help='class to reach: "random" (one wrong class a sample), "least-likely", a class index; none: any wrong'
    )
    targets: Annotated[Targets, PlainValidator(_targets), WithJsonSchema(_TARGETS_SCHEMA)] = option(
        None, help='restarts towards each wrong class: "all", or the number of likeliest ones; any wrong class counts'
    )
    eot: int = option(1, help="draws of a random model averaged for each gradient; others are asked once", ge=1)
    evade: Literal["none", "penalty", "selective", "orthogonal"] = option(
        "none",
        help="how to get past the model's out-of-distribution score as well; none: ignore it. orthogonal finds nothing"
        " where score and loss come from the same logits (max-softmax), because their gradients are parallel",
    )
    evade_weight: float = option(1.0, help="of the score in `penalty`, per distance from median to threshold", gt=0)
    evade_fpr: float = option(0.05, help="share of held-out clean images that the detector may reject", gt=0, lt=1)
    early_stop: bool = option(True, help="a sample leaves the batch once the attack has succeeded on it")

    @field_validator("step_size")
    @classmethod
    def _step_size_in_range(cls, size: Amount | None, info: ValidationInfo) -> Amount | None:
        if size is None:
            return None
        if size <= 0:
            raise problem(f"{size} is not positive: a step must have a length")
        check_radius(size, info.data.get("norm", ""))
        return size

    @field_validator("restarts")
    @classmethod
    def _restarts_differ(cls, restarts: int, info: ValidationInfo) -> int:
        if restarts > 1 and info.data.get("random_start") is False:
            raise problem(f"{restarts} restarts without random_start would all be the same: set random_start = true")
        return restarts

    @field_validator("targets")
    @classmethod
    def _one_kind_of_target(cls, targets: Targets, info: ValidationInfo) -> Targets:
        if targets is not None and info.data.get("target") is not None:
            raise problem("`target` asks for one class, `targets` tries several: give one of them")
        return targets
