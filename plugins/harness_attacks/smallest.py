"""The smallest perturbation found of each sample: the bookkeeping that minimal-norm attacks share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness_attacks.attacked import GradientCounts
from harness_attacks.losses import margin_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws

# An image at the very boundary may fall on either side of it in another batch, whose sums round otherwise. What is kept
# is wrong by this share of the spread of its logits, which costs as much of the norm.
_CLEAR = 1e-5
# An image of a random model is kept if it fools on 8 of 10 fresh draws, and handed out if on 16 of 20 further ones; the
# host then finds more than half of its own ten draws fooled for 98 % of such images, and for 85 % of those at 70 %.
CONFIRMING_DRAWS = 10
_SETTLING_DRAWS = 20
CONFIRMED_SHARE = 0.8
_GROWTH = 1.03
_GROWTHS = 25


@dataclass
class Kept(GradientCounts):
    """The best image met of each sample of a batch.

    Attributes:
        images: (B, C, H, W); the clean image where `level` is 0.
        level: int64 (B,): 0 nothing found, 1 misclassified, 2 the attack's own goal reached (a target, a confidence).
        cost: float64 (B,), what the attack makes small; infinite at level 0. A higher level beats a smaller cost.
    """

    images: Tensor
    level: Tensor
    cost: Tensor

    @classmethod
    def before(cls, x: Tensor) -> Kept:
        """Nothing is known yet."""
        import torch

        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        cost = torch.full_like(count, float("inf"), dtype=torch.float64)
        return cls(**cls.none(x), images=x.clone(), level=count, cost=cost)

    def improves(self, rows: Tensor, level: Tensor, cost: Tensor) -> Tensor:
        """bool (n,), whether images of these rows, levels and costs are better than those kept."""
        known, least = self.level[rows], self.cost[rows]
        return (level > known) | ((level == known) & (level > 0) & (cost < least))

    def keep(self, rows: Tensor, images: Tensor, level: Tensor, cost: Tensor) -> None:
        """Keep the images (n, C, H, W) as the best of these rows."""
        self.images.index_copy_(0, rows, images)
        self.level.index_copy_(0, rows, level)
        self.cost.index_copy_(0, rows, cost)

    def checked(self, gradient: Tensor, rows: Tensor) -> Tensor:
        """As `GradientCounts.checked`; each gradient is counted as well."""
        self.gradient_steps[rows] += 1
        return super().checked(gradient, rows)


def clearance(logits: Tensor) -> Tensor:
    """float64 (n,): by how much another logit must exceed the label's for an image (its logits: n, K) to be kept.

    A share of the spread of the finite logits, so that their scale does not matter, and the resolution of their type,
    which does where they are log-likelihoods of thousands of nats in float32.
    """
    import torch

    exact = logits.detach().double()
    known = exact.isfinite()
    top = exact.masked_fill(~known, float("-inf")).amax(dim=1)
    bottom = exact.masked_fill(~known, float("inf")).amin(dim=1)
    resolution = 4 * torch.finfo(logits.dtype).eps
    return _CLEAR * (top - bottom) + resolution * torch.maximum(top.abs(), bottom.abs())


def share_fooled(model: ModelView, x: Tensor, labels: Tensor, draws: Draws, numbers: Iterable[int]) -> Tensor:
    """float64 (n,): on which share of these draws a random model misclassifies `x` (n, C, H, W)."""
    import torch

    fooled = []
    with torch.no_grad():
        for number in numbers:
            fooled.append(margin_of(model.logits(x, draws.numbered(number)), labels) > 0)
    return torch.stack(fooled).double().mean(dim=0)


def confirmed(model: ModelView, x: Tensor, labels: Tensor, draws: Draws, number: int) -> Tensor:
    """bool (n,): whether a random model is fooled on most of ten fresh draws, numbered from `number`."""
    numbers = range(number, number + CONFIRMING_DRAWS)
    return share_fooled(model, x, labels, draws, numbers) >= CONFIRMED_SHARE


def settle(model: ModelView, x: Tensor, labels: Tensor, draws: Draws, kept: Kept, number: int) -> None:
    """Let no image of a random model be handed out that owes its place to luck.

    An image chosen as the smallest of many confirmed ones is likelier than not one whose draws were lucky. Each is
    judged on 20 draws that the search never saw, numbered from `number`; where it fools on fewer than 16, its
    perturbation grows by 3 %, 25 times at most, and is judged afresh. One that never does is given up.

    Args:
        x, labels, draws: the whole batch.
    """
    rows = (kept.level > 0).nonzero()[:, 0]
    for growth in range(_GROWTHS + 1):
        if not len(rows):
            return
        first = number + growth * _SETTLING_DRAWS
        images = kept.images[rows]
        share = share_fooled(model, images, labels[rows], draws[rows], range(first, first + _SETTLING_DRAWS))
        failing = share < CONFIRMED_SHARE
        rows, images = rows[failing], images[failing]
        clean = x[rows]
        kept.images[rows] = clean.lerp(images, _GROWTH).clamp_(0.0, 1.0)
    kept.images[rows] = x[rows]
    kept.level[rows] = 0
    kept.cost[rows] = float("inf")
