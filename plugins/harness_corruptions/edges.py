"""Edges, the distance to them, and flat histograms, as OpenCV computes them: what spatter builds its drops from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PIXEL = 10_000
"""Distances are whole numbers of this part of a pixel, which makes the costs of all steps exact."""
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1), (1, 2), (2, 1), (1, -2), (2, -1))
_TANGENT = 13573  # of 22.5 degrees, in units of 2^-15


def canny(levels: Tensor, weakest: int, strong: int) -> Tensor:
    """Edges (n, H, W), bool, of planes of whole numbers 0 to 255 (Canny 1986, thresholds of the gradient's l1 norm).

    A pixel whose gradient exceeds `weakest` and is the largest across the edge belongs to one if a chain of such pixels
    leads to a gradient above `strong`.
    """
    from torch.nn.functional import pad

    padded = pad(levels.float()[None], (1, 1, 1, 1), mode="replicate")[0].int()
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    dx, dy = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    wide, high = dx.abs(), dy.abs()
    size = wide + high
    around = pad(size, (1, 1, 1, 1))
    height, width = size.shape[1:]

    def at(down: int, across: int) -> Tensor:
        return around[:, 1 + down : 1 + down + height, 1 + across : 1 + across + width]

    # Which of four directions the gradient has; ties along a row or column go to the first pixel.
    steep, flat = high << 15, wide * _TANGENT
    largest_across = (size > at(0, -1)) & (size >= at(0, 1))
    largest_down = (size > at(-1, 0)) & (size >= at(1, 0))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    rising = (size > at(-1, 1)) & (size > at(1, -1))
    diagonal = rising.where((dx ^ dy) < 0, falling)
    largest = largest_across.where(steep < flat, largest_down.where(steep > flat + (wide << 16), diagonal))
    weak = largest & (size > weakest)
    return _connected(weak & (size > strong), weak)


def _connected(seeds: Tensor, allowed: Tensor) -> Tensor:
    """The pixels of `allowed` (n, H, W) that a chain of neighbours, of eight each, joins to a seed."""
    edges = seeds
    while True:
        wide = edges.clone()
        wide[:, :, 1:] |= edges[:, :, :-1]
        wide[:, :, :-1] |= edges[:, :, 1:]
        grown = wide.clone()
        grown[:, 1:] |= wide[:, :-1]
        grown[:, :-1] |= wide[:, 1:]
        grown &= allowed
        if grown.equal(edges):
            return edges
        edges = grown


def distance(edges: Tensor, most: int) -> Tensor:
    """Distance of each pixel (n, H, W) to the nearest edge, int32 in 1/10000 pixel, `most` pixels at most.

    The shortest chain of steps that cost 1 to a neighbour, 1.4 to a diagonal one and 2.1969 by a knight's move
    (Borgefors 1986). The steps of a shortest chain may come in any order, so one direction after the other is dealt
    with, in steps that double.
    """
    import torch

    most *= PIXEL
    out = torch.zeros_like(edges, dtype=torch.int32).masked_fill_(~edges, most)
    for down, across in _DIRECTIONS:
        cost = {1: PIXEL, 2: 14_000, 3: 21_969}[down + abs(across)]
        steps = 1
        while (steps - 1) * cost < most:
            _relax(out, down * steps, across * steps, cost * steps)
            steps *= 2
    return out


def _relax(out: Tensor, down: int, across: int, cost: int) -> None:
    """No pixel's distance is more than `cost` above that of the pixels this far before and behind it. In place."""
    import torch

    height, width = out.shape[1:]
    if down >= height or abs(across) >= width:
        return
    left, right = max(across, 0), max(-across, 0)
    later = out[:, down:, left : width - right]
    earlier = out[:, : height - down, right : width - left]
    onwards, backwards = earlier + cost, later + cost
    torch.minimum(later, onwards, out=later)
    torch.minimum(earlier, backwards, out=earlier)


def equalized(levels: Tensor) -> Tensor:
    """Planes (n, H, W) of whole numbers 0 to 255, int64, with histograms made flat; a constant one is left as it is."""
    import torch

    count = len(levels)
    flat = levels.flatten(1).long()
    bins = (flat + torch.arange(count, device=levels.device)[:, None] * 256).flatten()
    histogram = bins.bincount(minlength=count * 256).view(count, 256)
    lowest = flat.amin(dim=1, keepdim=True)
    above = flat.shape[1] - histogram.gather(1, lowest)
    up_to = histogram.cumsum(dim=1) - histogram.gather(1, lowest)
    scale = torch.tensor(255.0, device=levels.device) / above
    table = (up_to * scale).nan_to_num_(0.0).round_().clamp_(0, 255).long()
    table = table.where(above > 0, lowest)
    return table.gather(1, flat).view_as(levels)


def window_sum(levels: Tensor) -> Tensor:
    """Sums over 3 x 3 pixels of planes (n, H, W), mirrored at the edges without repeating them."""
    from torch.nn.functional import pad

    padded = pad(levels[None], (1, 1, 1, 1), mode="reflect")[0]
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    total: Tensor = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return total
