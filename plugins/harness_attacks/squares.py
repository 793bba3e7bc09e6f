"""What Square Attack tries: where it starts, and how a window of an image changes, in each norm.

(Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 2 and 3.) Windows are drawn for each sample from its own
stream; the side is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness_attacks.balls import LinfBall

_AT_ONCE = 64  # queries whose random numbers are drawn together: drawing costs the same for one as for many


class Proposals(Protocol):
    """The changes tried on n samples."""

    def __getitem__(self, index: Tensor) -> Proposals:
        """Those of the samples at `index` (int64)."""
        ...

    def start(self) -> Tensor:
        """The first images, (n, C, H, W)."""
        ...

    def next(self, x: Tensor, query: int, side: int) -> Tensor:
        """New images to try in place of `x` (n, C, H, W), changed in a window of `side` pixels; `query` from 0."""
        ...


@dataclass
class _Numbers:
    """Random 32-bit numbers, `count` for each sample and query, drawn for many queries at a time."""

    draws: Draws
    count: int
    block: int = -1
    drawn: Tensor | None = None

    def __getitem__(self, index: Tensor) -> _Numbers:
        drawn = None if self.drawn is None else self.drawn.index_select(0, index)
        return _Numbers(self.draws[index], self.count, self.block, drawn)

    def at(self, query: int) -> Tensor:
        """int64 (n, count)."""
        block, place = divmod(query, _AT_ONCE)
        if self.drawn is None or block != self.block:
            self.drawn = self.draws.bits("square", block, (_AT_ONCE, self.count))
            self.block = block
        return self.drawn[:, place]


def _corner(bits: Tensor, size: int, side: int) -> Tensor:
    """Where windows of `side` pixels begin along an axis of `size`, int64 (n, 1): uniform on all places."""
    return (bits * (size - side + 1) >> 32)[:, None]


def _sign(bits: Tensor, x: Tensor) -> Tensor:
    """-1 or 1, of the type of `x`."""
    return (bits >> 31).to(x.dtype).mul_(2).sub_(1)


@dataclass
class StripeProposals:
    """l-inf: every pixel is at an end of its range; vertical stripes at first, then squares of one sign a channel."""

    ball: LinfBall
    draws: Draws
    numbers: _Numbers = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = _Numbers(self.draws, 2 + self.ball.lower.shape[1])

    def __getitem__(self, index: Tensor) -> StripeProposals:
        chosen = StripeProposals(self.ball[index], self.draws[index])
        chosen.numbers = self.numbers[index]
        return chosen

    def start(self) -> Tensor:
        import torch

        lower, upper = self.ball.lower, self.ball.upper
        up = self.draws.bits("start", 0, (lower.shape[1], 1, lower.shape[3])) >> 31
        return torch.where(up.bool(), upper, lower)

    def next(self, x: Tensor, query: int, side: int) -> Tensor:
        import torch

        height, width = x.shape[2:]
        numbers = self.numbers.at(query)
        top, left = _corner(numbers[:, 0], height, side), _corner(numbers[:, 1], width, side)
        down = torch.arange(height, device=x.device) - top
        along = torch.arange(width, device=x.device) - left
        rows, columns = (down >= 0) & (down < side), (along >= 0) & (along < side)
        window = (rows[:, :, None] & columns[:, None, :])[:, None]
        up = (numbers[:, 2:] >> 31).bool()[:, :, None, None]
        return torch.where(window, torch.where(up, self.ball.upper, self.ball.lower), x)


@dataclass
class SparseProposals:
    """l2 and l1: the perturbation is a sum of bumps, and the budget wanders from one window to another.

    A window takes over what the norm of itself and of a second window was, and what the whole perturbation has left of
    the budget; the second window is emptied. Its new content is a bump of random orientation and sign, plus what was
    there, both at norm 1.
    """

    centre: Tensor
    power: Literal[1, 2]
    eps: float
    draws: Draws
    numbers: _Numbers = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = _Numbers(self.draws, 5 + self.centre.shape[1])

    def __getitem__(self, index: Tensor) -> SparseProposals:
        chosen = SparseProposals(self.centre.index_select(0, index), self.power, self.eps, self.draws[index])
        chosen.numbers = self.numbers[index]
        return chosen

    def start(self) -> Tensor:
        """Five by five bumps, or as many as there is room for."""
        import torch

        n, channels, height, width = self.centre.shape
        side = max(min(height, width) // 5, 1)
        down, along = height // side, width // side
        turned = (self.draws.bits("turn", 0, (1, down, along)) >> 31)[..., None, None]
        sign = _sign(self.draws.bits("start", 0, (channels, down, along)), self.centre)[..., None, None]
        upright, flat = (bump.to(self.centre) for bump in bumps(side, self.power))
        tiles = torch.where(turned.bool(), flat, upright) * sign
        grid = tiles.permute(0, 1, 2, 4, 3, 5).reshape(n, channels, down * side, along * side)
        top, left = (height - down * side) // 2, (width - along * side) // 2
        rest = (left, width - along * side - left, top, height - down * side - top)
        return self._inside(torch.nn.functional.pad(grid, rest))

    def next(self, x: Tensor, query: int, side: int) -> Tensor:
        import torch

        channels, height, width = x.shape[1:]
        side = min(max(side, 3) // 2 * 2 + 1, height, width)
        numbers = self.numbers.at(query)
        here, there = (
            _window(_corner(numbers[:, k], height, side), _corner(numbers[:, k + 1], width, side), side, width)
            for k in (0, 2)
        )
        change = (x - self.centre).flatten(2)
        total = self._norm(change.flatten(1))[:, None, None]
        either = torch.zeros_like(change[:, 0]).scatter_(1, here, 1.0).scatter_(1, there, 1.0)[:, None]
        freed = self._norm(change * either)[:, :, None]
        here = here[:, None].expand(-1, channels, -1)
        old = change.gather(2, here)
        upright, flat = (bump.to(x).flatten() for bump in bumps(side, self.power))
        bump = torch.where((numbers[:, 4:5] >> 31).bool(), flat, upright)
        new = bump[:, None] * _sign(numbers[:, 5:], x)[:, :, None]
        new.add_(old / self._norm(old)[:, :, None].clamp_min_(1e-12))
        new.div_(self._norm(new)[:, :, None].clamp_min_(1e-12)).mul_(self._budget(total, freed, channels))
        change.scatter_(2, there[:, None].expand(-1, channels, -1), 0.0).scatter_(2, here, new)
        return self._inside(change.reshape(x.shape))

    def _norm(self, x: Tensor) -> Tensor:
        """Over the last dimension."""
        import torch

        norm: Tensor = torch.linalg.vector_norm(x, ord=self.power, dim=-1)
        return norm

    def _budget(self, total: Tensor, freed: Tensor, channels: int) -> Tensor:
        """The norm of a window's new content in each channel, (n, C, 1): what was freed and its share of the rest."""
        if self.power == 2:
            return freed.square().add_((self.eps**2 - total.square()).clamp_min_(0.0) / channels).sqrt_()
        # More than there is room for: the projection takes what is too much from all entries alike.
        return freed.mul(channels).add_((self.eps - total).clamp_min_(0.0))

    def _inside(self, change: Tensor) -> Tensor:
        """Images with these perturbations: in l2 scaled to the full budget, in l1 projected; then in the box."""
        from harness_attacks.l1 import project_l1

        if self.power == 1:
            return project_l1(self.centre + change, self.centre, self.eps)
        norm = self._norm(change.flatten(1)).clamp_min_(1e-12)
        inside = self.eps * (1 - 1e-6)
        return (change * (inside / norm)[:, None, None, None]).add_(self.centre).clamp_(0.0, 1.0)


