"""Projection of points of the box [0, 1] onto hyperplanes, within the box, in l-inf, l2 and l1."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness.threats import Norm


def to_hyperplane(x: Tensor, normal: Tensor, gain: Tensor, norm: Norm) -> Tensor:
    """The smallest moves, in `norm`, that change ``<normal, x>`` by `gain` and stay in the box [0, 1].

    Where the box is too small for it every entry moves as far as it helps (Croce & Hein 2020, *Minimally distorted
    adversarial examples with a fast adaptive boundary attack*, section 3.1, problem 6 and what follows).

    Args:
        x, normal: (n, D).
        gain: (n,), of either sign.

    Returns:
        (n, D), of the type of `x`.
    """
    # Scaled to a largest entry of 1, so that the scale of a model's logits is nothing to the arithmetic below.
    peak = normal.abs().amax(dim=1, keepdim=True)
    peak = peak.masked_fill(peak == 0, 1.0)
    wanted = gain[:, None] / peak
    direction = normal.sign() * wanted.sign()
    slope = (normal / peak).abs()
    room = (direction > 0).to(x.dtype).sub(x).abs()
    wanted = wanted.abs()
    if norm == "l1":
        moves = _steepest_first(slope, room, wanted)
    elif norm == "l2":
        moves = (_level(room / slope, slope.square(), wanted) * slope).minimum(room.double())
    else:
        moves = _level(room, slope, wanted).minimum(room.double())
    return (moves * direction).to(x.dtype)


def _level(ends: Tensor, slopes: Tensor, wanted: Tensor) -> Tensor:
    """The smallest t (n, 1) with ``sum_i slopes_i * min(t, ends_i) = wanted``; the last end where there is none.

    The sum is piecewise linear in t and concave: its pieces end at the sorted `ends`, and of each piece the value at
    its end and the slope are cumulative sums. An entry of slope 0 never ends, and adds nothing.

    Args:
        ends, slopes: (n, D), at least 0; `wanted` (n, 1).
    """
    import torch

    ends, order = ends.masked_fill(slopes == 0, 0.0).sort(dim=1)
    slopes = slopes.gather(1, order).double()
    # Summed from the end, where a difference of two sums would be all rounding.
    still = slopes.flip(1).cumsum(1).flip(1)  # slope of the piece that ends at ends_i
    ends = ends.double()
    starts = torch.nn.functional.pad(ends[:, :-1], (1, 0))
    reached = (still * (ends - starts)).cumsum(1)
    wanted = wanted.double()
    piece = torch.searchsorted(reached, wanted).clamp_max_(ends.shape[1] - 1)
    missing = wanted - torch.nn.functional.pad(reached[:, :-1], (1, 0)).gather(1, piece)
    rate = still.gather(1, piece)
    level = starts.gather(1, piece) + missing / rate.masked_fill(rate == 0, torch.inf)
    return level.minimum(ends.gather(1, piece))


def _steepest_first(slopes: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """Moves (n, D) that reach `wanted` with the smallest sum: the entry of the largest slope first, to its end."""
    import torch

    slopes, order = slopes.sort(dim=1, descending=True)
    room = room.gather(1, order)
    gains = slopes.double() * room
    missing = wanted.double() - (gains.cumsum(1) - gains)
    moves = (missing / slopes.masked_fill(slopes == 0, torch.inf)).clamp_min_(0.0).to(room.dtype).minimum(room)
    return torch.zeros_like(moves).scatter_(1, order, moves)
