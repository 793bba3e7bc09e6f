"""Pixelate: the image shrunk by averaging boxes of pixels, then enlarged by repeating them."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness_corruptions.corruption import Drawn, Parameters

Blocks = tuple[tuple[int, int, "Tensor"], ...]
"""A banded matrix (in, out) cut into blocks of outputs: the inputs from first to end that they need, and their part."""

_BLOCK = 32  # outputs: enough for a product to be efficient, few enough to skip most of the zeros


@functools.lru_cache(maxsize=64)
def boxes(size: int, small: int, device: torch.device) -> tuple[Blocks, Tensor]:
    """Sums over boxes of pixels, (size, small), and the pixels in each box: a pixel belongs where its centre lies."""
    import torch

    # In float64 and in Pillow's order of operations, which decides where a centre lies on the border of two boxes.
    scale = size / small
    centres = (torch.arange(small, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(size, dtype=torch.float64)[:, None]
    place = (pixels - centres + 0.5) * (1 / scale)
    within = (pixels >= (centres - scale / 2 + 0.5).floor()) & (pixels < (centres + scale / 2 + 0.5).floor())
    matrix = ((place > -0.5) & (place <= 0.5) & within).float()
    return _cut(matrix, device), matrix.sum(dim=0).to(device)


@functools.lru_cache(maxsize=64)
def repeats(size: int, small: int, stepwise: bool, device: torch.device) -> tuple[Blocks, Tensor]:
    """Copies, (small, size), of the pixel of the small axis under the centre of each large one; and its index.

    `stepwise`: the centres are summed up one by one, which puts one on the border of two pixels to either side of it.
    """
    import torch

    step = small / size
    if stepwise:
        centres = torch.tensor(list(itertools.accumulate([step] * (size - 1), initial=step / 2)), dtype=torch.float64)
    else:
        centres = (torch.arange(size, dtype=torch.float64) + 0.5) * step
    index = centres.floor().long().clamp(max=small - 1)
    matrix = (torch.arange(small)[:, None] == index).float()
    return _cut(matrix, device), index.to(device)


def _cut(matrix: Tensor, device: torch.device) -> Blocks:
    blocks = []
    for start in range(0, matrix.shape[1], _BLOCK):
        part = matrix[:, start : start + _BLOCK]
        used = part.any(dim=1).nonzero()
        first, end = int(used[0]), int(used[-1]) + 1
        blocks.append((first, end, part[first:end].to(device)))
    return tuple(blocks)


def banded(x: Tensor, blocks: Blocks, axis: Literal[2, 3]) -> Tensor:
    """Images (n, C, H, W) times a banded matrix of zeros and ones along an axis.

    A product is several times faster than gathering pixels, and exact: it copies, or sums a few grey levels.
    """
    import torch

    parts = []
    for first, end, matrix in blocks:
        part = x.narrow(axis, first, end - first)
        parts.append(part @ matrix if axis == 3 else matrix.T @ part)
    return torch.cat(parts, dim=axis)


def pixelate(x: Tensor, parameters: Parameters, _drawn: Drawn, compat: bool) -> Tensor:
    """Images, uint8, shrunk to the share c of their sides and enlarged again; `parameters`: c. Gives float32 levels.

    As Pillow's BOX filter does it: along rows, then along columns, each mean rounded to a grey level, halves upwards.
    (Pillow 13 begins with the columns of images more than twice as high as wide, which may differ by one level.)
    `compat`: pixels are repeated as by Pillow's NEAREST, which imagecorruptions enlarges with; where it meets the
    border of two it takes the one or the other.
    """
    (c,) = parameters
    height, width = x.shape[2:]
    low, narrow = int(height * c), int(width * c)
    across, columns = boxes(width, narrow, x.device)
    down, rows = boxes(height, low, x.device)
    levels = banded(x.float(), across, 3).div_(columns).add_(0.5).floor_()
    levels = banded(levels, down, 2).div_(rows[:, None]).add_(0.5).floor_()
    copies, _ = repeats(width, narrow, compat, x.device)
    _, row = repeats(height, low, compat, x.device)
    # Rows are copied whole, which indexing does faster.
    return banded(levels, copies, 3).index_select(2, row)
