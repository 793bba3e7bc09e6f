"""Log-likelihoods of a diffusion model by its probability-flow ODE.

With the score s of the noised data, the ODE ``dx/dt = F = a(t) x - g(t)^2 s(x, t) / 2`` moves data to the prior, and
``log p(x(0)) = log prior(x(1)) + integral of div F`` from the smallest time to 1 (Song et al. 2021, *Score-Based
Generative Modeling through Stochastic Differential Equations*, section 4.3 and appendix D; equation 3 of Zimmermann et
al. 2021). The divergence of the linear part is known; that of the score is estimated by ``e^T (ds/dx) e`` with probes e
(Skilling 1989, Hutchinson 1990), or, for small images, summed exactly.

Everything is integrated over u = -log SNR instead of t (``du = g^2 / sigma^2 dt`` for every linear process), where the
right-hand side changes evenly; in t nearly all of the change lies close to 0. The state is z = x / c with
c^2 = alpha^2 + sigma^2 (1 for VP), of about unit variance at all times. In these variables the linear drift cancels,
and for every linear process

    dz/du = -w (z + c s(c z, t)),    div = -w (D + c^2 tr ds/dx),    w = sigma^2 / (2 c^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness_diffusion.ode import TABLEAUS, Grid, Method, solve_adaptive, solve_on_grid
from harness_diffusion.ode_gradients import Backwards, adjoint, exact
from harness_diffusion.processes import Process

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``score(x, t, y)``: the gradient of log p_t(x | y) (n, C, H, W) at noised data x (n, C, H, W) on the scale [-1, 1],
times t (n,) in [0, 1] and labels y int64 (n,). Each row's answer depends on that row alone. It is differentiated, and
for the gradients of a likelihood twice, which fused attention does not allow: `Denoiser.score` sees to that."""
Trace = Literal["rademacher", "gaussian", "exact"]
Gradient = Literal["exact", "adjoint", "surrogate"]


class Noise(Protocol):
    """Random numbers for the samples of a batch, the same for every class."""

    def probes(self, number: int) -> Tensor:
        """(B, n, C, H, W), entries of mean 0 and variance 1: the probes of evaluation `number`."""
        ...

    def diffusion(self, number: int) -> tuple[Tensor, Tensor]:
        """Draw `number` of the denoising loss: a fraction in [0, 1) (B,), and standard normal noise (B, C, H, W)."""
        ...


