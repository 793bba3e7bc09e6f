"""The conformance kit on the shipped models, and on training."""

from __future__ import annotations

from typing import Any

from harness_ib_inn import register_models

from harness.info import ModelInfo
from harness.testing import model_checks, parametrize_with_checks
from harness.testing.toys import synthetic_data

_FOUND: list[ModelInfo] = []
register_models(_FOUND.append)
INFO = _FOUND[0]
DATA = synthetic_data(levels=17)


@parametrize_with_checks(model_checks(INFO, {"checkpoint": "builtin:digits-beta0"}, data=DATA))
def test_beta_0(check: Any) -> None:
    check()


@parametrize_with_checks(model_checks(INFO, {"checkpoint": "builtin:digits-beta1"}, data=DATA))
def test_beta_1(check: Any) -> None:
    check()


@parametrize_with_checks(
    model_checks(INFO, {"checkpoint": "builtin:digits-beta8", "detector": "typicality"}, data=DATA)
)
def test_beta_8(check: Any) -> None:
    check()


@parametrize_with_checks(
    model_checks(INFO, {"checkpoint": "builtin:digits-betainf", "detector": "one-tailed"}, data=DATA)
)
def test_beta_inf(check: Any) -> None:
    check()


@parametrize_with_checks(
    model_checks(
        INFO,
        {"layout": "digits", "mixing": "permutation", "detector": "one-tailed"},
        data=DATA,
        quick_recipe={"epochs": 1, "batch_size": 16},
    )
)
def test_training_and_round_trip(check: Any) -> None:
    check()
