"""The noises: Gaussian, shot, impulse, and the extra speckle noise.

Constants are those of Hendrycks & Dietterich 2019 (arXiv 1903.12261; hendrycks/robustness, ``corruptions.py`` of
ImageNet-C and ``make_cifar_c.py``). Every channel has noise of its own. What is drawn does not depend on the severity:
the five severities of an image show the same noise, stronger each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_corruptions.corruption import Corruption
from harness_corruptions.fields import normal_field, share_field
from harness_corruptions.poisson import poisson

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness_corruptions.corruption import Drawn, Parameters

_GREY = "noise in the one channel; the original makes three equal channels of it first, and coloured noise"


def gaussian_noise(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:  # noqa: ARG001
    """x + sigma z. Parameter: sigma."""
    import torch

    return torch.add(x, drawn["normal"], alpha=parameters[0]).clamp_(0, 1)


def shot_noise(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:  # noqa: ARG001
    """The photons counted in each pixel, as a share of those of white. Parameter: expected photons of white.

    The expectation is that of the nearest of 256 grey levels.
    """
    photons = parameters[0]
    level = (x * 255).round_().int()
    return poisson(level, drawn["uniform"], photons).div_(photons).clamp_(0, 1)


def impulse_noise(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:  # noqa: ARG001
    """Salt and pepper: an entry becomes 0 or 1, each with half the probability. Parameter: share of such entries."""
    share, uniform = parameters[0], drawn["uniform"]
    return x.masked_fill(uniform < share, 0.0).masked_fill_(uniform < share / 2, 1.0)


def speckle_noise(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:  # noqa: ARG001
    """x + x sigma z. Parameter: sigma."""
    import torch

    return torch.addcmul(x, x, drawn["normal"], value=parameters[0]).clamp_(0, 1)


def _draw_normal(draws: Draws, number: int, shape: tuple[int, ...], parameters: Parameters) -> Drawn:  # noqa: ARG001
    """`normal`: float32 (n, C, H, W), standard normal, at most 4.9."""
    return {"normal": normal_field(draws, "normal", number, shape)}


def _draw_share(draws: Draws, number: int, shape: tuple[int, ...], parameters: Parameters) -> Drawn:  # noqa: ARG001
    """`uniform`: float32 (n, C, H, W) in (0, 1), the middles of 65,536 intervals."""
    return {"uniform": share_field(draws, "uniform", number, shape)}


def _draw_uniform(draws: Draws, number: int, shape: tuple[int, ...], parameters: Parameters) -> Drawn:  # noqa: ARG001
    """`uniform`: float32 (n, C, H, W) in [0, 1), multiples of 2^-24."""
    return {"uniform": draws.uniform("uniform", number, shape)}


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption(
        name="gaussian_noise",
        group="noise",
        apply=gaussian_noise,
        draw=_draw_normal,
        severities={
            "imagenet-c": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
            "cifar10-c": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        },
        grey=_GREY,
        shared_draws=True,
    ),
    Corruption(
        name="shot_noise",
        group="noise",
        apply=shot_noise,
        draw=_draw_uniform,
        severities={
            "imagenet-c": ((60,), (25,), (12,), (5,), (3,)),
            "cifar10-c": ((500,), (250,), (100,), (75,), (50,)),
        },
        grey=_GREY,
        shared_draws=True,
    ),
    Corruption(
        name="impulse_noise",
        group="noise",
        apply=impulse_noise,
        draw=_draw_share,
        severities={
            "imagenet-c": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
            "cifar10-c": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        },
        grey=_GREY,
        shared_draws=True,
    ),
    Corruption(
        name="speckle_noise",
        group="extra",
        apply=speckle_noise,
        draw=_draw_normal,
        severities={
            "imagenet-c": ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
            "cifar10-c": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
        },
        grey=_GREY,
        shared_draws=True,
    ),
)
