"""Norm and radius of the ball that an attack stays in, as options; checks that catch a radius in another unit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import field_validator

from harness.errors import HarnessError
from harness.options import Amount, Options, eps_in_range, in_255ths, option
from harness.threats import Norm

if TYPE_CHECKING:
    from harness.datasets import DatasetFacts


class BallOptions(Options):
    """Options of an attack that stays in a ball."""

    norm: Norm = option("linf", help="norm of the perturbation, over all entries of an image")
    eps: Amount = option(help="largest norm of the perturbation; 0 leaves the images alone", unit="[0, 1] pixel values")

    _eps_in_range = field_validator("eps")(eps_in_range)


def check_diameter(attack: str, norm: Norm, eps: Amount, data: DatasetFacts) -> None:
    """Refuse a ball that is larger than the images' space: most likely eps is in another unit.

    Raises:
        HarnessError: one line.
    """
    diameter = diameter_of(norm, data.shape)
    if eps > diameter:
        shape = "x".join(map(str, data.shape))
        raise HarnessError(
            f"{attack}: eps {eps} is more than the {norm} diameter {diameter:.4g} of {shape} images in [0, 1]"
            + in_255ths(eps)
        )


def diameter_of(norm: Norm, shape: tuple[int, ...]) -> float:
    """The largest distance of two images of `shape` with values in [0, 1]."""
    size = math.prod(shape)
    return {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[norm]
