"""Diffusion processes: how data become noise as time runs from 0 to 1.

All are linear, dx = a(t) x dt + g(t) dW, so that x(t) given x(0) is normal with mean alpha(t) x(0) and deviation
sigma(t). The data that they act on are scaled to [-1, 1] (`harness_diffusion.scaling`).

Every such process obeys d log(sigma^2 / alpha^2) / dt = g^2 / sigma^2: the density from which likelihood weighting
wants times drawn has the antiderivative U = -log SNR, whatever the process. One function and its inverse, in closed
form, therefore serve importance sampling and grids uniform in log-SNR alike.

Sources: Song et al. 2021, *Score-Based Generative Modeling through Stochastic Differential Equations*, appendices B and
C (VE, VP, sub-VP); Song et al. 2021, *Maximum Likelihood Training of Score-Based Diffusion Models* (weighting,
importance sampling); Ho et al. 2020 and Nichol & Dhariwal 2021 (schedules in steps).
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from harness.errors import ModelError, did_you_mean

Time = Tensor | float
"""A time in [0, 1]: a tensor (B,) or a scalar. A plain number is taken in float64."""


def as_time(t: Time, like: Tensor | None = None) -> Tensor:
    """A time as a floating-point tensor; a plain number in float64, on the device of `like`."""
    if isinstance(t, Tensor):
        return t
    return torch.tensor(t, dtype=torch.float64, device=like.device if like is not None else None)


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient, (B,) or scalar, shaped and typed so that it multiplies `x` (B, ...)."""
    return coefficient.to(x).reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim if coefficient.ndim else 0))


class Process(ABC):
    """A linear diffusion on [0, 1]. Times are `Time`; results have their shape and dtype, none is rounded near t = 0.

    Attributes:
        kind: its name in options and headers.
        smallest_time: where training and likelihoods stop by default (ScoreFlow's values: 1e-5 and, sub-VP, 1e-2).
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def smallest_time(self) -> float: ...

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """Deviation of the normal distribution, centred at 0, that stands for x(1)."""

    @abstractmethod
    def rate(self, t: Time) -> Tensor:
        """a(t) = d log alpha / dt, the drift's factor."""

    @abstractmethod
    def diffusion_squared(self, t: Time) -> Tensor:
        """g(t)^2, which is also the likelihood weighting of the denoising loss."""

    @abstractmethod
    def log_mean_coefficient(self, t: Time) -> Tensor:
        """log alpha(t)."""

    @abstractmethod
    def std(self, t: Time) -> Tensor:
        """sigma(t)."""

    @abstractmethod
    def log_snr(self, t: Time) -> Tensor:
        """log(alpha^2 / sigma^2), nats; falls as time runs, infinite at t = 0."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time with this log-SNR: the inverse of `log_snr`."""

    def mean_coefficient(self, t: Time) -> Tensor:
        """alpha(t)."""
        return self.log_mean_coefficient(t).exp()

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """a(t) x, of the shape of `x` (B, ...)."""
        return per_sample(self.rate(t), x) * x

    def diffuse(self, x: Tensor, t: Time, noise: Tensor) -> Tensor:
        """alpha(t) x + sigma(t) noise: data `x` (B, ...) at time `t`, given standard normal noise."""
        return per_sample(self.mean_coefficient(t), x) * x + per_sample(self.std(t), x) * noise

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """(B,) log density of x(1) under the prior, nats, float64."""
        scaled = x.double().flatten(1) / self.prior_std
        constant = math.log(self.prior_std) + 0.5 * math.log(2 * math.pi)
        return -0.5 * scaled.square().sum(dim=1) - constant * scaled.shape[1]

    def prior_sample(self, noise: Tensor) -> Tensor:
        """A sample of the prior, made of standard normal noise of any shape."""
        return self.prior_std * noise

    def importance(self, t: Time) -> Tensor:
        """U(t), the antiderivative of g^2 / sigma^2: `time_of_importance` is its inverse."""
        return -self.log_snr(t)

    def time_of_importance(self, u: Tensor) -> Tensor:
        """The time at which U is `u`."""
        return self.time_of_log_snr(-u)

    def importance_normaliser(self, smallest: float | None = None) -> float:
        """U(1) - U(smallest), the integral of g^2 / sigma^2 over the times trained on."""
        return float(self.importance(1.0) - self.importance(self.smallest_time if smallest is None else smallest))

    def importance_sample(self, fraction: Tensor, smallest: float | None = None) -> Tensor:
        """Times in [smallest, 1] with density proportional to g^2 / sigma^2, made of `fraction` uniform on [0, 1)."""
        smallest = self.smallest_time if smallest is None else smallest
        first = float(self.importance(smallest))
        u = first + fraction.double() * self.importance_normaliser(smallest)
        return self.time_of_importance(u).clamp(smallest, 1.0).to(fraction.dtype)


