"""Changes of training images: crops, shifts, mirror images."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from harness_ib_inn.options import FitRecipe


def augmented(x: Tensor, size: tuple[int, int], recipe: FitRecipe, generator: Generator) -> Tensor:
    """Images (B, C, H, W) cropped at random to `size`, where they are larger, shifted and mirrored as the recipe says.

    A shift brings in copies of the border pixels: black ones would be images that the density has to explain.
    """
    if recipe.shift:
        x = _shifted(x, recipe, generator)
    if tuple(x.shape[2:]) != size:
        x = _random_crops(x, size, generator)
    if recipe.flip:
        chosen = (torch.rand(x.shape[0], generator=generator) < 0.5).to(x.device)
        x = torch.where(chosen[:, None, None, None], x.flip(-1), x)
    return x


def _shifted(x: Tensor, recipe: FitRecipe, generator: Generator) -> Tensor:
    reach = recipe.shift
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    out = _random_crops(padded, (x.shape[2], x.shape[3]), generator)
    if recipe.shift_share == 1:
        return out
    chosen = (torch.rand(x.shape[0], generator=generator) < recipe.shift_share).to(x.device)
    return torch.where(chosen[:, None, None, None], out, x)


def _random_crops(x: Tensor, size: tuple[int, int], generator: Generator) -> Tensor:
    """Each image (C, H, W) cut to `size` at a place of its own."""
    batch, channels, height, width = x.shape
    top = torch.randint(0, height - size[0] + 1, (batch,), generator=generator)
    left = torch.randint(0, width - size[1] + 1, (batch,), generator=generator)
    rows = (top[:, None] + torch.arange(size[0])).to(x.device)
    columns = (left[:, None] + torch.arange(size[1])).to(x.device)
    samples = torch.arange(batch, device=x.device)[:, None, None, None]
    planes = torch.arange(channels, device=x.device)[None, :, None, None]
    return x[samples, planes, rows[:, None, :, None], columns[:, None, None, :]]
