"""The conformance kit on the model `torch`: the shipped checkpoints, a module that draws at random, and training."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.testing import model_checks, parametrize_with_checks


class _Noisy(nn.Module):
    """A linear model with noise on its input, from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear((x + 0.1 * torch.randn_like(x)).flatten(1))
        return out


_NETS = ModuleType("nets_for_conformance")
_NETS.noisy = _Noisy  # type: ignore[attr-defined]
sys.modules[_NETS.__name__] = _NETS

_CNN: dict[str, Any] = {"factory": "harness_torch.networks:digits_cnn"}


@parametrize_with_checks(model_checks("torch", {"checkpoint": "builtin:digits-cnn"}))
def test_digits_cnn(check: Any) -> None:
    check()


@parametrize_with_checks(model_checks("torch", {"checkpoint": "builtin:digits-cnn-pgd", "features": "6"}))
def test_digits_cnn_pgd(check: Any) -> None:
    check()


@parametrize_with_checks(model_checks("torch", _CNN, quick_recipe={"epochs": 2, "batch_size": 16}))
def test_training_and_round_trip(check: Any) -> None:
    check()


@parametrize_with_checks(
    model_checks("torch", {"factory": "nets_for_conformance:noisy", "random": True, "features": "linear"})
)
def test_a_random_module(check: Any) -> None:
    check()
