"""Gradients of what an ODE solver returns with respect to the states it starts from, two ways.

Both keep memory flat: beside the states between steps (or, for the adjoint, none) no more than one step's activations
are alive at any time. Neither gives gradients of a network's weights, nor a second derivative.

A right-hand side must be differentiable: where gradients are enabled and its states require them, so does its result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness_diffusion.ode import Grid, RightHandSide, Tableau, begin, solve_adaptive, solve_on_grid, step


@dataclass(frozen=True)
class Backwards:
    """How the continuous adjoint is integrated: on the reversed grid of the solution, or adaptively."""

    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 1000


def exact(y: Tensor, end: Tensor, rhs: RightHandSide, method: Tableau, grid: Grid, states: list[Tensor]) -> Tensor:
    """`end`, with the gradient of the very steps that led there from `y` (discretise, then optimise).

    Args:
        y: (R, N), states at the start.
        end: (R, N), what `solve_on_grid` made of them.
        grid: of the steps. Those an adaptive solver chose count as fixed.
        states: the states before each step; empty: they are computed again when the gradient is asked for.
    """
    result: Tensor = _Exact.apply(y, end, rhs, method, grid, states)  # type: ignore[no-untyped-call]
    return result


def adjoint(y: Tensor, end: Tensor, rhs: RightHandSide, method: Tableau, grid: Grid, how: Backwards) -> Tensor:
    """`end`, with the gradient of the continuous problem (Chen et al. 2018, *Neural Ordinary Differential Equations*).

    The state is solved backwards in time together with its adjoint, da/dt = -(df/dy)^T a: the gradient of another
    discretisation than the one that was reported, which converges to it with finer steps. On a fixed grid evaluation
    k of the forward solution and its counterpart here share their number, hence their probes.
    """
    result: Tensor = _Adjoint.apply(y, end, rhs, method, grid, how)  # type: ignore[no-untyped-call]
    return result


class _Exact(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, y: Tensor, end: Tensor, rhs: RightHandSide, method: Tableau, grid: Grid, states: list[Tensor]
    ) -> Tensor:
        ctx.save_for_backward(y)
        ctx.rest = rhs, method, grid, states
        return end.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rhs, method, grid, states = ctx.rest
        (y,) = ctx.saved_tensors
        if not states:
            states = []
            with torch.no_grad():
                solve_on_grid(rhs, method, y, grid, states)
        gradient = gradient.clone()
        for number in reversed(range(len(states))):
            rows = (grid.counts > number).nonzero()[:, 0]
            before = states[number][rows].detach().requires_grad_()
            t, h = begin(grid, rows, number)
            with torch.enable_grad():
                after = step(rhs, method, before, t, h, rows, number)
            (gradient[rows],) = torch.autograd.grad(after, before, gradient[rows])
        return gradient, None, None, None, None, None


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, _y: Tensor, end: Tensor, rhs: RightHandSide, method: Tableau, grid: Grid, how: Backwards
    ) -> Tensor:
        ctx.save_for_backward(end)
        ctx.rest = rhs, method, grid, how
        return end.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rhs, method, grid, how = ctx.rest
        (end,) = ctx.saved_tensors
        size = end.shape[1]
        both = torch.cat([end, gradient.to(end)], dim=1)
        augmented = _augmented(rhs, size, method.stages * (grid.times.shape[1] - 1))
        if how.rtol is None or how.atol is None:
            both = solve_on_grid(augmented, method, both, Grid(grid.times.flip(1), grid.counts))
        else:
            first, last = float(grid.times[0, -1]), float(grid.times[0, 0])
            both = solve_adaptive(
                augmented, both, first, last, rtol=how.rtol, atol=how.atol, max_steps=how.max_steps
            ).y  # NaN where the limit of steps was passed, which no attack takes for a gradient
        return both[:, size:], None, None, None, None, None


def _augmented(rhs: RightHandSide, size: int, evaluations: int) -> RightHandSide:
    """The derivative of the state and its adjoint together; evaluations count down from the last."""

    def derivative(both: Tensor, t: Tensor, rows: Tensor, number: int) -> Tensor:
        y, a = both[:, :size].detach().requires_grad_(), both[:, size:]
        with torch.enable_grad():
            slope = rhs(y, t, rows, max(evaluations - 1 - number, 0))
        (pulled,) = torch.autograd.grad(slope, y, a)
        return torch.cat([slope.detach(), -pulled], dim=1)

    return derivative
