"""Poisson numbers by inversion: the quantile of a uniform number, looked up instead of searched for.

An 8-bit image has 256 rates, so that all quantiles of one noise strength fit into a table. A quantile is found by a
guess and a fixed number of corrections: the guess depends on the rate and on which bin the uniform number is in, bins
being narrow towards 0 and 1, where the distribution function has its tails.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LEVELS = 256
_UNIT = 2.0**-24
"""Uniform numbers are whole multiples of this (`harness.randomness.Draws.uniform`)."""
_BITS_DROPPED = 19
"""Of the 23 bits after the leading one; the 4 that are left make 16 bins between a power of two and the next."""
_FIRST = (127 - 24) << (23 - _BITS_DROPPED)
"""Leading bits of the float 2^-24, the smallest distance to 0 or 1 beside 0 itself."""
_BINS = (23 << (23 - _BITS_DROPPED)) + 2
"""Bins on one side of 1/2: one for the distance 0, those from 2^-24 on, and one for 1/2 itself."""


def poisson(level: Tensor, uniform: Tensor, photons: float) -> Tensor:
    """Poisson numbers (float32) of rate ``photons * level / 255``: the smallest k with P(X <= k) > u.

    u is `uniform` moved to the middle of its step of 2^-24. A larger u never gives a smaller number.

    Args:
        level: integers, 0 .. 255.
        uniform: float32 of the same shape in [0, 1), multiples of 2^-24.
        photons: rate of the brightest level.
    """
    table = _table(photons, level.device)
    flat = uniform.flatten()
    row = level.flatten().int()
    place = table.guess.index_select(0, _bin(flat).add_(row, alpha=2 * _BINS))
    for _ in range(table.corrections):
        place += flat >= table.steps.index_select(0, place)
    return place.sub_(row, alpha=table.numbers).to(uniform.dtype).view_as(uniform)


def _bin(uniform: Tensor) -> Tensor:
    """int32: 0 .. _BINS - 1 by the distance to 0, or _BINS and above by the distance to 1 (which is never 0)."""
    import torch

    upper = (uniform >= 0.5).int()
    distance = (uniform - upper).abs_()
    leading = (distance.view(torch.int32) >> _BITS_DROPPED).clamp_min_(_FIRST - 1).sub_(_FIRST - 1)
    return leading.add_(upper, alpha=_BINS)


@dataclass(frozen=True)
class _Table:
    """Quantiles for all rates of one noise strength.

    Attributes:
        steps: float32 (_LEVELS * numbers,): P(X <= k) in row `level`, rounded up to the grid of uniform numbers, so
            that comparing two floats is exact.
        guess: int32 (_LEVELS * 2 _BINS,): place in `steps` of the quantile of a bin's smallest number.
        numbers: how many k a row of `steps` has.
        corrections: how many further steps any bin holds at most.
    """

    steps: Tensor
    guess: Tensor
    numbers: int
    corrections: int


@functools.lru_cache(maxsize=32)
def _table(photons: float, device: torch.device) -> _Table:
    import torch

    numbers = math.ceil(photons + 8 * math.sqrt(photons) + 24)
    k = torch.arange(numbers, dtype=torch.float64)
    rate = torch.arange(_LEVELS, dtype=torch.float64)[:, None] * (photons / (_LEVELS - 1))
    log_mass = torch.xlogy(k, rate) - rate - torch.lgamma(k + 1)
    steps = (torch.exp(log_mass).cumsum(dim=1) / _UNIT - 0.5).ceil() * _UNIT
    # A step that no uniform number reaches: the number of steps below any of them stays inside the row.
    steps[:, -1] = 2.0
    low, high = _bin_ends()
    fewest = torch.searchsorted(steps, low.expand(_LEVELS, -1).contiguous(), right=True)
    most = torch.searchsorted(steps, high.expand(_LEVELS, -1).contiguous(), right=True)
    guess = fewest + torch.arange(_LEVELS)[:, None] * numbers
    corrections = int((most - fewest).max())
    return _Table(steps.float().flatten().to(device), guess.int().flatten().to(device), numbers, corrections)


def _bin_ends() -> tuple[Tensor, Tensor]:
    """float64 (2 _BINS,): the smallest and the largest uniform number of each bin."""
    import torch

    leading = torch.arange(_FIRST, _FIRST + _BINS - 1, dtype=torch.int32)
    nearest = (leading << _BITS_DROPPED).view(torch.float32).double()  # its last entry is 1/2
    first = (nearest / _UNIT).ceil()
    last = torch.cat([first[1:] - 1, first[-1:]])
    # A bin too narrow to hold a multiple of 2^-24 is never met; it must only not ask for corrections.
    last = torch.maximum(first, last)
    zero = torch.zeros(1, dtype=torch.float64)
    nearer, farther = torch.cat([zero, first]), torch.cat([zero, last])
    return torch.cat([nearer, 2.0**24 - farther]) * _UNIT, torch.cat([farther, 2.0**24 - nearer]) * _UNIT
