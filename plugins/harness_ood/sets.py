"""Images that no training distribution holds: noise, and what was done to the data's own images.

Every set lies on the data's grey levels, k / (levels - 1), so that a score cannot tell it by its quantisation. An image
is made from the random stream of the sample whose id it bears, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws

Shape = tuple[int, ...]
GAUSSIAN_SD = 0.25
BLOB_SHARE, BLOB_SIGMA, BLOB_THRESHOLD = 0.7, 1.5, 0.75
CONTRAST = 0.3
BLUR_SIGMA = 1 / 16  # of the shorter side
_TRUNCATE = 4.0  # standard deviations at which a Gaussian kernel ends, as in SciPy and scikit-image


def uniform_noise(draws: Draws, shape: Shape, levels: int) -> Tensor:
    """float32 (B, *shape), every entry one of `levels` grey levels in [0, 1], each as likely."""
    return _grey(draws.integers("uniform", 0, shape, levels), levels)


def constant_colour(draws: Draws, shape: Shape, levels: int) -> Tensor:
    """float32 (B, *shape), each image of one colour: every channel at a grey level of its own, the same everywhere."""
    channels, height, width = shape
    colour = _grey(draws.integers("constant", 0, (channels, 1, 1), levels), levels)
    return colour.expand(-1, -1, height, width).contiguous()


def gaussian_noise(draws: Draws, shape: Shape, levels: int) -> Tensor:
    """float32 (B, *shape), entries normal about mid-grey with standard deviation 0.25, clipped to [0, 1].

    Hendrycks et al. 2019 (Outlier Exposure): standard deviation 0.5 where images lie in [-1, 1].
    """
    return on_levels(0.5 + GAUSSIAN_SD * draws.normal("gaussian", 0, shape), levels)


def rademacher_noise(draws: Draws, shape: Shape, levels: int) -> Tensor:  # noqa: ARG001 - black and white are levels
    """float32 (B, *shape), every entry black or white, each as likely (Hendrycks et al. 2019)."""
    return (draws.rademacher("rademacher", 0, shape) + 1) / 2


def blobs(draws: Draws, shape: Shape, levels: int) -> Tensor:
    """float32 (B, *shape): thresholded blurred noise, bright patches without a form on black.

    Entries are 1 with probability 0.7, blurred with a Gaussian of 1.5 entries along rows, columns and channels, and
    those below 0.75 made black, as in Hendrycks et al. 2019 (Outlier Exposure) and pytorch-ood.
    """
    import torch

    x = (draws.uniform("blobs", 0, shape) < BLOB_SHARE).double()
    for dim in (1, 2, 3):
        x = blurred_along(x, BLOB_SIGMA, dim)
    x = on_levels(x, levels)
    return torch.where(x < BLOB_THRESHOLD, 0.0, x)


def rotated(x: Tensor, draws: Draws, levels: int) -> Tensor:  # noqa: ARG001 - pixels are moved, not changed
    """Images `x` (B, C, H, W) turned by 90, 180 or 270 degrees, each as likely; by 180 where they are not square."""
    import torch

    around = x.flip(2, 3)
    if x.shape[2] != x.shape[3]:
        return around
    turns = draws.integers("rotated", 0, (1, 1, 1), 3)
    left, right = x.transpose(2, 3).flip(2), x.transpose(2, 3).flip(3)
    return torch.where(turns == 0, left, torch.where(turns == 1, around, right))


def flipped(x: Tensor, draws: Draws, levels: int) -> Tensor:  # noqa: ARG001 - nothing is drawn
    """Images upside down: mirrored from side to side, a photograph is one still."""
    return x.flip(2)


def low_contrast(x: Tensor, draws: Draws, levels: int) -> Tensor:  # noqa: ARG001 - nothing is drawn
    """Images with 0.3 of their contrast, each about its own mean brightness (over all channels).

    Scaled contrast raises the likelihood that flows give an image: Nalisnick et al. 2019, section 4.
    """
    x = x.double()
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return on_levels(mean + CONTRAST * (x - mean), levels)


def blurred(x: Tensor, draws: Draws, levels: int) -> Tensor:  # noqa: ARG001 - nothing is drawn
    """Images blurred with a Gaussian whose standard deviation is a sixteenth of the shorter side, two pixels at 32."""
    sigma = BLUR_SIGMA * min(x.shape[2:])
    return on_levels(blurred_along(blurred_along(x.double(), sigma, 2), sigma, 3), levels)


def permuted(x: Tensor, draws: Draws, levels: int) -> Tensor:  # noqa: ARG001 - pixels are moved, not changed
    """Images whose pixels are shuffled, each image in its own order; a pixel keeps its colour."""
    order = draws.bits("permuted", 0, (x.shape[2] * x.shape[3],)).argsort(dim=1, stable=True)
    return x.flatten(2).gather(2, order[:, None].expand(-1, x.shape[1], -1)).view_as(x)


NOISE: dict[str, Callable[[Draws, Shape, int], Tensor]] = {
    "uniform": uniform_noise,
    "constant": constant_colour,
    "gaussian": gaussian_noise,
    "rademacher": rademacher_noise,
    "blobs": blobs,
}
CHANGED: dict[str, Callable[[Tensor, Draws, int], Tensor]] = {
    "rotated": rotated,
    "flipped": flipped,
    "contrast": low_contrast,
    "blurred": blurred,
    "permuted": permuted,
}


def on_levels(x: Tensor, levels: int) -> Tensor:
    """float32 images: `x` clipped to [0, 1] and rounded to the nearest of `levels` grey levels."""
    return _grey((x.clamp(0, 1) * (levels - 1)).round(), levels)


def blurred_along(x: Tensor, sigma: float, dim: int) -> Tensor:
    """`x` with a Gaussian of `sigma` entries run along one dimension; beyond its ends the last entry is repeated.

    A sum of shifted copies, so that an image's bits do not depend on how many others there are.
    """
    import torch

    radius = int(_TRUNCATE * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    size, total = x.shape[dim], sum(weights)
    places = torch.arange(-radius, size + radius, device=x.device).clamp(0, size - 1)
    wide = x.index_select(dim, places)
    out = torch.zeros_like(x)
    for shift, weight in enumerate(weights):
        out.add_(wide.narrow(dim, shift, size), alpha=weight / total)
    return out


def _grey(level: Tensor, levels: int) -> Tensor:
    return level.float().div_(levels - 1)
