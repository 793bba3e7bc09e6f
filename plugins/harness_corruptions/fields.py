"""Smooth random fields: Gaussian smoothing by sums of shifted copies, so that a field depends on no other."""

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
    """(n, *shape), uniform on [-1, 1) in steps of 2^-15: two of each word, since fields need many."""
    import torch

    size = math.prod(shape)
    bits = draws.bits(name, number, (-(-size // 2),))
    halves = torch.cat([bits & 0xFFFF, bits >> 16], dim=1)[:, :size]
    return (halves.to(torch.float32) * 2.0**-15 - 1).view(len(draws), *shape)


def gaussian_weights(sigma: float, truncate: float) -> list[float]:
    """Weights at -r .. r with r = floor(truncate * sigma + 1/2), summing to 1 (as scipy.ndimage cuts them off)."""
    radius = int(truncate * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


@functools.lru_cache(maxsize=64)
def edge_index(size: int, margin: int, edge: Edge, device: torch.device) -> Tensor:
    """Index (size + 2 margin,) that continues an axis beyond its ends.

    "reflect" repeats the last entry (d c b a | a b c d | d c b a), "nearest" only it (a a a | a b c d | d d d).
    """
    import torch

    index = torch.arange(-margin, size + margin, device=device)
    if edge == "nearest":
        return index.clamp(0, size - 1)
    index = index % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def smooth(field: Tensor, sigma: tuple[float, float], truncate: float, edge: Edge) -> Tensor:
    """Fields (n, H, W) smoothed with a Gaussian of standard deviation `sigma` pixels down and across."""
    for axis, width in zip((1, 2), sigma, strict=True):
        weights = gaussian_weights(width, truncate) if width > 0 else [1.0]
        size, radius = field.shape[axis], len(weights) // 2
        if not radius:
            continue
        padded = field.index_select(axis, edge_index(size, radius, edge, field.device))
        field = padded.narrow(axis, radius, size) * weights[radius]
        for k in range(radius):
            pair = padded.narrow(axis, k, size) + padded.narrow(axis, 2 * radius - k, size)
            field = field.add_(pair, alpha=weights[k])
    return field
