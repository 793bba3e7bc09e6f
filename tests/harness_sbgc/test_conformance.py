"""The conformance kit on the model `sbgc`: fixed and fresh noise, and training."""

from __future__ import annotations

from typing import Any

import pytest
from harness_sbgc import register_models

from harness.testing import model_checks, parametrize_with_checks
from harness.testing.toys import synthetic_data

INFOS: list[Any] = []
register_models(INFOS.append)
(INFO,) = INFOS
DATA = synthetic_data(levels=17)  # those of the digits
# A coarse grid: the checks hold for the number returned, however near the likelihood it is.
_DIGITS: dict[str, Any] = {"checkpoint": "builtin:digits-mlp", "solver": "heun", "steps": 1}
_SCALED = {"temperature": "bits-per-dim", "sample_by": "diffusion", "sampling": {"steps": 2}}
_UNTRAINED: dict[str, Any] = {"solver": "heun", "steps": 1}


@parametrize_with_checks(model_checks(INFO, _DIGITS, data=DATA, samples=3))
def test_fixed_noise(check: Any) -> None:
    check()


@parametrize_with_checks(model_checks(INFO, {**_DIGITS, "noise": "fresh"}, data=DATA, samples=3))
def test_fresh_noise(check: Any) -> None:
    check()


@parametrize_with_checks(
    model_checks(INFO, _UNTRAINED, data=DATA, samples=3, quick_recipe={"epochs": 1, "batch_size": 16})
)
def test_training_and_round_trip(check: Any) -> None:
    check()


@pytest.mark.slow
@parametrize_with_checks(
    model_checks(INFO, {**_DIGITS, **_SCALED}, data=DATA, samples=3),
    expected_failures={"class_density": "scaled logits are not the posterior on purpose"},
)
def test_scaled_logits(check: Any) -> None:
    check()


@pytest.mark.slow
@parametrize_with_checks(model_checks(INFO, {"checkpoint": "builtin:digits-mlp"}, data=DATA, samples=3))
def test_defaults(check: Any) -> None:
    check()