@dataclass(frozen=True)
class Flow:
    """How a likelihood is integrated.

    Attributes:
        process: the diffusion that the score belongs to.
        score: see `Score`.
        method: "rk45", adaptive with each row's own steps; "heun" and "rk4", fixed grids uniform in log-SNR.
        steps: of a fixed grid.
        rtol, atol: tolerances of the adaptive solver.
        max_steps: steps that a row may try before it counts as failed.
        smallest: the time at which the data are taken to lie.
        trace: how the divergence is found. Probes are drawn afresh at every evaluation of a fixed grid, which averages
            their noise over the grid and is unbiased since the integral is linear in the divergence; an adaptive
            solver needs a deterministic right-hand side, so there the probes are those of evaluation 0 throughout.
        gradient: what differentiating a result gives: "exact", the derivative of the number returned (adaptive steps
            count as fixed); "adjoint", that of the continuous problem; "surrogate", that of the likelihood-weighted
            denoising bound.
        draws: of the denoising bound, for the surrogate gradient.
        dtype: of the network; states are float64.
    """

    process: Process
    score: Score
    method: Method = "rk4"
    steps: int = 12
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 1000
    smallest: float = 1e-5
    trace: Trace = "rademacher"
    gradient: Gradient = "exact"
    draws: int = 16
    dtype: torch.dtype = torch.float32

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of u = -log SNR."""
        return float(self.process.importance(self.smallest)), float(self.process.importance(1.0))


@dataclass(frozen=True)
class Likelihood:
    """What the solver found, one entry a row.

    Attributes:
        log_prob: float64 (R,), nats of the density on the scale [-1, 1]; NaN where the solver failed.
        evaluations: int64 (R,), of the score network; each also costs a backward pass a probe.
        failed: bool (R,), rows over the limit of steps.
    """

    log_prob: Tensor
    evaluations: Tensor
    failed: Tensor


def log_prob(flow: Flow, x: Tensor, y: Tensor, sample: Tensor, noise: Noise) -> Likelihood:
    """log p(x | y) of many rows at once, differentiable in `x` as `flow.gradient` says.

    Args:
        x: (R, C, H, W), data on the scale [-1, 1]; integrated in float64.
        y: int64 (R,), labels.
        sample: int64 (R,), which sample of `noise` a row belongs to: rows of one image share theirs.
    """
    rhs = _RightHandSide(flow, y, sample, noise, x.shape[1:])
    first, last = (float(_coefficients(flow, u)[1]) for u in _ends(flow, x.device))
    start = torch.nn.functional.pad(x.double().flatten(1) / first, (0, 1))
    wanted = torch.is_grad_enabled() and x.requires_grad
    with torch.no_grad():
        end, grid, evaluations, failed, states = _solve(flow, rhs, start, wanted and flow.gradient == "exact")
    if wanted and flow.gradient == "exact":
        end = exact(start, end, rhs, TABLEAUS[flow.method], grid, states)
    elif wanted and flow.gradient == "adjoint":
        how = Backwards(flow.rtol, flow.atol, flow.max_steps) if flow.method == "rk45" else Backwards()
        end = adjoint(start, end, rhs, TABLEAUS[flow.method], grid, how)
    volume = (start.shape[1] - 1) * math.log(last / first)
    result = flow.process.prior_log_prob(last * end[:, :-1]) + end[:, -1] + volume
    if wanted and flow.gradient == "surrogate":
        result = _Surrogate.apply(x, result, flow, y, sample, noise)  # type: ignore[no-untyped-call]
    return Likelihood(result, evaluations, failed)


def denoising_bound(flow: Flow, x: Tensor, y: Tensor, sample: Tensor, noise: Noise, number: int) -> Tensor:
    """(R,) the part of a lower bound of log p(x | y) that depends on x and y, nats, estimated from one draw.

    ``-1/2 integral g^2 E |s + z / sigma|^2 dt`` (Song et al. 2021, *Maximum Likelihood Training of Score-Based
    Diffusion Models*, theorem 3), u = -log SNR drawn uniformly, stratified over the `flow.draws` draws. Takes what
    `log_prob` does.
    """
    fraction, z = noise.diffusion(number)
    low, high = flow.interval
    u = low + (number + fraction[sample].double()) / flow.draws * (high - low)
    t = flow.process.time_of_importance(u).clamp(flow.smallest, 1.0)
    z = z[sample].to(flow.dtype)
    noised = flow.process.diffuse(x.to(flow.dtype), t, z)
    sigma = flow.process.std(t).to(flow.dtype)[:, None, None, None]
    error = sigma * flow.score(noised, t.to(flow.dtype), y) + z
    return -0.5 * (high - low) * error.flatten(1).square().sum(dim=1, dtype=torch.float64)


def sample_flow(flow: Flow, prior: Tensor, y: Tensor) -> Tensor:
    """Samples (R, C, H, W) on the scale [-1, 1]: the ODE from noise `prior` at time 1 back to the smallest time.

    A row whose adaptive solution fails is NaN.
    """
    shape = prior.shape[1:]

    def rhs(state: Tensor, u: Tensor, rows: Tensor, _number: int) -> Tensor:
        t, scale, weight = _coefficients(flow, u)
        at = (scale[:, None] * state).reshape(-1, *shape).to(flow.dtype)
        score = flow.score(at, t.to(flow.dtype), y[rows]).flatten(1)
        return -weight[:, None] * (state + scale[:, None] * score)

    low, high = flow.interval
    first, last = (float(_coefficients(flow, u)[1]) for u in _ends(flow, prior.device))
    start = prior.double().flatten(1) / last
    with torch.no_grad():
        if flow.method == "rk45":
            tolerances = {"rtol": flow.rtol, "atol": flow.atol}
            end = solve_adaptive(rhs, start, high, low, max_steps=flow.max_steps, **tolerances).y
        else:
            times = torch.linspace(high, low, flow.steps + 1, dtype=torch.float64, device=prior.device)
            end = solve_on_grid(rhs, TABLEAUS[flow.method], start, Grid.shared(times, len(start)))
    return (first * end).reshape(-1, *shape)


class _RightHandSide:
    """d/du of the state (z, accumulated divergence), float64 (n, D + 1)."""

    def __init__(self, flow: Flow, y: Tensor, sample: Tensor, noise: Noise, shape: torch.Size) -> None:
        self.flow, self.y, self.sample, self.noise, self.shape = flow, y, sample, noise, shape
        self._fixed = noise.probes(0) if flow.method == "rk45" and flow.trace != "exact" else None

    def __call__(self, state: Tensor, u: Tensor, rows: Tensor, number: int) -> Tensor:
        t, scale, weight = _coefficients(self.flow, u)
        z = state[:, :-1]
        x = (scale[:, None] * z).reshape(-1, *self.shape).to(self.flow.dtype)
        score, trace = self._score(x, t, rows, number)
        slope = -weight[:, None] * (z + scale[:, None] * score.flatten(1))
        divergence = -weight * (math.prod(self.shape) + scale.square() * trace)
        return torch.cat([slope, divergence[:, None]], dim=1)

    def _score(self, x: Tensor, t: Tensor, rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The score and its divergence (n,), with a graph where one is wanted."""
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            at = x if graph else x.detach().requires_grad_()
            score = self.flow.score(at, t.to(x.dtype), self.y[rows])
            total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            for probe, weight in self._probes(x, rows, number):
                (pulled,) = torch.autograd.grad(score, at, probe, retain_graph=True, create_graph=graph)
                total = total + weight * (pulled * probe).flatten(1).sum(dim=1, dtype=torch.float64)
        return (score, total) if graph else (score.detach(), total.detach())

    def _probes(self, x: Tensor, rows: Tensor, number: int) -> Iterator[tuple[Tensor, float]]:
        """The probes (n, C, H, W) of these rows, one after another, each with its weight in the mean."""
        if self.flow.trace == "exact":
            unit = torch.zeros_like(x, memory_format=torch.contiguous_format).flatten(1)
            for entry in range(unit.shape[1]):
                yield unit.index_fill(1, torch.tensor([entry], device=x.device), 1.0).reshape(x.shape), 1.0
            return
        probes = self._fixed if self._fixed is not None else self.noise.probes(number)
        owner = self.sample[rows]
        for k in range(probes.shape[1]):
            yield probes[owner, k].to(x), 1 / probes.shape[1]


