"""Crops of images that are larger than a layout takes."""

from __future__ import annotations

import torch
from torch import Tensor


def centre_crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to the (B, C, *size) in their middle."""
    return _crop(x, (x.shape[2] - size[0]) // 2, (x.shape[3] - size[1]) // 2, size)


def ten_crops(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (10, B, C, *size): four corners and the centre, then the same mirrored left to right.

    Krizhevsky et al. 2012, *ImageNet classification with deep convolutional neural networks*, section 4.1.
    """
    bottom, right = x.shape[2] - size[0], x.shape[3] - size[1]
    places = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    crops = [_crop(x, top, left, size) for top, left in places]
    return torch.stack([*crops, *(crop.flip(-1) for crop in crops)])


def _crop(x: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    return x[:, :, top : top + size[0], left : left + size[1]]
