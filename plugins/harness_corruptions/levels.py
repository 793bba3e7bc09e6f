"""The 256 grey levels of 8-bit images: a corrupted image is always stored as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 255
# What is a whole number of grey levels in the original's float64 may lie 1e-5 below it in float32.
_SLACK = 2.0**-12


def to_levels(x: Tensor) -> Tensor:
    """The nearest grey level as a whole number, uint8; `x` in [0, 1]."""
    import torch

    return (x * _STEPS).round_().to(torch.uint8)


def from_levels(levels: Tensor) -> Tensor:
    """Whole grey levels of any type as float32 in [0, 1]."""
    return levels.float() / _STEPS


def rounded(x: Tensor) -> Tensor:
    """The nearest grey level; `x` in [0, 1]."""
    return (x * _STEPS).round_().div_(_STEPS)


def truncated(x: Tensor) -> Tensor:
    """The grey level at or below, as the original's conversion to 8 bits does; `x` in [0, 1]."""
    import torch

    return torch.add(x.new_full((), _SLACK), x, alpha=_STEPS).floor_().div_(_STEPS)
