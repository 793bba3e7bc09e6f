"""Smooth random fields: uniform numbers, and Gaussian smoothing by products with matrices."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.randomness import Draws

Edge = Literal["reflect", "nearest"]


def uniform_field(draws: Draws, name: str, number: int, shape: tuple[int, ...]) -> Tensor:
    """Float32 (n, *shape), uniform on [-1, 1] at the middles of 65,536 intervals."""
    return share_field(draws, name, number, shape).mul_(2).sub_(1)


def share_field(draws: Draws, name: str, number: int, shape: tuple[int, ...]) -> Tensor:
    """Float32 (n, *shape), uniform on (0, 1) at the middles of 65,536 intervals."""
    import torch

    size = math.prod(shape)
    halves = torch.cat(_halves(draws, name, number, -(-size // 2)), dim=1)[:, :size]
    return halves.add_(0.5).mul_(2.0**-16).reshape(len(draws), *shape)


def normal_field(draws: Draws, name: str, number: int, shape: tuple[int, ...]) -> Tensor:
    """Float32 (n, *shape), standard normal (Box-Muller), at most 4.9: one of 65,536 lengths in as many directions."""
    import torch

    size = math.prod(shape)
    low, high = _halves(draws, name, number, -(-size // 2))
    radius = low.add_(0.5).mul_(2.0**-16).log_().mul_(-2).sqrt_()
    angle = high.mul_(2 * math.pi * 2.0**-16)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :size].reshape(len(draws), *shape)


def _halves(draws: Draws, name: str, number: int, words: int) -> tuple[Tensor, Tensor]:
    """Two tensors (n, words) of whole numbers 0 to 65535, float32: bits are dear, and fields need many but not fine."""
    bits = draws.bits(name, number, (words,))
    return (bits & 0xFFFF).float(), (bits >> 16).float()


@functools.lru_cache(maxsize=64)
def gaussian_matrix(
    size: int, sigma: float, truncate: float, edge: Edge, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(size, size): row i holds the weights, at each place, of a Gaussian around i that is continued at the ends.

    It is cut off at floor(truncate * sigma + 1/2), as scipy.ndimage cuts it. Beyond the ends, "reflect" mirrors the
    line (c b a | a b c d | d c b), "nearest" repeats its last entry (a a a | a b c d | d d d).
    """
    import torch

    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / max(sigma, 1e-9)) ** 2)
    index = torch.arange(size)[:, None] + offsets
    if edge == "nearest":
        index = index.clamp(0, size - 1)
    else:
        index = index % (2 * size)
        index = torch.minimum(index, 2 * size - 1 - index)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, index, (weights / weights.sum()).expand(size, -1))
    return matrix.to(device, dtype)


def smooth(field: Tensor, sigma: tuple[float, float], truncate: float, edge: Edge) -> Tensor:
    """Fields (n, H, W) smoothed with a Gaussian of standard deviation `sigma` pixels down and across."""
    down, across = (
        gaussian_matrix(size, width, truncate, edge, field.dtype, field.device)
        for size, width in zip(field.shape[1:], sigma, strict=True)
    )
    return down @ (field @ across.T)
