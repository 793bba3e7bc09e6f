"""The solvers against SciPy, torchdiffeq and closed forms; rows that know nothing of each other; gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from harness_diffusion.ode import DORMAND_PRINCE, HEUN, RK4, Grid, Solution, solve_adaptive, solve_on_grid
from harness_diffusion.ode_gradients import Backwards, adjoint, exact
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

STATES = torch.tensor([[1.0, 0.5], [2.0, -1.0], [0.1, 3.0], [-1.5, 0.2], [4.0, 4.0]], dtype=torch.float64)
STIFFNESS = torch.tensor([0.3, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)


def oscillator(y: Tensor, t: Tensor, rows: Tensor, _number: int) -> Tensor:
    """Van der Pol, driven, with another stiffness in each row."""
    a, b = y[:, 0], y[:, 1]
    return torch.stack([b, STIFFNESS.to(y)[rows] * (1 - a**2) * b - a + torch.sin(t)], dim=1)


def solved(states: Tensor = STATES, end: float = 1.5, tolerance: float = 1e-5, max_steps: int = 2000) -> Solution:
    return solve_adaptive(oscillator, states, 0.0, end, rtol=tolerance, atol=tolerance, max_steps=max_steps)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_each_row_makes_the_steps_of_scipy(tolerance: float) -> None:
    found = solved(tolerance=tolerance)
    for row, start in enumerate(STATES.numpy()):

        def field(t: float, y: np.ndarray, row: int = row) -> list[float]:
            return [y[1], float(STIFFNESS[row]) * (1 - y[0] ** 2) * y[1] - y[0] + math.sin(t)]

        wanted = solve_ivp(field, (0.0, 1.5), start, method="RK45", rtol=tolerance, atol=tolerance)
        assert int(found.evaluations[row]) == wanted.nfev
        times = found.grid.times[row, : int(found.grid.counts[row]) + 1].numpy()
        np.testing.assert_allclose(times, wanted.t, rtol=1e-6)
        np.testing.assert_allclose(found.y[row].numpy(), wanted.y[:, -1], rtol=1e-7, atol=1e-7)
    assert not found.failed.any()
    assert len(set(found.evaluations.tolist())) == len(STATES)  # the rows differ in how many steps they need


def test_backwards_in_time() -> None:
    there = solved(STATES[:3], end=1.0, tolerance=1e-9)
    back = solve_adaptive(oscillator, there.y, 1.0, 0.0, rtol=1e-8, atol=1e-8, max_steps=2000)
    torch.testing.assert_close(back.y, STATES[:3], rtol=1e-5, atol=1e-5)


def test_agrees_with_torchdiffeq() -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    rows = torch.arange(len(STATES))
    times = torch.tensor([0.0, 1.5], dtype=torch.float64)
    wanted = torchdiffeq.odeint(
        lambda t, y: oscillator(y, t.expand(len(y)), rows, 0), STATES, times, method="dopri5", rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(solved(tolerance=1e-8).y, wanted[1], rtol=1e-6, atol=1e-7)


@settings(max_examples=6, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 5))
def test_a_row_does_not_depend_on_its_neighbours(order: list[int], count: int) -> None:
    whole = solved()
    index = torch.tensor(order[:count])

    def some(y: Tensor, t: Tensor, rows: Tensor, number: int) -> Tensor:
        return oscillator(y, t, index[rows], number)

    part = solve_adaptive(some, STATES[index], 0.0, 1.5, rtol=1e-5, atol=1e-5, max_steps=2000)
    torch.testing.assert_close(part.y, whole.y[index], rtol=1e-12, atol=1e-12)
    assert torch.equal(part.evaluations, whole.evaluations[index])


def test_finished_rows_leave_the_batch() -> None:
    asked = []

    def counted(y: Tensor, t: Tensor, rows: Tensor, number: int) -> Tensor:
        asked.append(len(rows))
        return oscillator(y, t, rows, number)

    found = solve_adaptive(counted, STATES, 0.0, 1.5, rtol=1e-5, atol=1e-5, max_steps=2000)
    assert sum(asked) == int(found.evaluations.sum())
    assert asked[-1] == 1


def test_a_row_over_its_limit_is_reported_and_leaves_the_others_alone() -> None:
    needed = (solved().evaluations - 2) // 6
    limit = int(needed.max()) - 1
    found = solved(max_steps=limit)
    assert torch.equal(found.failed, needed > limit)
    assert found.failed.sum() == 1
    assert found.y[found.failed].isnan().all()
    assert torch.equal(found.y[~found.failed], solved().y[~found.failed])
    exactly = solved(max_steps=int(needed.max()))
    assert not exactly.failed.any()


def test_a_derivative_that_is_not_finite_is_a_failure_of_that_row() -> None:
    def broken(y: Tensor, t: Tensor, rows: Tensor, _number: int) -> Tensor:
        bad = (rows == 1)[:, None] & (t > 0.5)[:, None]
        return torch.where(bad, torch.nan, -y)

    found = solve_adaptive(broken, STATES[:3], 0.0, 1.0, rtol=1e-5, atol=1e-5, max_steps=500)
    assert found.failed.tolist() == [False, True, False]
    torch.testing.assert_close(found.y[[0, 2]], STATES[[0, 2]] * math.exp(-1), rtol=1e-4, atol=1e-5)


def test_no_rows_and_no_interval() -> None:
    assert solved(STATES[:0]).y.shape == (0, 2)
    still = solved(end=0.0)
    assert torch.equal(still.y, STATES)
    assert still.grid.counts.tolist() == [0] * len(STATES)


@pytest.mark.parametrize(("rtol", "atol"), [(0.0, 1e-5), (1e-5, -1.0)])
def test_tolerances_must_be_positive(rtol: float, atol: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        solve_adaptive(oscillator, STATES, 0.0, 1.0, rtol=rtol, atol=atol, max_steps=10)


@pytest.mark.parametrize(("method", "order"), [(HEUN, 2), (RK4, 4), (DORMAND_PRINCE, 5)])
def test_fixed_grids_converge_at_their_order(method, order: int) -> None:
    wanted = solved(STATES[:3], end=1.0, tolerance=1e-11).y
    errors = []
    for steps in (16, 32):
        grid = Grid.shared(torch.linspace(0, 1, steps + 1, dtype=torch.float64), 3)
        errors.append((solve_on_grid(oscillator, method, STATES[:3], grid) - wanted).abs().amax(dim=1))
    rate = (errors[0] / errors[1]).log2()
    assert bool((rate > order - 0.35).all()), rate


def test_evaluations_of_a_grid_are_numbered() -> None:
    numbers = []

    def counted(y: Tensor, t: Tensor, rows: Tensor, number: int) -> Tensor:
        numbers.append(number)
        return y

    solve_on_grid(counted, RK4, STATES, Grid.shared(torch.linspace(0, 1, 4), 5))
    assert numbers == list(range(12))


def test_a_grid_of_the_adaptive_solver_gives_its_result_again() -> None:
    found = solved()
    again = solve_on_grid(oscillator, DORMAND_PRINCE, STATES, found.grid)
    torch.testing.assert_close(again, found.y, rtol=1e-13, atol=1e-13)


def differences(function, y: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a sum over entries of a row, entry by entry."""
    out = torch.zeros_like(y)
    for k in range(y.shape[1]):
        move = torch.zeros_like(y)
        move[:, k] = step
        out[:, k] = (function(y + move) - function(y - move)).sum(dim=1) / (2 * step)
    return out


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("method", [HEUN, RK4])
def test_exact_gradient_is_that_of_the_number_returned(method, kept: bool) -> None:
    grid = Grid.shared(torch.linspace(0, 1, 6, dtype=torch.float64), 3)  # so coarse that the solution is wrong
    y = STATES[:3].clone().requires_grad_()
    states: list[Tensor] = []
    end = solve_on_grid(oscillator, method, y.detach(), grid, states if kept else None)
    result = exact(y, end, oscillator, method, grid, states)
    assert torch.equal(result.detach(), end)
    (gradient,) = torch.autograd.grad(result.sum(), y)
    numeric = differences(lambda at: solve_on_grid(oscillator, method, at, grid), STATES[:3])
    torch.testing.assert_close(gradient, numeric, rtol=1e-7, atol=1e-7)


