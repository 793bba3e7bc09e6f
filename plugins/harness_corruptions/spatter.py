"""Spatter: drops of water, or stains of mud, where smooth noise is high."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_corruptions.edges import PIXEL, canny, distance, equalized, window_sum
from harness_corruptions.fields import normal_field, smooth
from harness_corruptions.frost import GREY_OF_RGB

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness_corruptions.corruption import Drawn, Parameters

WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
MUD = (63 / 255, 42 / 255, 20 / 255)


def draw_spatter(draws: Draws, number: int, shape: tuple[int, ...], _parameters: Parameters) -> Drawn:
    """``field`` (n, H, W), standard normal."""
    return {"field": normal_field(draws, "field", number, shape[1:])}


def spatter(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:
    """Images with drops that brighten or stains that cover.

    Args:
        parameters: mean and standard deviation of the noise, standard deviation of its smoothing in pixels, the
            threshold above which it is wet; of water the strength, of mud the smoothing of its stains; 0 water, 1 mud.
        compat: noise above 1 wraps to dark, and an image on which no drop of water fell is black: as in the original,
            which divides by the largest drop. Otherwise it stays bright, and the image as it was.

    Images that do not have three channels get the grey value of the colour in each.
    """
    mean, deviation, sigma, threshold, amount, mud = parameters
    # In float64: the steps from here to the drops are all or nothing, and follow the last bit.
    liquid = smooth(drawn["field"].double() * deviation + mean, (sigma, sigma), 4, "nearest")
    if mud:
        stains = smooth((liquid > threshold).to(x.dtype), (amount, amount), 4, "nearest")[:, None]
        stains = stains.where(stains >= 0.8, 0.0)
        return (x * (1 - stains)).add_(stains * _colour(MUD, x)).clamp_(0, 1)
    wet = (liquid * 255).floor().where(liquid >= threshold, 0.0)
    wet = (wet % 256 if compat else wet.clamp_(max=255)).to(x.dtype)
    drops = wet * _relief(wet)
    largest = drops.amax(dim=(1, 2), keepdim=True)
    drops = (drops / largest).nan_to_num_(0.0).mul_(amount)[:, None]
    out = (x + (drops * _colour(WATER, x)).clamp_(max=1)).clamp_(0, 1)
    return out * (largest > 0)[:, None] if compat else out


def _relief(wet: Tensor) -> Tensor:
    """How light falls on drops (n, H, W): the slope, from the upper left, of the distance to their edges."""
    far = distance(canny(wet, 50, 150), 20)
    mean = window_sum(far.float()).long() // (9 * PIXEL)
    height = equalized(mean).to(wet.dtype)
    slope = _lit(height).clamp_(0, 255)
    return (window_sum(slope) / 9).round_()


def _lit(height: Tensor) -> Tensor:
    """Planes (n, H, W) correlated with ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))."""
    from torch.nn.functional import pad

    padded = pad(height[None], (1, 1, 1, 1), mode="reflect")[0]
    along = padded[:, 2:, 2:] - padded[:, :-2, :-2]
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    return (along * 2).add_(across).add_(down).add_(height)


def _colour(colour: tuple[float, float, float], x: Tensor) -> Tensor:
    """A colour as (3, 1, 1) for images of three channels, its grey value (1, 1, 1) for others."""
    if x.shape[1] != 3:
        colour_and_weight = zip(colour, GREY_OF_RGB, strict=True)
        return x.new_tensor([sum(c * w for c, w in colour_and_weight)])[:, None, None]
    return x.new_tensor(colour)[:, None, None]
