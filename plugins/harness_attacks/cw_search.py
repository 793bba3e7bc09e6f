"""The parts of a Carlini-Wagner attack that each sample has for itself: its box, its Adam, its weight c."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_FACTOR = 10.0  # between weights until the goal was once reached and once missed


@dataclass(frozen=True)
class Box:
    """x = (1 + stretch * tanh(w)) / 2 maps w in [-limit, limit] into [0, 1]; pixels beyond `inner` start at it.

    Attributes:
        stretch: 1 for the plain tanh.
        inner: the largest tanh(w) that a walk starts from.
    """

    stretch: float
    inner: float

    @classmethod
    def stretched(cls) -> Box:
        """0 and 1 are at tanh(w) = -+ 1 / 1.1, where the slope is a sixth of that in the middle."""
        return cls(1.1, 1 / 1.1)

    @classmethod
    def plain(cls) -> Box:
        """The tanh as it is. 0 and 1 would be infinitely far, so w starts half a grey level of 255 inside."""
        return cls(1.0, 1 - 1 / 255)

    def inverse(self, x: Tensor) -> Tensor:
        """w of images in [0, 1]."""
        return ((2 * x - 1) / self.stretch).clamp(-self.inner, self.inner).atanh()

    def limit(self) -> float:
        """The largest w allowed; infinite for the plain tanh."""
        return math.atanh(1 / self.stretch) if self.stretch > 1 else math.inf


@dataclass
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) on w, for n samples that may be at different steps.

    Attributes:
        w, w0: (n, C, H, W), now and at the clean image.
        mean, square: (n, C, H, W), the moments m and v.
        taken: int64 (n,), steps taken since the (re)start.
    """

    box: Box
    rate: float
    x0: Tensor
    w0: Tensor
    w: Tensor
    mean: Tensor
    square: Tensor
    taken: Tensor

    @classmethod
    def start(cls, box: Box, x0: Tensor, rate: float) -> Adam:
        """At the images `x0` (n, C, H, W)."""
        import torch

        w0 = box.inverse(x0)
        taken = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
        return cls(box, rate, x0, w0, w0.clone(), torch.zeros_like(x0), torch.zeros_like(x0), taken)

    def only(self, index: Tensor) -> Adam:
        """Those at `index` (int64)."""
        names = ("x0", "w0", "w", "mean", "square", "taken")
        return Adam(self.box, self.rate, **{name: getattr(self, name).index_select(0, index) for name in names})

    def restart_(self, done: Tensor) -> None:
        """Back to the clean image where `done` (n,) holds."""
        index = done.nonzero()[:, 0]
        self.w[index] = self.w0[index]
        self.mean[index] = 0.0
        self.square[index] = 0.0
        self.taken[index] = 0

    def image(self) -> Tensor:
        """The images (n, C, H, W); a pixel whose w has not moved is exactly that of the clean image."""
        import torch

        x = (0.5 + 0.5 * self.box.stretch * self.w.tanh()).clamp_(0.0, 1.0)
        return x if self.box.stretch == 1 else torch.where(self.w == self.w0, self.x0, x)

    def step_(self, gradient: Tensor) -> None:
        """One step down the gradient (n, C, H, W) with respect to the image."""
        slope = 0.5 * self.box.stretch * (1 - self.w.tanh().square())
        gradient = gradient * slope
        self.taken += 1
        self.mean.lerp_(gradient, 1 - _BETAS[0])
        self.square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        first, second = ((1 - beta ** self.taken.double()).to(gradient.dtype)[:, None, None, None] for beta in _BETAS)
        self.w -= self.rate * (self.mean / first) / ((self.square / second).sqrt() + _EPSILON)
        limit = self.box.limit()
        if math.isfinite(limit):
            self.w.clamp_(-limit, limit)


@dataclass
class WeightSearch:
    """Binary search of each sample for the smallest c that reaches the goal, on a logarithmic scale.

    Attributes:
        weight: float64 (n,), the c in use.
        low, high: float64 (n,), the largest c that failed (0 before) and the smallest that did not (infinite before).
        left: int64 (n,), values of c still to be tried, the present one included.
    """

    weight: Tensor
    low: Tensor
    high: Tensor
    left: Tensor

    @classmethod
    def start(cls, n: int, weight: float, tries: int, device: torch.device) -> WeightSearch:
        import torch

        first = torch.full((n,), weight, dtype=torch.float64, device=device)
        left = torch.full((n,), tries, dtype=torch.int64, device=device)
        return cls(first, torch.zeros_like(first), torch.full_like(first, float("inf")), left)

    def only(self, index: Tensor) -> WeightSearch:
        """Those at `index` (int64)."""
        return WeightSearch(*(t.index_select(0, index) for t in (self.weight, self.low, self.high, self.left)))

    def next_(self, done: Tensor, reached: Tensor) -> None:
        """Choose the next c where `done` (n,) holds, by whether the present one `reached` (n,) the goal."""
        import torch

        self.high = torch.where(done & reached, self.weight.minimum(self.high), self.high)
        self.low = torch.where(done & ~reached, self.weight.maximum(self.low), self.low)
        between = (self.low * self.high).sqrt()
        between = torch.where(self.low == 0, self.high / _FACTOR, between)
        between = torch.where(self.high.isinf(), self.low * _FACTOR, between)
        self.weight = torch.where(done, between, self.weight)
        self.left -= done.long()
