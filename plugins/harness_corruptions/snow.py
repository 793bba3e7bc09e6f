"""Snow: bright flakes from thresholded noise, drawn out by motion, over an image made paler."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from harness_corruptions.colour import luma

if TYPE_CHECKING:
    import torch
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
    import torch

    for axis in (1, 2):
        size = field.shape[axis]
        large = round(size * zoom)
        if large == size:
            continue
        place = torch.arange(large, dtype=torch.float64, device=field.device) * ((size - 1) / (large - 1))
        index = place.long().clamp_(max=size - 2)
        weight = (place - index).to(field.dtype)
        weight = weight[:, None] if axis == 1 else weight
        low, high = field.index_select(axis, index), field.index_select(axis, index + 1)
        field = low + (high - low) * weight
    return field


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
    if stop:
        beyond = (down.abs() >= height) | (across.abs() >= width)
        alive = (beyond.cumsum(dim=1) == 0).to(layer.dtype)
    # A shifted copy is one run of the padded layer, laid out in rows that keep its margins: copying runs is many times
    # faster than gathering pixels. A shift past the margin reads what one at the margin would.
    margin = _margins(height, width, taps, layer.device)
    padded = layer.index_select(1, margin[0]).index_select(2, margin[1])
    stride = padded.shape[2]
    start = (down + taps) * stride + across + taps
    flat = torch.nn.functional.pad(padded.flatten(1), (0, stride))
    run = height * stride
    windows = flat.as_strided((count, flat.shape[1] - run + 1, run), (flat.stride(0), 1, 1))
    sample = torch.arange(count, device=layer.device)
    out = torch.zeros(count, run, dtype=layer.dtype, device=layer.device)
    for tap, weight in enumerate(weights):
        copy = windows[sample, start[:, tap]]
        if stop:
            copy *= alive[:, tap, None]
        out.add_(copy, alpha=weight / total)
    return out.view(count, height, stride)[:, :, :width]


@functools.lru_cache(maxsize=32)
def _margins(height: int, width: int, margin: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices that repeat the edge pixels `margin` times at either end of the rows and of the columns."""
    import torch

    rows = torch.arange(-margin, height + margin, device=device).clamp_(0, height - 1)
    columns = torch.arange(-margin, width + margin, device=device).clamp_(0, width - 1)
    return rows, columns