def test_exact_gradient_through_rows_with_different_numbers_of_steps() -> None:
    found = solved(tolerance=1e-5)
    assert len(set(found.grid.counts.tolist())) > 2
    y = STATES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(exact(y, found.y, oscillator, DORMAND_PRINCE, found.grid, []).sum(), y)
    numeric = differences(lambda at: solve_on_grid(oscillator, DORMAND_PRINCE, at, found.grid), STATES)
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-6)


def test_adjoint_gradient_is_that_of_the_true_solution() -> None:
    y = STATES[:3].clone().requires_grad_()
    found = solve_adaptive(oscillator, STATES[:3], 0.0, 1.0, rtol=1e-8, atol=1e-8, max_steps=2000)
    numeric = differences(lambda at: solved(at, end=1.0, tolerance=1e-9, max_steps=9000).y, STATES[:3], 1e-4)
    how = Backwards(1e-8, 1e-8, 2000)
    (gradient,) = torch.autograd.grad(adjoint(y, found.y, oscillator, DORMAND_PRINCE, found.grid, how).sum(), y)
    torch.testing.assert_close(gradient, numeric, rtol=1e-5, atol=1e-5)


def test_adjoint_on_a_grid_converges_to_the_exact_gradient() -> None:
    gaps = []
    for steps in (20, 40, 80):
        grid = Grid.shared(torch.linspace(0, 1, steps + 1, dtype=torch.float64), 3)
        y = STATES[:3].clone().requires_grad_()
        states: list[Tensor] = []
        end = solve_on_grid(oscillator, HEUN, y.detach(), grid, states)
        (one,) = torch.autograd.grad(exact(y, end, oscillator, HEUN, grid, states).sum(), y)
        (other,) = torch.autograd.grad(adjoint(y, end, oscillator, HEUN, grid, Backwards()).sum(), y)
        gaps.append(float((one - other).abs().max()))
    assert gaps[0] > 1e-6  # they are not the same discretisation
    assert gaps[1] < gaps[0] / 3
    assert gaps[2] < gaps[1] / 3
