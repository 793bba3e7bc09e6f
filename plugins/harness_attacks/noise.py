"""Random noise, the weakest attack there is: one that uses gradients and finds less has failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.options import option
from harness.threats import Batch, Budget, Columns, Norm, ThreatContext
from harness_attacks.ball_options import BallOptions, check_diameter
from harness_attacks.losses import margin_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws


class NoiseOptions(BallOptions):
    """Options of `noise`."""

    images: int = option(20, help="random images tried for each sample, one model call each", ge=1)


class Noise:
    """The best of `images` random points of the ball's surface, by the margin of a wrong class over the label.

    A sample leaves when it is misclassified. For a random model every image meets a draw of its own and all are tried.

    Columns, one row a sample: adversarial (B, C, H, W); the host adds the rest.
    """

    def __init__(self, options: NoiseOptions) -> None:
        self.options = options
        self.eps = float(options.eps)
        self.budget: Budget | None = Budget(options.norm, self.eps)

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        best = batch.x.clone()
        rows = (batch.clean_correct & (self.eps > 0)).nonzero()[:, 0]
        score = torch.full((len(batch.x),), float("-inf"), dtype=torch.float64, device=batch.x.device)
        for number in range(self.options.images):
            if not len(rows):
                break
            draws = batch.draws[rows]
            x = surface_points(batch.x[rows], self.options.norm, self.eps, draws, number)
            with torch.no_grad():
                logits = model.logits(x, draws.numbered(number) if model.stochastic else draws)
            margin = margin_of(logits, batch.y[rows])
            better = margin > score[rows]
            best[rows[better]], score[rows[better]] = x[better], margin[better]
            if not model.stochastic:
                rows = rows[~(margin > 0)]
        return {"adversarial": best}


def surface_points(x: Tensor, norm: Norm, eps: float, draws: Draws, number: int) -> Tensor:
    """Random points on the surface of the balls around `x` (n, C, H, W), pulled into [0, 1].

    l-inf: a corner, every entry moved by eps up or down. l2: a uniform direction. l1: entries in random order are moved
    to one end of [0, 1] or the other until eps is spent.
    """
    import torch

    shape = x.shape[1:]
    if norm == "l2":
        direction = draws.normal("direction", number, shape)
        length = torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True)
        # 1e-6 inside, so that rounding to float32 does not leave the ball.
        moved: Tensor = x + direction * (eps * (1 - 1e-6) / length)
        return moved.clamp(0, 1)
    sign = draws.rademacher("sign", number, shape)
    if norm == "linf":
        return (x + eps * sign).clamp(0, 1)
    reach = torch.where(sign > 0, 1 - x, x).flatten(1).double()
    order = draws.bits("order", number, (reach.shape[1],)).argsort(dim=1)
    ordered = reach.gather(1, order)
    before = ordered.cumsum(dim=1) - ordered
    spent = torch.zeros_like(reach).scatter_(1, order, (eps * (1 - 1e-6) - before).clamp_min(0).minimum(ordered))
    return (x + sign * spent.view_as(x).to(x.dtype)).clamp(0, 1)


def build(options: NoiseOptions, context: ThreatContext) -> Noise:
    """The threat.

    Raises:
        HarnessError: a budget larger than the image space.
    """
    check_diameter("noise", options.norm, options.eps, context.data)
    return Noise(options)
