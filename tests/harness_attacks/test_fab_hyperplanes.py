"""Projection onto a hyperplane within the box, against solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness_attacks.hyperplanes import to_hyperplane
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

NORMS = ["linf", "l2", "l1"]


def problems(n: int, entries: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points of the box, normals, gains, and the largest gains that the box allows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, entries, generator=generator)
    x[:, ::4] = x[:, ::4].round()  # some at the walls
    w = torch.randn(n, entries, generator=generator)
    w[:, 1::5] = 0
    gain = 2 * torch.randn(n, generator=generator)
    reach = (torch.where(w * gain[:, None] > 0, 1 - x, x) * w.abs()).sum(dim=1)
    return x, w, gain, reach


def smallest(x: np.ndarray, w: np.ndarray, gain: float, norm: str) -> float:  # type: ignore[type-arg]
    n = len(x)
    if norm == "l2":
        line = {"type": "eq", "fun": lambda d: w @ d - gain, "jac": lambda d: w}
        bounds = list(zip(-x, 1 - x, strict=True))
        return (
            float(minimize(lambda d: d @ d, np.zeros(n), jac=lambda d: 2 * d, constraints=line, bounds=bounds).fun)
            ** 0.5
        )
    if norm == "l1":
        bounds = [*((0, 1 - v) for v in x), *((0, v) for v in x)]
        return float(linprog(np.ones(2 * n), A_eq=[np.r_[w, -w]], b_eq=[gain], bounds=bounds).fun)
    below = np.r_[np.c_[np.eye(n), -np.ones(n)], np.c_[-np.eye(n), -np.ones(n)]]
    bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
    cost = np.r_[np.zeros(n), 1]
    return float(linprog(cost, below, np.zeros(2 * n), [np.r_[w, 0]], [gain], bounds).fun)


@pytest.mark.parametrize("norm", NORMS)
def test_as_short_as_a_solver_finds(norm: str) -> None:
    x, w, gain, reach = problems(12, 15, 1)
    moves = to_hyperplane(x, w, gain, norm)  # type: ignore[arg-type]
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    inside = reach > gain.abs()
    assert inside.sum() > 6
    for row in inside.nonzero()[:, 0]:
        best = smallest(x[row].double().numpy(), w[row].double().numpy(), float(gain[row]), norm)
        assert float(torch.linalg.vector_norm(moves[row], ord=order)) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), entries=st.integers(1, 40), power=st.integers(-20, 20))
def test_the_plane_is_reached_or_every_entry_is_at_its_wall(norm: str, seed: int, entries: int, power: int) -> None:
    """Whatever the scale of normal and gain."""
    x, w, gain, reach = problems(5, entries, seed)
    scale = 10.0**power
    moves = to_hyperplane(x, w * scale, gain * scale, norm)  # type: ignore[arg-type]
    assert (x + moves).min() >= -1e-6
    assert (x + moves).max() <= 1 + 1e-6
    got = (w.double() * moves).sum(dim=1)
    wanted = gain.sign() * torch.minimum(gain.abs(), reach)
    assert torch.allclose(got, wanted.double(), atol=1e-4)


def test_a_zero_normal_moves_nothing() -> None:
    for norm in NORMS:
        moves = to_hyperplane(torch.rand(2, 7), torch.zeros(2, 7), torch.ones(2), norm)  # type: ignore[arg-type]
        assert (moves == 0).all()
