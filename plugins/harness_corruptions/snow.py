"""Snow: bright flakes from thresholded noise, drawn out by motion, over an image made paler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness_corruptions.colour import luma

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness_corruptions.corruption import Drawn, Parameters


def draw_snow(draws: Draws, number: int, shape: tuple[int, ...], parameters: Parameters) -> Drawn:
    """``field`` (n, h, w), standard normal, of the part of the image that is enlarged; ``angle`` (n,), on [0, 1)."""
    zoom = parameters[2]
    part = tuple(math.ceil(side / zoom) for side in shape[1:])
    return {"field": draws.normal("field", number, part), "angle": draws.uniform("angle", number, ())}


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
    layer = enlarged(drawn["field"] * deviation + mean, zoom)
    layer = layer.where(layer >= threshold, 0.0).clamp_(0, 1)
    if not compat:
        top, left = (layer.shape[1] - height) // 2, (layer.shape[2] - width) // 2
        layer = layer[:, top : top + height, left : left + width]
    layer = drawn_out(layer, drawn["angle"] * 90 - 135, int(radius), sigma, stop=compat)
    if compat:
        layer = (layer[:, :height, :width] * 255).round_().div_(255)
    flakes = (layer + layer.flip(1, 2))[:, None]
    pale = keep * x + (1 - keep) * x.maximum(luma(x) * 1.5 + 0.5)
    return (pale + flakes).clamp_(0, 1)


def enlarged(field: Tensor, zoom: float) -> Tensor:
    """Fields (n, h, w) enlarged to round(h * zoom) x round(w * zoom), bilinear, corner pixels kept at the corners."""
    from torch.nn.functional import interpolate

    if zoom == 1:
        return field
    size = [round(side * zoom) for side in field.shape[1:]]
    return interpolate(field[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


def drawn_out(layer: Tensor, angle: Tensor, radius: int, sigma: float, stop: bool) -> Tensor:
    """Layers (n, H, W) drawn out to one side along a line: half a Gaussian of 2 radius + 1 pixels.

    Args:
        angle: (n,), degrees; 0 to the right, 90 downwards.
        stop: taps that reach further than the image's side are left out, which darkens images smaller than the line;
            otherwise they read the pixel at the edge, as all others beyond it do.
    """
    import torch

    count, height, width = layer.shape
    taps = 2 * radius + 1
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(taps)]
    total = math.fsum(weights)
    radians = torch.deg2rad(angle.double())
    steps = torch.arange(taps, dtype=torch.float64, device=layer.device)
    down = (steps * radians.sin()[:, None] - 0.5).ceil().long()  # (n, taps): where each tap reads
    across = (steps * radians.cos()[:, None] - 0.5).ceil().long()
    # A shifted copy of a layer is a window of the padded one, so a tap selects one window a layer: whole rows are
    # copied, many times faster than gathering pixels.
    padded = torch.nn.functional.pad(layer[:, None], (taps, taps, taps, taps), mode="replicate")
    area, stride = padded[0].numel(), width + 2 * taps
    places = count * area - ((height - 1) * stride + width) + 1
    windows = padded.as_strided((places, height, width), (1, stride, 1))
    start = torch.arange(count, device=layer.device)[:, None] * area + (down + taps) * stride + across + taps
    out, copy = torch.zeros_like(layer), torch.empty_like(layer)
    for tap, weight in enumerate(weights):
        torch.index_select(windows, 0, start[:, tap], out=copy)
        if stop and tap >= min(height, width):
            copy *= ((down[:, tap].abs() < height) & (across[:, tap].abs() < width))[:, None, None]
        out.add_(copy, alpha=weight / total)
    return out
