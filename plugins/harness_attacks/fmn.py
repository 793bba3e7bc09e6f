"""Fast minimum-norm search: Pintor et al. 2021 (arXiv 2102.12827), algorithm 1, with three changes said below."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.judge import norm_of
from harness.threats import Norm
from harness_attacks.balls import lengths, peaks

if TYPE_CHECKING:
    from torch import Tensor

# Step length in units of the radius (alpha) and relative change of the radius (gamma): at the first and the last step.
_ALPHA: dict[Norm, tuple[float, float]] = {"linf": (1.0, 0.01), "l2": (1.0, 0.01), "l1": (0.15, 0.005)}
_GAMMA = (0.05, 0.001)


@dataclass
class Search:
    """The walk of n samples: each step follows the gradient inside a ball that shrinks while the image fools.

    Changes against the paper. Steps are measured in radii, not in pixel values, so that nothing depends on the scale of
    the data. The gradient's components that point out of the box [0, 1] are dropped, or pixels at 0 and 1 would use up
    the budget of the l1 norm and hide how far the boundary is. In l-inf every other step follows the gradient's sign:
    the gradient itself is better at the end, its sign where the boundary is far.

    Attributes:
        x0: (n, C, H, W), the clean images.
        x: the images now, of their shape.
        radius: float64 (n,), of the ball (epsilon in the paper).
        least: float64 (n,), the smallest norm at which an image fooled in this walk, or before it.
        fooled: bool (n,), whether one has in this walk.
    """

    norm: Norm
    steps: int
    x0: Tensor
    x: Tensor
    radius: Tensor
    least: Tensor
    fooled: Tensor

    @classmethod
    def start(cls, x0: Tensor, x: Tensor, least: Tensor, norm: Norm, steps: int) -> Search:
        """A walk from `x`; `least` (n,) is the smallest norm known, infinite where there is none."""
        import torch

        fooled = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        return cls(norm, steps, x0, x, norm_of(x - x0, norm), least.clone(), fooled)

    def step(self, number: int, gradient: Tensor, fools: Tensor, short: Tensor) -> None:
        """Move on from the image `x`.

        Args:
            number: of the step, from 0.
            gradient: (n, C, H, W), finite, of what grows as the boundary comes nearer.
            fools: bool (n,), whether `x` fools the model.
            short: float64 (n,), by how much it does not, in the units of the gradient; 0 or less where it fools.
        """
        import torch

        gradient = self._inside_the_box(gradient)
        share = 0.5 * (1 + math.cos(math.pi * number / self.steps))
        alpha, gamma = (low + (high - low) * share for high, low in (_ALPHA[self.norm], _GAMMA))
        size = norm_of(self.x - self.x0, self.norm)
        self.least = torch.where(fools, torch.minimum(self.least, size), self.least)
        self.fooled |= fools
        # To first order the boundary is short / dual norm away.
        first = size + short.clamp_min(0.0) / self._dual(gradient)
        outwards = torch.where(self.fooled, self.radius * (1 + gamma), first.nan_to_num(posinf=0.0).clamp_max(1e30))
        self.radius = torch.where(fools, torch.minimum(self.radius * (1 - gamma), self.least), outwards)
        self.radius.clamp_max_(self._diameter())
        self._move(gradient, alpha * self.radius, number)

    def _inside_the_box(self, gradient: Tensor) -> Tensor:
        stuck = ((self.x <= 0) & (gradient < 0)) | ((self.x >= 1) & (gradient > 0))
        return gradient.masked_fill(stuck, 0.0)

    def _dual(self, gradient: Tensor) -> Tensor:
        dual: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
        return norm_of(gradient, dual[self.norm]).clamp_min(1e-300)

    def _diameter(self) -> float:
        entries = self.x0[0].numel()
        return {"linf": 1.0, "l2": math.sqrt(entries), "l1": float(entries)}[self.norm]

    def _move(self, gradient: Tensor, length: Tensor, number: int) -> None:
        if self.norm == "linf" and number % 2:
            direction = gradient.sign()
        else:
            # Divided by its largest entry first: the square of a gradient of 1e-30 is no float32.
            direction = gradient / peaks(gradient).clamp_min(1e-38)[:, None, None, None]
            direction /= lengths(direction).clamp_min(0.5)[:, None, None, None]
        moved = self.x + direction * length.to(direction.dtype)[:, None, None, None]
        perturbation = projected(moved - self.x0, self.radius.to(direction.dtype), self.norm)
        self.x = (self.x0 + perturbation).clamp_(0.0, 1.0)


def projected(difference: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """The nearest points (n, C, H, W) of the balls of `radius` (n,) around 0, by Euclidean distance."""
    wide = radius[:, None, None, None]
    if norm == "linf":
        return difference.clamp(-wide, wide)
    if norm == "l2":
        return difference * (radius / lengths(difference).clamp_min(1e-38)).clamp_max(1.0)[:, None, None, None]
    return _projected_l1(difference, radius)


def _projected_l1(difference: Tensor, radius: Tensor) -> Tensor:
    """Soft thresholding (Duchi et al. 2008, figure 1): the threshold at which what is left has the length `radius`."""
    import torch

    size = difference.abs().flatten(1)
    ordered = size.sort(dim=1, descending=True).values
    excess = ordered.cumsum(dim=1) - radius[:, None]
    count = torch.arange(1, size.shape[1] + 1, device=size.device)
    last = (ordered * count > excess).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = (excess.gather(1, last - 1) / last).clamp_min(0.0)
    # Inside the ball already: the excess of all entries is not positive.
    threshold = threshold.masked_fill(excess[:, -1:] <= 0, 0.0)
    return difference.sign() * (size - threshold).clamp_min(0.0).view_as(difference)
