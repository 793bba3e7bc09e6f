"""Images as the grey levels they are made of, and bits of those."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Grid(NamedTuple):
    """Images on a grid of grey levels.

    Attributes:
        level: int64 (B, C, H, W), the nearest level, 0 to levels - 1.
        off: bool (B, C, H, W), entries that lie beside the grid, by more than float32 rounds.
    """

    level: Tensor
    off: Tensor


class Flipped(NamedTuple):
    """What flipping made of grey levels.

    Attributes:
        level: int64 (B, C, H, W).
        made: bool (B, C, H, W), the entries that changed.
        not_made: bool (B, C, H, W), those that were to be flipped and would have left the range.
    """

    level: Tensor
    made: Tensor
    not_made: Tensor


def on_grid(x: Tensor, levels: int) -> Grid:
    """The grey levels of `x` (B, C, H, W) in [0, 1], whose grid is k / (levels - 1)."""
    steps = x.double() * (levels - 1)
    level = steps.round()
    # Two units in the last place of a float32 just below 1: whether it was divided, or multiplied by a reciprocal.
    tolerance = (levels - 1) * 2.0**-23
    return Grid(level.long(), (steps - level).abs() > tolerance)


def from_levels(level: Tensor, levels: int) -> Tensor:
    """float32 images in [0, 1]: level / (levels - 1), rounded once."""
    return (level.double() / (levels - 1)).float()


def flip_bit(level: Tensor, bit: int, chosen: Tensor, levels: int) -> Flipped:
    """Flip bit number `bit` (0: the least significant) of the chosen entries, where the result is a level still.

    With a power of two of levels every flip is one; with 17 levels, 0 to 16, flipping bit 0 of 16 would give 17.
    """
    import torch

    turned = level ^ (1 << bit)
    inside = turned < levels
    made = chosen & inside
    return Flipped(torch.where(made, turned, level), made, chosen & ~inside)


def bits_of(levels: int) -> int:
    """How many bits the largest of `levels` grey levels takes."""
    return (levels - 1).bit_length()