class _Surrogate(torch.autograd.Function):
    """A log-likelihood with the gradient of `denoising_bound`, one draw's activations at a time."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, value: Tensor, flow: Flow, y: Tensor, sample: Tensor, noise: Noise
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rest = flow, y, sample, noise
        return value.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flow, y, sample, noise = ctx.rest
        (x,) = ctx.saved_tensors
        total = torch.zeros_like(x)
        for number in range(flow.draws):
            at = x.detach().requires_grad_()
            with torch.enable_grad():
                bound = denoising_bound(flow, at, y, sample, noise, number)
            (one,) = torch.autograd.grad(bound, at, gradient / flow.draws)
            total += one
        return total, None, None, None, None, None


def _solve(
    flow: Flow, rhs: _RightHandSide, start: Tensor, keep: bool
) -> tuple[Tensor, Grid, Tensor, Tensor, list[Tensor]]:
    """End, grid, evaluations, failed rows, and, on a fixed grid, the states between steps if they are to be kept."""
    low, high = flow.interval
    if flow.method == "rk45":
        tolerances = {"rtol": flow.rtol, "atol": flow.atol}
        found = solve_adaptive(rhs, start, low, high, max_steps=flow.max_steps, **tolerances)
        return found.y, found.grid, found.evaluations, found.failed, []
    times = torch.linspace(low, high, flow.steps + 1, dtype=torch.float64, device=start.device)
    grid = Grid.shared(times, len(start))
    states: list[Tensor] = []
    end = solve_on_grid(rhs, TABLEAUS[flow.method], start, grid, states if keep else None)
    evaluations = grid.counts * TABLEAUS[flow.method].stages
    return end, grid, evaluations, ~end.isfinite().all(dim=1), states


def _ends(flow: Flow, device: torch.device) -> tuple[Tensor, Tensor]:
    low, high = (torch.tensor(u, dtype=torch.float64, device=device) for u in flow.interval)
    return low, high


def _coefficients(flow: Flow, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Times t, scales c and weights w (see above) at `u`, float64, of its shape."""
    t = flow.process.time_of_importance(u).clamp(flow.smallest, 1.0)
    variance = flow.process.std(t).square()
    squared = flow.process.mean_coefficient(t).square() + variance
    return t, squared.sqrt(), variance / (2 * squared)
