"""Brightness, contrast and saturation, from the definition of HSV rather than through it.

With V the largest channel of a pixel and m the smallest, saturation is S = (V - m) / V and the hue says where between m
and V the others lie. Changing V alone scales the pixel; changing S alone moves its channels on the line through V.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness_corruptions.corruption import Drawn, Parameters

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV and JPEG weigh red, green and blue


def luma(x: Tensor) -> Tensor:
    """Grey value (n, 1, H, W) of images (n, C, H, W): BT.601 for three channels, the mean for any other number."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    red, green, blue = LUMA
    return (x[:, 0:1] * red).add_(x[:, 1:2], alpha=green).add_(x[:, 2:3], alpha=blue)


def brightness(x: Tensor, parameters: Parameters, _drawn: Drawn, _compat: bool) -> Tensor:
    """V' = min(V + c, 1) with hue and saturation kept; `parameters`: c. One channel is its own value: x + c."""
    (c,) = parameters
    value = x.amax(dim=1, keepdim=True)
    raised = (value + c).clamp(max=1)
    # A black pixel has no hue: it becomes grey.
    scaled = (x * (raised / value)).clamp_(max=1)
    return scaled.where(value > 0, raised)


def contrast(x: Tensor, parameters: Parameters, _drawn: Drawn, _compat: bool) -> Tensor:
    """Each channel's distance to its mean over the image times c; `parameters`: c."""
    import torch

    (c,) = parameters
    # Summed in float64: the order of summation must not show in the grey level.
    mean = x.mean(dim=(2, 3), keepdim=True, dtype=torch.float64).to(x.dtype)
    return (x - mean).mul_(c).add_(mean).clamp_(0, 1)


def saturate(x: Tensor, parameters: Parameters, _drawn: Drawn, compat: bool) -> Tensor:
    """S' = min(S * factor + offset, 1) with hue and value kept; `parameters`: factor, offset.

    A grey pixel has no hue. The original gives it hue 0, so that an offset turns it red (`compat`: all channels but the
    first lose offset * V); otherwise it stays grey.
    """
    factor, offset = parameters
    value, least = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    spread = value - least
    saturation = (spread / value).nan_to_num_(0.0)
    raised = (saturation * factor + offset).clamp_(0, 1)
    out = value - (value - x) * (raised / saturation).where(spread > 0, 0.0)
    if compat and offset:
        reddened = value * (1 - raised)
        out[:, 1:] = out[:, 1:].where(spread > 0, reddened)
    return out.clamp_(0, 1)
