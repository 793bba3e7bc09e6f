"""The blurs: defocus, glass, motion, zoom, and the extra Gaussian one.

Constants are those of Hendrycks & Dietterich 2019 (arXiv 1903.12261; hendrycks/robustness, ``corruptions.py`` of
ImageNet-C and ``make_cifar_c.py``). Every channel is blurred alike, so an image may have any number of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness_corruptions.corruption import Corruption
from harness_corruptions.filters import disk, gaussian, gaussian_to_the_bit, smear, zoomed_sum
from harness_corruptions.shuffle import origins

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness_corruptions.corruption import Drawn, Parameters

MOTION_ANGLE = 45.0


def defocus_blur(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:  # noqa: ARG001
    """The mean over a disk. Parameters: radius and softening of its edge, pixels.

    compat: see `harness_corruptions.filters.disk`.
    """
    radius, alias_blur = parameters
    return disk(x, radius, alias_blur, compat=compat).clamp_(0, 1)


def gaussian_blur(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:  # noqa: ARG001
    """A Gaussian. Parameter: standard deviation, pixels."""
    return gaussian(x, parameters[0]).clamp_(0, 1)


def glass_blur(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:
    """Pixels shuffled within their neighbourhood, between two Gaussian blurs.

    Parameters: standard deviation, pixels; how far a pixel moves at most, pixels; rounds. Pixels of the outermost rows
    and columns start no move; an image of no more than twice the move is blurred only.

    compat: the original means to swap two pixels, but through NumPy views the second assignment reads what the first
    wrote: a pixel is copied and its neighbour stays, so that of 1,024 distinct pixels about 500 are left. It also
    truncates to 8 bits after the first blur.
    """
    sigma, reach, _ = parameters
    if compat:
        # Exactly: a pixel that is a level off is copied about, blurred and truncated again, and ends up two levels off.
        levels = (x.double() * 255).round_()
        blurred = gaussian_to_the_bit(levels.div_(255), sigma).mul_(255).floor_().div_(255).to(x.dtype)
    else:
        blurred = gaussian(x, sigma)
    height, width = x.shape[-2:]
    origin = origins(drawn["dy"], drawn["dx"], (height, width), int(reach), copies=compat)
    shuffled = blurred.flatten(2).gather(2, origin[:, None].expand(-1, x.shape[1], -1)).view_as(x)
    return gaussian(shuffled, sigma).clamp_(0, 1)


def motion_blur(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:
    """The image moved along a line at an angle of -45 to 45 degrees. Parameters: half the length and decay, pixels.

    As imagecorruptions 1.1.2 does it; ImageNet-C and CIFAR-10-C were made with ImageMagick's motion blur, which that
    package rebuilt. compat: see `harness_corruptions.filters.smear`.
    """
    radius, sigma = parameters
    return smear(x, int(radius), sigma, drawn["angle"], compat=compat).clamp_(0, 1)


def zoom_blur(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:  # noqa: ARG001
    """The mean of the image and its magnifications. Parameters: largest factor (not reached) and step.

    compat: see `harness_corruptions.filters.zoomed_sum`.
    """
    factors = zoom_factors(*parameters)
    return zoomed_sum(x, factors, compat=compat).add_(x).div_(len(factors) + 1).clamp_(0, 1)


def zoom_factors(stop: float, step: float) -> tuple[float, ...]:
    """``numpy.arange(1, stop, step)``, rounding included: 1.11 itself is among the factors below 1.11."""
    difference = (1 + step) - 1
    return tuple(1 + i * difference for i in range(math.ceil((stop - 1) / step)))


def _draw_moves(draws: Draws, number: int, shape: tuple[int, ...], parameters: Parameters) -> Drawn:
    """`dy`, `dx`: int64 (n, rounds, rows, columns), where each pixel that starts a move moves to."""
    reach, rounds = int(parameters[1]), int(parameters[2])
    places = tuple(max(side - 2 * reach, 0) for side in shape[1:])
    move = draws.integers("move", number, (rounds, *places), (2 * reach) ** 2)
    return {"dy": move // (2 * reach) - reach, "dx": move % (2 * reach) - reach}


def _draw_angle(draws: Draws, number: int, shape: tuple[int, ...], parameters: Parameters) -> Drawn:  # noqa: ARG001
    """`angle`: float64 (n,), degrees."""
    import torch

    return {"angle": (draws.uniform("angle", number, (), torch.float64) * 2 - 1) * MOTION_ANGLE}


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption(
        name="defocus_blur",
        group="blur",
        apply=defocus_blur,
        draw=None,
        severities={
            "imagenet-c": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
            "cifar10-c": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        },
    ),
    Corruption(
        name="glass_blur",
        group="blur",
        apply=glass_blur,
        draw=_draw_moves,
        severities={
            "imagenet-c": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
            "cifar10-c": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        },
    ),
    Corruption(
        name="motion_blur",
        group="blur",
        apply=motion_blur,
        draw=_draw_angle,
        severities={
            "imagenet-c": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
            "cifar10-c": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        },
        shared_draws=True,
    ),
    Corruption(
        name="zoom_blur",
        group="blur",
        apply=zoom_blur,
        draw=None,
        severities={
            "imagenet-c": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
            "cifar10-c": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        },
    ),
    Corruption(
        name="gaussian_blur",
        group="extra",
        apply=gaussian_blur,
        draw=None,
        severities={
            "imagenet-c": ((1,), (2,), (3,), (4,), (6,)),
            "cifar10-c": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
        },
    ),
)
