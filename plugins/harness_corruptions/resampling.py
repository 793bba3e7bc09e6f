"""Pixelate: the image shrunk by averaging boxes of pixels, then enlarged by repeating them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness_corruptions.corruption import Drawn, Parameters


@functools.lru_cache(maxsize=64)
def boxes(size: int, small: int, device: torch.device) -> Tensor:
    """Float32 (small, size): 1 where a pixel of the large axis lies in a box of the small one, by its centre."""
    import torch

    scale = size / small
    centres = (torch.arange(small, dtype=torch.float64)[:, None] + 0.5) * scale
    pixels = torch.arange(size)
    first = (centres - scale / 2 + 0.5).floor()
    end = (centres + scale / 2 + 0.5).floor()
    return ((pixels >= first) & (pixels < end)).float().to(device)


@functools.lru_cache(maxsize=64)
def repeats(size: int, small: int, device: torch.device) -> Tensor:
    """Index (size,): the pixel of the small axis that lies under the centre of each of the large one."""
    import torch

    index = ((torch.arange(size, dtype=torch.float64) + 0.5) * (small / size)).floor().long()
    return index.clamp(max=small - 1).to(device)


def pixelate(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:
    """Images shrunk to the share c of their sides and enlarged again, on 8-bit levels; `parameters`: c.

    As Pillow's BOX filter does it: along rows, then along columns, each mean rounded to a grey level, halves upwards.
    Products with matrices of zeros and ones, which sum small integers exactly, are several times faster than gathering.
    """
    import torch

    (c,) = parameters
    height, width = x.shape[2:]
    low, narrow = int(height * c), int(width * c)
    across, down = boxes(width, narrow, x.device), boxes(height, low, x.device)
    levels = (x * 255).round_()
    levels = (levels @ across.T).div_(across.sum(dim=1)).add_(0.5).floor_()
    levels = (down @ levels).div_(down.sum(dim=1, keepdim=True)).add_(0.5).floor_()
    column = repeats(width, narrow, x.device)
    spread = (torch.arange(narrow, device=x.device)[:, None] == column).to(x.dtype)
    return (levels @ spread).index_select(2, repeats(height, low, x.device)).div_(255)
