"""How APGD moves in each norm: from an image along a gradient, each sample with a step size of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from harness_attacks.balls import L2Ball, LinfBall, balls_around, lengths, peaks
from harness_attacks.l1 import L1Ball, project_l1

if TYPE_CHECKING:
    from torch import Tensor

    from harness.threats import Norm

_MOMENTUM = 0.75  # the share of the new direction (Croce & Hein 2020, section 3.1)
_SPARSER = 1.5  # how many fewer entries a step moves than the best perturbation has (Croce & Hein 2021, section 4.2)
_FIRST_SHARE = 0.2  # of the entries, which the first steps from a random start move
_SMALLEST = 0.1  # of eps, the smallest l1 step


class Moves(Protocol):
    """The moves of n samples.

    Attributes:
        size: (n, 1, 1, 1), the step sizes.
    """

    size: Tensor

    def __getitem__(self, index: Tensor) -> Moves:
        """Those at `index` (int64)."""
        ...

    def next(self, x: Tensor, before: Tensor, gradient: Tensor, first: bool) -> Tensor:
        """The next images (n, C, H, W), in ball and box; `before` are the images before `x`."""
        ...


@dataclass
class StraightMoves:
    """Steps in l-inf and l2 with momentum; half as long after `halve`.

    x' = P(x + a (P(x + size * direction) - x) + (1 - a) (x - before)), a = 0.75, and 1 in the first step.
    """

    ball: LinfBall | L2Ball
    size: Tensor

    def __getitem__(self, index: Tensor) -> StraightMoves:
        return StraightMoves(self.ball[index], self.size.index_select(0, index))

    def next(self, x: Tensor, before: Tensor, gradient: Tensor, first: bool) -> Tensor:
        direction = gradient.sign() if isinstance(self.ball, LinfBall) else _unit(gradient)
        ahead = into(self.ball, direction.mul_(self.size).add_(x))
        if first:
            return ahead
        return into(self.ball, x.lerp(ahead, _MOMENTUM).add_(x - before, alpha=1 - _MOMENTUM))

    def halve(self, those: Tensor) -> None:
        """Halve the steps of `those` (n,)."""
        import torch

        self.size = torch.where(those[:, None, None, None], self.size / 2, self.size)


@dataclass
class SparseMoves:
    """Steps in l1 that move as many entries, all equally far, as the best perturbation found so far suggests.

    Attributes:
        share: (n,), the share of the entries that a step moves.
        support: int64 (n,), how many entries the best perturbation had at the last check.
    """

    ball: L1Ball
    size: Tensor
    share: Tensor
    support: Tensor

    def __getitem__(self, index: Tensor) -> SparseMoves:
        rest = (t.index_select(0, index) for t in (self.size, self.share, self.support))
        return SparseMoves(self.ball[index], *rest)

    def next(self, x: Tensor, before: Tensor, gradient: Tensor, first: bool) -> Tensor:  # noqa: ARG002 - no momentum
        flat = gradient.flatten(1)
        entries = flat.shape[1]
        strength = flat.abs()
        kept = (self.share * entries).ceil().long().clamp(1, entries)
        threshold = strength.sort(dim=1)[0].gather(1, (entries - kept)[:, None])
        direction = flat.sign().mul_(strength >= threshold)
        direction.div_(direction.abs().sum(dim=1, keepdim=True).clamp_min_(1.0))
        return project_l1(direction.reshape(x.shape).mul_(self.size).add_(x), self.ball.centre, self.ball.eps)

    def adapt(self, best: Tensor) -> Tensor:
        """Set share and size by how the best images' support has changed; bool (n,), who starts from its best again.

        (Croce & Hein 2021, section 4.2: where the support shrinks by 5 %, large steps again; else smaller ones.)
        """
        import torch

        support = (best != self.ball.centre).flatten(1).sum(dim=1)
        shrunk = support < 0.95 * self.support
        self.share = support / best[0].numel() / _SPARSER
        smaller = (self.size / _SPARSER).clamp_min_(_SMALLEST * self.ball.eps)
        self.size = torch.where(shrunk[:, None, None, None], self.ball.eps, smaller)
        self.support = support
        return shrunk


def moves_around(centre: Tensor, x: Tensor | None, norm: Norm, eps: float) -> StraightMoves | SparseMoves:
    """The moves in the balls of radius `eps` around `centre` (n, C, H, W): 2 eps long at first, eps in l1.

    `x` are the images that the attack begins from; None if they are random.
    """
    import torch

    ball = balls_around(centre, norm, eps)
    size = centre.new_full((len(centre), 1, 1, 1), 2 * eps)
    if isinstance(ball, (LinfBall, L2Ball)):
        return StraightMoves(ball, size)
    assert isinstance(ball, L1Ball)
    entries = centre[0].numel()
    if x is None:
        support = torch.full((len(centre),), entries, dtype=torch.int64, device=centre.device)
        return SparseMoves(ball, size / 2, support.new_full(support.shape, _FIRST_SHARE, dtype=centre.dtype), support)
    support = (x != centre).flatten(1).sum(dim=1)
    return SparseMoves(ball, size / 2, support / entries / _SPARSER, support)


def into(ball: LinfBall | L2Ball, x: Tensor) -> Tensor:
    """`x` itself, moved into ball and box."""
    return x.clamp_(ball.lower, ball.upper) if isinstance(ball, LinfBall) else ball._project_(x)


def _unit(gradient: Tensor) -> Tensor:
    """Gradients of Euclidean norm 1, or 0."""
    # Divided by the largest entry first: the square of a gradient of 1e-30 is no float32.
    direction = gradient / peaks(gradient).clamp_min_(1e-38)[:, None, None, None]
    return direction.div_(lengths(direction).clamp_min_(0.5)[:, None, None, None])
