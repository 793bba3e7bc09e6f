"""Explicit Runge-Kutta solvers for many independent initial value problems at once, one a row.

Rows share the evaluations of the right-hand side and nothing else. The adaptive solver chooses its steps row by row, so
a row's result does not depend on which others it is solved with, and rows that are finished leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["heun", "rk4", "rk45"]
RightHandSide = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``rhs(y, t, rows, number)``, the derivative (n, N) of states `y` (n, N) at times `t` (n,). `rows` int64 (n,): which
problems these are; `number`: of the evaluation on a given grid, from 0 (always 0 under the adaptive solver)."""


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: nodes c, rows of the lower triangle of a, weights b."""

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @property
    def stages(self) -> int:
        return len(self.nodes)


HEUN = Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2))
RK4 = Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
DORMAND_PRINCE = Tableau(
    (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""Dormand & Prince 1980, the fifth-order weights."""
TABLEAUS: dict[Method, Tableau] = {"heun": HEUN, "rk4": RK4, "rk45": DORMAND_PRINCE}

# Fifth-order minus embedded fourth-order weights, the last for the derivative at the end of the step.
_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# Step control of SciPy's RK45 (Hairer, Norsett & Wanner, section II.4), row by row.
_SAFETY, _SHRINK, _GROW, _EXPONENT = 0.9, 0.2, 10.0, -1 / 5


@dataclass(frozen=True)
class Grid:
    """The times at which each problem's steps begin and end.

    Attributes:
        times: float64 (R, S + 1); a row's entries after its last step repeat the end.
        counts: int64 (R,), steps of each row.
    """

    times: Tensor
    counts: Tensor

    @classmethod
    def shared(cls, times: Tensor, rows: int) -> Grid:
        """One grid (S + 1,) for all rows."""
        counts = torch.full((rows,), len(times) - 1, dtype=torch.int64, device=times.device)
        return cls(times.double().expand(rows, -1), counts)


@dataclass(frozen=True)
class Solution:
    """States at the end of the interval.

    Attributes:
        y: (R, N), NaN in the rows that failed.
        grid: the steps that were accepted.
        evaluations: int64 (R,), of the right-hand side.
        failed: bool (R,), rows that needed more than the limit of steps, or whose derivative was not finite.
    """

    y: Tensor
    grid: Grid
    evaluations: Tensor
    failed: Tensor


def step(rhs: RightHandSide, method: Tableau, y: Tensor, t: Tensor, h: Tensor, rows: Tensor, number: int) -> Tensor:
    """One step of length `h` (n,) from states `y` (n, N) at times `t` (n,)."""
    slopes: list[Tensor] = []
    for stage in range(method.stages):
        at = _combined(y, h, slopes, method.matrix[stage])
        slopes.append(rhs(at, t + method.nodes[stage] * h, rows, number * method.stages + stage))
    return _combined(y, h, slopes, method.weights)


def solve_on_grid(
    rhs: RightHandSide, method: Tableau, y: Tensor, grid: Grid, keep: list[Tensor] | None = None
) -> Tensor:
    """States (R, N) after the steps of `grid`; the state before each step is appended to `keep`."""
    for number in range(grid.times.shape[1] - 1):
        if keep is not None:
            keep.append(y)
        rows = (grid.counts > number).nonzero()[:, 0]
        t, h = begin(grid, rows, number)
        moved = step(rhs, method, y[rows], t, h, rows, number)
        y = moved if len(rows) == len(y) else y.index_copy(0, rows, moved)
    return y


