"""Snow: bright flakes from thresholded noise, drawn out by motion, over an image made paler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness_corruptions.colour import luma
from harness_corruptions.fields import normal_field
from harness_corruptions.filters import smear

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness_corruptions.corruption import Drawn, Parameters


def draw_snow(draws: Draws, number: int, shape: tuple[int, ...], parameters: Parameters) -> Drawn:
    """``field`` (n, h, w), standard normal, of the part of the image that is enlarged; ``angle`` (n,), on [0, 1)."""
    zoom = parameters[2]
    part = tuple(math.ceil(side / zoom) for side in shape[1:])
    return {"field": normal_field(draws, "field", number, part), "angle": draws.uniform("angle", number, ())}


def snow(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:
    """Flakes and their copy turned by half a circle, added to an image that is whitened.

    Args:
        parameters: mean and standard deviation of the noise, its enlargement, the threshold of a flake, radius and
            standard deviation of the motion in pixels, share of the image that is not whitened.
        compat: flakes are rounded to grey levels, a layer that came out larger than the image is cut at its lower right
            after the motion (before it and all around otherwise), and motion ends where it would leave the image. For
            "cifar10-c" too: its own motion was ImageMagick's, which the one of imagecorruptions imitates.
    """
    mean, deviation, zoom, threshold, radius, sigma, keep = parameters
    height, width = x.shape[2:]
    layer = enlarged(drawn["field"] * deviation + mean, zoom, compat)
    layer = layer.where(layer >= threshold, 0.0).clamp_(0, 1)
    if not compat:
        top, left = (layer.shape[1] - height) // 2, (layer.shape[2] - width) // 2
        layer = layer[:, top : top + height, left : left + width]
    angle = drawn["angle"].double() * 90 - 135
    layer = smear(layer[:, None], int(radius), sigma, angle, compat=compat)[:, 0]
    if compat:
        layer = (layer[:, :height, :width] * 255).round_().div_(255)
    flakes = (layer + layer.flip(1, 2))[:, None]
    pale = keep * x + (1 - keep) * x.maximum(luma(x) * 1.5 + 0.5)
    return (pale + flakes).clamp_(0, 1)


def enlarged(field: Tensor, zoom: float, compat: bool) -> Tensor:
    """Fields (n, h, w) enlarged to round(h * zoom) x round(w * zoom), bilinear, corner pixels kept at the corners.

    `compat`: at some sizes SciPy takes the last row or column, an ulp beyond the border, for outside: zero.
    """
    from torch.nn.functional import interpolate

    if zoom == 1:
        return field
    size = [round(side * zoom) for side in field.shape[1:]]
    large = interpolate(field[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
    for axis, (before, after) in enumerate(zip(field.shape[1:], size, strict=True), start=1):
        if compat and (after - 1) * ((before - 1) / (after - 1)) > before - 1:
            large.select(axis, after - 1).zero_()
    return large
