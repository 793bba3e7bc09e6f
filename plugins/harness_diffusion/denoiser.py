"""A network, a process and what the network predicts, as one thing that answers every question about noisy data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness_diffusion.networks import Condition
from harness_diffusion.processes import Process, Time, as_time, per_sample

if TYPE_CHECKING:
    from harness_diffusion.options import Parameterisation


class Denoiser(nn.Module):
    """Predicts, of noisy data x(t) = alpha x(0) + sigma noise, what they were made of. All on the scale [-1, 1].

    Every method takes `x` (B, C, H, W), a time `t`, (B,) or scalar in (0, 1], and classes `y`, int64 (B,); without
    classes it is the null class, where there is one. All are differentiable, twice too, in `x`.

    Attributes:
        network: as in `harness_diffusion.networks`; it sees x(t) divided by sqrt(alpha^2 + sigma^2).
        parameterisation: what it returns: "eps", the noise; "x0", the data; or "v", alpha noise - sigma data divided by
            sqrt(alpha^2 + sigma^2) (Salimans & Ho 2022, *Progressive Distillation*, where that is 1).
        num_classes: the null class not counted; 0 for a network that is told no class.
        null_class: whether the network knows a class for none; its number is `num_classes`.
        smallest_time: where the times trained on begin; below it answers are extrapolated.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        parameterisation: Parameterisation,
        num_classes: int,
        null_class: bool,
        smallest_time: float | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.parameterisation = parameterisation
        self.num_classes = num_classes
        self.null_class = null_class and num_classes > 0
        self.smallest_time = process.smallest_time if smallest_time is None else smallest_time

    def noise(self, x: Tensor, t: Time, y: Tensor | None = None) -> Tensor:
        """The noise in x(t), as expected given x(t): eps-prediction."""
        alpha, sigma, scale = self._coefficients(x, t)
        out = self._ask(x, t, y, scale)
        if self.parameterisation == "eps":
            return out
        if self.parameterisation == "x0":
            return (x - alpha * out) / sigma
        return (sigma * x / scale + alpha * out) / scale

    def clean(self, x: Tensor, t: Time, y: Tensor | None = None) -> Tensor:
        """The data behind x(t), as expected given x(t): x0-prediction."""
        alpha, sigma, scale = self._coefficients(x, t)
        out = self._ask(x, t, y, scale)
        if self.parameterisation == "x0":
            return out
        if self.parameterisation == "eps":
            return (x - sigma * out) / alpha
        return (alpha * x / scale - sigma * out) / scale

    def velocity(self, x: Tensor, t: Time, y: Tensor | None = None) -> Tensor:
        """v-prediction, as defined above."""
        alpha, sigma, scale = self._coefficients(x, t)
        out = self._ask(x, t, y, scale)
        if self.parameterisation == "v":
            return out
        if self.parameterisation == "eps":
            return (scale**2 * out - sigma * x) / (alpha * scale)
        return (alpha * x - scale**2 * out) / (sigma * scale)

    def score(self, x: Tensor, t: Time, y: Tensor | None = None) -> Tensor:
        """The gradient of log p(x(t) | y) with respect to x(t): -noise / sigma."""
        return -self.noise(x, t, y) / per_sample(self.process.std(as_time(t, x)), x)

    def forward(self, x: Tensor, t: Time, y: Tensor | None = None) -> Tensor:
        """The same as `noise`."""
        return self.noise(x, t, y)

    def _coefficients(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and the root of their squares' sum, shaped like `x`."""
        t = as_time(t, x)
        alpha, sigma = self.process.mean_coefficient(t), self.process.std(t)
        scale = (alpha.square() + sigma.square()).sqrt()
        return per_sample(alpha, x), per_sample(sigma, x), per_sample(scale, x)

    def _ask(self, x: Tensor, t: Time, y: Tensor | None, scale: Tensor) -> Tensor:
        time = as_time(t, x).expand(x.shape[0])
        weight = next(self.network.parameters(), None)
        dtype = x.dtype if weight is None else weight.dtype  # a solver's state may be finer than the network
        condition = Condition(time.to(dtype), self.process.log_snr(time).to(dtype))
        out: Tensor = self.network((x / scale).to(dtype), condition, self._labels(x, y))
        return out.to(x.dtype)

    def _labels(self, x: Tensor, y: Tensor | None) -> Tensor | None:
        if self.num_classes == 0:
            return None
        if y is not None:
            return y
        if not self.null_class:
            raise ModelError("the denoiser has no null class: it cannot be asked without a class")
        return torch.full((x.shape[0],), self.num_classes, dtype=torch.int64, device=x.device)
