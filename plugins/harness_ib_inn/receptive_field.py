"""The effective receptive field: how the pixels move one place of the last feature maps (paper B.2, figure 13)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_FEATURES = 256
"""Features differentiated at most, evenly spread over the column: each costs a backward pass."""


@dataclass(frozen=True)
class ReceptiveField:
    """Sensitivity of one column of features to the pixels.

    Attributes:
        sensitivity: float64 (H, W), eq. 16: the mean over images of the sum over features and colours of |du_l/dx_ijk|.
        column: (k, l), the column's place in the feature maps.
        block: (height, width) in pixels of what the column would see by downsampling alone, without a convolution.
        features: how many of the column's features were differentiated; where not all, the sum is scaled up.
    """

    sensitivity: Tensor
    column: tuple[int, int]
    block: tuple[int, int]
    features: int

    def profile(self) -> tuple[Tensor, Tensor]:
        """Mean sensitivity of the rows (H,) and of the columns (W,): the cross-sections, over the other direction."""
        return self.sensitivity.mean(dim=1), self.sensitivity.mean(dim=0)


def receptive_field(
    features: Callable[[Tensor], Tensor], images: Tensor, most_features: int = MOST_FEATURES
) -> ReceptiveField:
    """The effective receptive field of the column in the middle of the feature maps.

    Args:
        features: images (n, C, H, W) to feature maps (n, C', H', W'), each image by itself.
        images: (n, C, H, W), of the test set.
    """
    x = images.detach().requires_grad_()
    with torch.enable_grad():
        maps = features(x)
    _, channels, height, width = maps.shape
    k, l = height // 2, width // 2  # noqa: E741 - the paper's index
    # Evenly spread, so that the choice favours no group of channels; all of them where they are few.
    chosen = torch.linspace(0, channels - 1, min(channels, most_features)).round().int().tolist()
    total = torch.zeros(images.shape[2:], dtype=torch.float64, device=images.device)
    for feature in chosen:
        (gradient,) = torch.autograd.grad(maps[:, feature, k, l].sum(), x, retain_graph=feature != chosen[-1])
        total += gradient.double().abs().sum(dim=1).mean(dim=0)
    return ReceptiveField(
        sensitivity=total * (channels / len(chosen)),
        column=(k, l),
        block=(images.shape[2] // height, images.shape[3] // width),
        features=len(chosen),
    )


def width_at_half(profile: Tensor) -> float:
    """Full width at half maximum of a cross-section (n,), in pixels, its flanks read off by linear interpolation.

    A flank that does not fall to the half before the image ends counts up to the image's border. NaN for zeros alone.
    """
    values: list[float] = profile.double().tolist()
    peak = max(range(len(values)), key=values.__getitem__)
    if values[peak] <= 0:
        return math.nan
    return _flank(values, peak, 1, values[peak] / 2) + _flank(values, peak, -1, values[peak] / 2)


def _flank(values: list[float], peak: int, step: int, half: float) -> float:
    """Distance from the peak to where the profile first falls to `half`."""
    place = peak
    while 0 <= place + step < len(values):
        if values[place + step] <= half:
            fall = values[place] - values[place + step]
            return abs(place - peak) + (values[place] - half) / fall
        place += step
    return abs(place - peak) + 0.5