def begin(grid: Grid, rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Time and length (n,) of step `number` of these rows."""
    t = grid.times[rows, number]
    return t, grid.times[rows, number + 1] - t


def solve_adaptive(
    rhs: RightHandSide, y: Tensor, start: float, end: float, *, rtol: float, atol: float, max_steps: int
) -> Solution:
    """Dormand-Prince 5(4) from `start` to `end` (in either direction), with each row's own steps.

    Local error is held below ``atol + rtol |y|`` in the root mean square over a row's entries; first step, growth and
    rejection follow SciPy's RK45, so a row alone makes the same steps there.

    Args:
        y: float64 (R, N), states at `start`.
        max_steps: steps a row may try, rejected ones included; a row that needs more is reported as failed.
    """
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"rtol and atol must be above 0, not {rtol} and {atol}")
    solver = _Adaptive(rhs, y, start, end, rtol, atol)
    while len(solver.active):
        solver.attempt(max_steps)
    return solver.solution()


class _Adaptive:
    """The state of all rows between two attempts; `active` indexes those still on their way."""

    def __init__(self, rhs: RightHandSide, y: Tensor, start: float, end: float, rtol: float, atol: float) -> None:
        count = len(y)
        self.rhs, self.rtol, self.atol = rhs, rtol, atol
        self.start, self.end, self.sign = start, end, 1.0 if end >= start else -1.0
        self.y = y.clone()
        self.t = y.new_full((count,), start)
        self.active = torch.arange(count, device=y.device)
        self.tried = torch.zeros_like(self.active)
        self.failed = torch.zeros_like(self.active, dtype=torch.bool)
        self.accepted: list[tuple[Tensor, Tensor]] = []
        self.slope = self._rhs(self.y, self.t, self.active)
        self.h = self._first_step()
        self.just_rejected = self.failed.clone()
        if start == end:
            self.active = self.active[:0]

    def attempt(self, max_steps: int) -> None:
        """One step of every active row, accepted or not."""
        rows = self.active
        y, t = self.y[rows], self.t[rows]
        left = (self.end - t).abs()
        spacing = 10 * torch.finfo(t.dtype).eps * t.abs().clamp_min(1e-300)
        size = torch.maximum(self.h[rows], spacing)
        last = size >= left
        h = self.sign * torch.where(last, left, size)
        slopes = [self.slope[rows]]
        for stage in range(1, DORMAND_PRINCE.stages):
            at = _combined(y, h, slopes, DORMAND_PRINCE.matrix[stage])
            slopes.append(self._rhs(at, t + DORMAND_PRINCE.nodes[stage] * h, rows))
        new = _combined(y, h, slopes, DORMAND_PRINCE.weights)
        new_t = torch.where(last, torch.full_like(t, self.end), t + h)
        slopes.append(self._rhs(new, new_t, rows))
        self.tried[rows] += 1
        error = _combined(torch.zeros_like(y), h, slopes, _ERROR)
        scale = self.atol + self.rtol * torch.maximum(y.abs(), new.abs())
        norm = _rms(error / scale)
        good = norm < 1  # false for NaN
        self._resize(rows, h.abs(), norm, good)
        moved = rows[good]
        self.y[moved], self.t[moved], self.slope[moved] = new[good], new_t[good], slopes[-1][good]
        self.accepted.append((moved, new_t[good]))
        stuck = ~good & (h.abs() <= spacing)
        over = (self.tried[rows] >= max_steps) & ~(good & last)
        self.failed[rows[stuck | over]] = True
        self.active = rows[~((good & last) | stuck | over)]

    def solution(self) -> Solution:
        self.y[self.failed] = torch.nan
        return Solution(self.y, self._grid(), 2 + 6 * self.tried, self.failed)

    def _resize(self, rows: Tensor, size: Tensor, norm: Tensor, good: Tensor) -> None:
        factor = (_SAFETY * norm.clamp_min(1e-30) ** _EXPONENT).nan_to_num(nan=_SHRINK, neginf=_SHRINK)
        most = torch.where(self.just_rejected[rows], 1.0, _GROW)
        grown = torch.minimum(factor.clamp_max(_GROW), most)
        self.h[rows] = size * torch.where(good, grown, factor.clamp(_SHRINK, 1.0))
        self.just_rejected[rows] = ~good

    def _grid(self) -> Grid:
        counts = torch.zeros_like(self.active.new_empty(len(self.y)).zero_())
        for rows, _ in self.accepted:
            counts[rows] += 1
        longest = int(counts.max()) if len(counts) else 0
        times = self.y.new_full((len(self.y), longest + 1), self.end)
        times[:, 0] = self.start
        position = torch.ones_like(counts)
        for rows, t in self.accepted:
            times[rows, position[rows]] = t
            position[rows] += 1
        return Grid(times, counts)

    def _first_step(self) -> Tensor:
        """Hairer, Norsett & Wanner, section II.4, as SciPy has it."""
        scale = self.atol + self.rtol * self.y.abs()
        d0, d1 = _rms(self.y / scale), _rms(self.slope / scale)
        length = abs(self.end - self.start)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp_max(length)
        ahead = self.y + (self.sign * h0)[:, None] * self.slope
        d2 = _rms((self._rhs(ahead, self.t + self.sign * h0, self.active) - self.slope) / scale) / h0
        steepest = torch.maximum(d1, d2)
        h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp_min(1e-6), (0.01 / steepest) ** (1 / 5))
        return torch.minimum(100 * h0, h1).clamp_max(length).nan_to_num(nan=length)

    def _rhs(self, y: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        return self.rhs(y, t, rows, 0)


def _combined(y: Tensor, h: Tensor, slopes: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """y + h * sum of weights * slopes."""
    total: Tensor | None = None
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total = weight * slope if total is None else total + weight * slope
    return y if total is None else y + h[:, None] * total


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=1).sqrt()
