"""The 19 corruptions of Hendrycks & Dietterich 2019, by name and in the order of ImageNet-C."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness_corruptions.corruption import Corruption, Group, Table

GROUPS: Mapping[str, Group] = {
    **dict.fromkeys(("gaussian_noise", "shot_noise", "impulse_noise"), "noise"),
    **dict.fromkeys(("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"), "blur"),
    **dict.fromkeys(("snow", "frost", "fog", "brightness"), "weather"),
    **dict.fromkeys(("contrast", "elastic_transform", "pixelate", "jpeg_compression"), "digital"),
}
"""The four groups of the 15 that mean corruption error is made of; any other corruption is "extra"."""
STANDARD = tuple(GROUPS)
NOISES = tuple(name for name in STANDARD if GROUPS[name] == "noise")
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The four that were meant for validation."""
ALL = (*STANDARD, *EXTRA)
COLOURED = ("snow", "frost", "brightness", "jpeg_compression", "spatter", "saturate")
"""Those that know red, green and blue, or grey, and nothing else: images have three channels or one."""

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST_SIDE = 8
SMALL_IMAGES = 64
"""Pixels of the longer side up to which the table of CIFAR-10-C is the default."""


@functools.cache
def corruptions() -> Mapping[str, Corruption]:
    """Every corruption by its name, the standard ones first."""
    from harness_corruptions import blur, digital, noise, weather

    modules = (noise, blur, weather, digital)
    found = {corruption.name: corruption for module in modules for corruption in module.CORRUPTIONS}
    return {name: found[name] for name in ALL}


def default_table(height: int, width: int) -> Table:
    """Whose constants suit images of this size: those of CIFAR-10-C up to 64 px, which ImageNet-C's would wipe out."""
    return "cifar10-c" if max(height, width) <= SMALL_IMAGES else "imagenet-c"
