"""Surrogates: the answer is the step's own, bit for bit, and the gradient the surrogate's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.bpda import declare_surrogate, straight_through
from harness.errors import ModelError


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.round(x.numpy() * 7) / np.float32(7))


def gradient(function: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad((function(x) * torch.arange(x.numel()).reshape(x.shape)).sum(), x)
    return found


X = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
RAMP = torch.arange(6.0).reshape(3, 2)


def test_the_identity_stands_in_for_a_step_outside_torch() -> None:
    step = straight_through(through_numpy)
    assert torch.equal(step(X), through_numpy(X))
    assert torch.equal(gradient(step, X), RAMP)
    assert not step(X).requires_grad


def test_a_surrogate_gives_its_own_gradient_and_not_its_value() -> None:
    step = straight_through(through_numpy, lambda x: 100 * x.square())
    assert torch.equal(step(X), through_numpy(X))
    torch.testing.assert_close(gradient(step, X), 200 * X * RAMP)


def test_a_module_is_declared_without_a_change_of_its_code_or_names() -> None:
    class Round(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.levels = nn.Parameter(torch.tensor(7.0))

        def forward(self, x: Tensor) -> Tensor:
            return torch.round(x * self.levels) / self.levels

    network = nn.Sequential(Round(), nn.Linear(2, 2)).requires_grad_(False)
    names, plain = list(network.state_dict()), network(X)
    assert (gradient(network, X) == 0).all()
    declare_surrogate(network[0])
    assert list(network.state_dict()) == names
    assert torch.equal(network(X), plain)
    torch.testing.assert_close(gradient(network, X), RAMP @ network[1].weight)
    twin = copy.deepcopy(network).double()
    torch.testing.assert_close(gradient(twin, X.double()), (RAMP @ network[1].weight).double())
    assert not torch.equal(gradient(network, X), torch.zeros(3, 2))  # the twin has hooks of its own


def test_thermometer_code_needs_a_surrogate_of_its_shape() -> None:
    levels = torch.linspace(0, 1, 5)
    step = straight_through(lambda x: (x[..., None] > levels).float())
    with pytest.raises(ModelError, match=r"^the identity gives shape \(3, 2\), the step it stands for \(3, 2, 5\)"):
        step(X)
    smooth = straight_through(
        lambda x: (x[..., None] > levels).float(), lambda x: torch.sigmoid(20 * (x[..., None] - levels))
    )
    x = X.clone().requires_grad_()
    assert set(smooth(x).detach().unique().tolist()) == {0.0, 1.0}
    assert (torch.autograd.grad(smooth(x).sum(), x)[0] > 0).all()


def test_mistakes_are_one_line() -> None:
    x = X.clone().requires_grad_()
    with pytest.raises(ModelError, match="does not depend on its input"):
        straight_through(through_numpy, torch.round_copy if hasattr(torch, "round_copy") else lambda x: x.detach())(x)

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    two = Two()
    declare_surrogate(two)
    with pytest.raises(ModelError, match=r"takes one tensor; Two was given \(Tensor, Tensor\)"):
        two(X, X)
