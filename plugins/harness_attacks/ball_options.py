"""Norm and radius of the ball that an attack stays in, as options; checks that catch a radius in another unit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import ValidationInfo, field_validator

from harness.errors import HarnessError
from harness.options import Amount, Options, option
from harness.threats import Norm
from harness_attacks.options import in_255ths, problem

if TYPE_CHECKING:
    from harness.datasets import DatasetFacts


def eps_in_range(eps: Amount | None, info: ValidationInfo) -> Amount | None:
    """Validates `eps`, beside an option `norm`."""
    if eps is None:
        return None
    if eps < 0:
        raise problem(f"{eps} is negative: a budget is 0 or more")
    if eps > 1 and info.data.get("norm") == "linf":
        raise problem(f"{eps} is more than the whole range [0, 1] of a pixel{in_255ths(eps)}")
    return eps


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
    size = math.prod(data.shape)
    diameter = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[norm]
    if eps > diameter:
        shape = "x".join(map(str, data.shape))
        raise HarnessError(
            f"{attack}: eps {eps} is more than the {norm} diameter {diameter:.4g} of {shape} images in [0, 1]"
            + in_255ths(eps)
        )