def _window(top: Tensor, left: Tensor, side: int, width: int) -> Tensor:
    """Flat pixel indices (n, side * side) of windows with these corners (n, 1) in images `width` pixels wide."""
    import torch

    span = torch.arange(side, device=top.device)
    return ((top + span)[:, :, None] * width + (left + span)[:, None, :]).flatten(1)


@lru_cache
def bumps(side: int, power: int) -> tuple[Tensor, Tensor]:
    """A positive and a negative half of norm 1 together, (side, side): one above the other, and side by side.

    Each half falls off from its middle with the distance, as sums of 1 / k^2 (in l1 1 / k^4).
    """
    import torch

    upper = side // 2
    bump = torch.cat([_hill(upper, side, power), -_hill(side - upper, side, power)])
    bump /= torch.linalg.vector_norm(bump, ord=power)
    return bump, bump.T.contiguous()


def _hill(height: int, width: int, power: int) -> Tensor:
    """(height, width) of norm 1: at distance m (of king's moves) from the middle, the sum of 1 / k^(2 or 4), k > m."""
    import torch

    if height == 0:
        return torch.zeros(0, width)
    top = max(height // 2, width // 2) + 1
    terms = torch.arange(1, top + 1, dtype=torch.float64) ** (-2 if power == 2 else -4)
    tails = terms.flip(0).cumsum(0).flip(0)
    down = (torch.arange(height) - height // 2).abs()[:, None]
    along = (torch.arange(width) - width // 2).abs()[None, :]
    hill = tails[torch.maximum(down, along)]
    hill /= torch.linalg.vector_norm(hill, ord=power)
    return hill.float()