class _VariancePreserving(Process):
    """Drift -beta x / 2, described by B(t), the integral of beta from 0 to t, and its inverse."""

    @property
    def prior_std(self) -> float:
        return 1.0

    @abstractmethod
    def beta(self, t: Time) -> Tensor:
        """beta(t) = B'(t)."""

    @abstractmethod
    def integral(self, t: Time) -> Tensor:
        """B(t)."""

    @abstractmethod
    def time_of_integral(self, integral: Tensor) -> Tensor:
        """The time at which B has this value."""

    def rate(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)

    def log_mean_coefficient(self, t: Time) -> Tensor:
        return -0.5 * self.integral(t)

    def diffusion_squared(self, t: Time) -> Tensor:
        return self.beta(t)

    def std(self, t: Time) -> Tensor:
        return (-torch.expm1(-self.integral(t))).sqrt()

    def log_snr(self, t: Time) -> Tensor:
        return -torch.expm1(self.integral(t)).log()

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.time_of_integral(_softplus(-log_snr))


class _LinearBeta(_VariancePreserving):
    """beta(t) = beta_min + t (beta_max - beta_min)."""

    beta_min: float
    beta_max: float

    def beta(self, t: Time) -> Tensor:
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def integral(self, t: Time) -> Tensor:
        t = as_time(t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def time_of_integral(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        # The textbook root (-b + sqrt(b^2 + 2 s B)) / s cancels near t = 0; multiplied through, this one does not.
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ModelError(
                f"process {self.kind}: 0 < beta_min <= beta_max, but they are {self.beta_min:g} and {self.beta_max:g}"
            )


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance preserving: g^2 = beta, sigma^2 = 1 - exp(-B)."""

    kind: ClassVar[str] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0

    @property
    def smallest_time(self) -> float:
        return 1e-5


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP: g^2 = beta (1 - exp(-2 B)), sigma = 1 - exp(-B)."""

    kind: ClassVar[str] = "sub-vp"
    beta_min: float = 0.1
    beta_max: float = 20.0

    @property
    def smallest_time(self) -> float:
        return 1e-2

    def diffusion_squared(self, t: Time) -> Tensor:
        return self.beta(t) * -torch.expm1(-2 * self.integral(t))

    def std(self, t: Time) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def log_snr(self, t: Time) -> Tensor:
        integral = self.integral(t)
        return integral - 2 * torch.expm1(integral).log()

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # exp(-log SNR / 2) = 2 sinh(B / 2).
        return self.time_of_integral(2 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: no drift, s(t) = std_min (std_max / std_min)^t, g^2 = d s^2 / dt.

    sigma^2 is s(t)^2 - s(0)^2, what the equation gives; the reference code takes s(t)^2, as if the data had noise of
    deviation std_min already.
    """

    kind: ClassVar[str] = "ve"
    std_min: float = 0.01
    std_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.std_min < self.std_max < math.inf:
            raise ModelError(f"process ve: 0 < std_min < std_max, but they are {self.std_min:g} and {self.std_max:g}")

    @property
    def smallest_time(self) -> float:
        return 1e-5

    @property
    def prior_std(self) -> float:
        return math.sqrt(self.std_max**2 - self.std_min**2)

    @property
    def _growth(self) -> float:
        return 2 * math.log(self.std_max / self.std_min)

    def rate(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def diffusion_squared(self, t: Time) -> Tensor:
        return self.std_min**2 * self._growth * torch.exp(self._growth * as_time(t))

    def log_mean_coefficient(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def std(self, t: Time) -> Tensor:
        return self.std_min * torch.expm1(self._growth * as_time(t)).sqrt()

    def log_snr(self, t: Time) -> Tensor:
        return -torch.expm1(self._growth * as_time(t)).log() - 2 * math.log(self.std_min)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return _softplus(-log_snr - 2 * math.log(self.std_min)) / self._growth


Schedule = Literal["linear", "scaled-linear", "cosine"]


@dataclass(frozen=True)
class DDPM(_VariancePreserving):
    """A schedule in steps as a process in time, so that a network trained in steps is used like any other.

    Step k = 0 .. steps - 1 is the time (k + 1) / steps, where alpha^2 is the schedule's cumulative product over the
    steps up to k. In between log alpha^2 is linear: beta(t) is constant over a step.

    Attributes:
        schedule: "linear" (Ho et al. 2020), "scaled-linear" (linear in sqrt(beta); latent diffusion), or "cosine"
            (Nichol & Dhariwal 2021, equation 17 with s = 0.008 and beta at most 0.999; ignores the next two).
        beta_start, beta_end: beta of the first and the last step.
    """

    kind: ClassVar[str] = "ddpm"
    schedule: Schedule = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        known = ("linear", "scaled-linear", "cosine")
        if self.schedule not in known:
            near = did_you_mean(str(self.schedule), known)
            raise ModelError(f"process ddpm: no schedule '{self.schedule}'{near} (there are: {', '.join(known)})")
        if self.steps < 2:
            raise ModelError(f"process ddpm: steps = {self.steps}, but a schedule has 2 or more")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ModelError(
                f"process ddpm: 0 < beta_start <= beta_end < 1, but they are {self.beta_start:g} and {self.beta_end:g}"
            )

    @property
    def smallest_time(self) -> float:
        return 1 / self.steps

    def time_of_step(self, step: Tensor) -> Tensor:
        """(step + 1) / steps."""
        return (step + 1) / self.steps

    def step_of_time(self, t: Time) -> Tensor:
        """t steps - 1, not rounded: what a network trained in steps is told."""
        return as_time(t) * self.steps - 1

    def beta(self, t: Time) -> Tensor:
        t, table = self._table(t)
        index, _ = self._position(t)
        return (self.steps * (table[index + 1] - table[index])).to(t.dtype)

    def integral(self, t: Time) -> Tensor:
        t, table = self._table(t)
        index, part = self._position(t)
        return (table[index] + part * (table[index + 1] - table[index])).to(t.dtype)

    def time_of_integral(self, integral: Tensor) -> Tensor:
        _, table = self._table(integral)
        value = integral.double()
        index = (torch.searchsorted(table, value, right=True) - 1).clamp(0, self.steps - 1)
        part = (value - table[index]) / (table[index + 1] - table[index])
        return ((index + part) / self.steps).to(integral.dtype)

    def _position(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The step that a time lies in, and how far into it, in float64."""
        place = t.double() * self.steps
        index = place.floor().clamp(0, self.steps - 1)
        return index.long(), place - index

    def _table(self, t: Time) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        return t, _integrals(self, t.device)


@functools.lru_cache(maxsize=16)
def _integrals(process: DDPM, device: torch.device) -> Tensor:
    """B at the times 0, 1 / steps, ..., 1: float64 (steps + 1,)."""
    betas = step_betas(process).to(device)
    return torch.cat([betas.new_zeros(1), -torch.log1p(-betas).cumsum(0)])


def step_betas(process: DDPM) -> Tensor:
    """beta of each step, float64 (steps,)."""
    start, end, steps = process.beta_start, process.beta_end, process.steps
    if process.schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if process.schedule == "scaled-linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
    edges = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = torch.cos((edges + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last bit; torch's own is cut off at 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


_KINDS: dict[str, type[VP] | type[SubVP] | type[VE] | type[DDPM]] = {k.kind: k for k in (VP, SubVP, VE, DDPM)}


def to_header(process: Process) -> dict[str, Any]:
    """A process as JSON: its kind and its constants."""
    if not isinstance(process, (VP, SubVP, VE, DDPM)):
        raise ModelError(f"a {type(process).__name__} cannot be written to a checkpoint")
    return {"kind": process.kind, **asdict(process)}


def from_header(header: Mapping[str, Any]) -> Process:
    """The process that `to_header` described.

    Raises:
        ModelError: unknown kind, unknown or impossible constants; one line.
    """
    constants = dict(header)
    name = str(constants.pop("kind", "vp"))
    if name not in _KINDS:
        raise ModelError(f"no process '{name}'{did_you_mean(name, list(_KINDS))} (there are: {', '.join(_KINDS)})")
    kind = _KINDS[name]
    known = [field.name for field in fields(kind)]
    for constant in constants:
        if constant not in known:
            near = did_you_mean(constant, known)
            raise ModelError(f"process {name} has no constant '{constant}'{near} (it has {', '.join(known)})")
    return kind(**constants)
