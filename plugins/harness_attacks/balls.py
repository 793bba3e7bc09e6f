"""The sets that attacks move in: the ball of a norm around each image, cut with the box [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness.threats import Norm

# A step in l2 lands this much inside the ball, relatively, so that rounding the image to float32 cannot leave it.
_INSIDE = 1 - 1e-6


class Ball(Protocol):
    """Balls of one radius around n images, one each."""

    def __getitem__(self, index: Tensor) -> Ball:
        """Those at `index` (int64)."""
        ...

    def start(self, centre: Tensor, draws: Draws) -> Tensor:
        """Points drawn uniformly from the balls, around the same images again, then clipped to the box: like them."""
        ...

    def step_(self, x: Tensor, gradient: Tensor, size: float) -> None:
        """Move `x` in place: steepest ascent of length `size` in the norm, then back into ball and box.

        `gradient` is finite. Where it is zero the image stays.
        """
        ...


def balls_around(x: Tensor, norm: Norm, eps: float) -> Ball:
    """The balls of radius `eps` around images `x` (n, C, H, W) in [0, 1]."""
    if norm == "l2":
        return L2Ball(x, eps)
    if norm == "l1":
        from harness_attacks.l1 import L1Ball

        return L1Ball(x, eps)
    lower, upper = _bounds(x, eps)
    return LinfBall(lower, upper, eps)


@dataclass(frozen=True)
class LinfBall:
    """Boxes: every pixel within eps of the image's and in [0, 1]."""

    lower: Tensor
    upper: Tensor
    eps: float

    def __getitem__(self, index: Tensor) -> LinfBall:
        return LinfBall(self.lower.index_select(0, index), self.upper.index_select(0, index), self.eps)

    def start(self, centre: Tensor, draws: Draws) -> Tensor:
        noise = draws.uniform("start", 0, centre.shape[1:])
        return noise.mul_(2).sub_(1).mul_(self.eps).add_(centre).clamp_(self.lower, self.upper)

    def step_(self, x: Tensor, gradient: Tensor, size: float) -> None:
        x.add_(gradient.sign(), alpha=size).clamp_(self.lower, self.upper)


@dataclass(frozen=True)
class L2Ball:
    """Euclidean balls, over all entries of an image."""

    centre: Tensor
    eps: float

    def __getitem__(self, index: Tensor) -> L2Ball:
        return L2Ball(self.centre.index_select(0, index), self.eps)

    def start(self, centre: Tensor, draws: Draws) -> Tensor:
        direction = draws.normal("start", 0, centre.shape[1:])
        # A uniform point of a D-ball has radius eps * U^(1/D).
        radius = draws.uniform("radius", 0, ()).double().pow(1.0 / direction[0].numel()).mul(self.eps)
        scale = (radius / lengths(direction)).to(direction.dtype)
        x = direction.mul_(scale[:, None, None, None]).add_(centre)
        return self._project_(x)

    def step_(self, x: Tensor, gradient: Tensor, size: float) -> None:
        # Divided by its largest entry first: the square of a gradient of 1e-30 is no float32.
        direction = gradient / peaks(gradient).clamp_min_(1e-38)[:, None, None, None]
        scale = size / lengths(direction).clamp_min_(0.5)
        x.add_(direction.mul_(scale[:, None, None, None]))
        self._project_(x)

    def _project_(self, x: Tensor) -> Tensor:
        """Scale the perturbation back onto the sphere where it is longer than eps; then clip, which shortens it."""
        x.sub_(self.centre)
        scale = (self.eps * _INSIDE / lengths(x).clamp_min_(1e-38)).clamp_max_(1.0)
        return x.mul_(scale[:, None, None, None]).add_(self.centre).clamp_(0.0, 1.0)


def lengths(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, (n,)."""
    import torch

    norms: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3))
    return norms


def peaks(x: Tensor) -> Tensor:
    """Largest absolute entry of each sample, (n,); not finite where an entry is not."""
    # Six times as fast as vector_norm(ord=inf) on a CPU.
    return x.abs().amax(dim=(1, 2, 3))


def _bounds(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The float32 numbers nearest to x - eps and x + eps that are within eps of x, cut at 0 and 1."""
    import torch

    exact = x.double()
    lower, upper = (exact - eps).to(x.dtype), (exact + eps).to(x.dtype)
    lower = torch.where(exact - lower.double() > eps, torch.nextafter(lower, x), lower)
    upper = torch.where(upper.double() - exact > eps, torch.nextafter(upper, x), upper)
    return lower.clamp_min_(0.0), upper.clamp_max_(1.0)
