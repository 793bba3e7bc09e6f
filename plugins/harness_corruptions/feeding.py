"""What the native corruptions draw, as the numbers that the original asks for: the same randomness for both.

`harness_corruptions.reference.fed` takes them. Where the two draw otherwise (one number where the original takes two, a
quantile where it takes a count), the rule stands here, written again in NumPy and SciPy rather than borrowed from the
native code that is checked with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HALF_STEP = 2.0**-25  # uniform numbers stand for the middle of their step of 2^-24
_FROST_SCALE = 1.1


@dataclass(frozen=True)
class Native:
    """One image and what the native corruption drew for it.

    Attributes:
        drawn: by name, without the axis of the batch; drawn for `compat`.
        image: uint8 (H, W, C).
        parameters: for ImageNet-C and the severity that the original is asked for.
    """

    drawn: Mapping[str, NDArray[Any]]
    image: NDArray[np.uint8]
    parameters: tuple[float, ...]


def numbers_for(name: str, native: Native) -> Sequence[Any]:
    """Numbers for `harness_corruptions.reference.fed`; `name` is one of `harness_corruptions.reference.RANDOM`."""
    return FEEDS[name](native)


def _normal(native: Native) -> Sequence[Any]:
    return [_channels_last(native.drawn["normal"])]


def _photons(native: Native) -> Sequence[Any]:
    """Quantiles of each pixel's Poisson distribution, the smallest k with P(X <= k) > u, one grey level at a time."""
    from scipy.stats import poisson

    uniform = _channels_last(native.drawn["uniform"]).astype(np.float64) + _HALF_STEP
    image, photons = native.image.reshape(uniform.shape), native.parameters[0]
    counts = np.arange(int(photons + 12 * np.sqrt(photons) + 30))
    out = np.empty_like(uniform)
    for level in np.unique(image):
        here = image == level
        out[here] = np.searchsorted(poisson.cdf(counts, level / 255.0 * photons), uniform[here], side="right")
    return [out]


def _salt_and_pepper(native: Native) -> Sequence[Any]:
    """One number is below the share where an entry is hit, and below half of it where it is salt."""
    uniform, share = _channels_last(native.drawn["uniform"]), native.parameters[0]
    return [np.where(uniform < share, 0.0, 1.0), np.where(uniform < share / 2, 0.0, 1.0)]


def _moves(native: Native) -> Sequence[Any]:
    """In each round the pixels from the last to the first."""
    pairs = np.stack([native.drawn["dx"], native.drawn["dy"]], axis=-1)[:, ::-1, ::-1]
    return list(pairs.reshape(-1, 2))


def _angle(native: Native) -> Sequence[Any]:
    return [(float(native.drawn["angle"]) + 45) / 90]


def _flakes(native: Native) -> Sequence[Any]:
    """Only the middle of the original's field is enlarged, and the rest of it is not drawn here."""
    field = np.zeros(native.image.shape[:2])
    middle = native.drawn["field"]
    height, width = middle.shape
    top, left = (len(field) - height) // 2, (len(field[0]) - width) // 2
    field[top : top + height, left : left + width] = middle
    return [field, float(native.drawn["angle"])]


def _crop(native: Native) -> Sequence[Any]:
    """Where the crop lies, as shares of what the texture, once it is scaled to cover the image, has to spare."""
    from PIL import Image

    from harness_corruptions.reference import package_folder

    which = int(float(native.drawn["texture"]) * 5)
    with Image.open(next((package_folder() / "frost").glob(f"frost{which + 1}.*"))) as texture:
        sides = np.array(texture.size[::-1])
    size = np.array(native.image.shape[:2])
    spare = np.ceil(sides * (_FROST_SCALE * float(np.maximum(1, size / sides).max()))).astype(int) - size
    shares = np.array([native.drawn["top"], native.drawn["left"]], dtype=np.float32)
    return [which, *(shares * spare.astype(np.float32)).astype(int)]


def _plasma(native: Native) -> Sequence[Any]:
    """Level by level, from -1 to 1: the middles of squares, then of horizontal edges, then of vertical ones."""
    wibbles = (native.drawn["wibbles"].astype(np.float64) + 1) / 2
    levels, side = [], 1
    while wibbles.size:
        parts, wibbles = np.split(wibbles, [3 * side * side])
        levels += list(parts.reshape(3, side, side))
        side *= 2
    return levels


def _displacements(native: Native) -> Sequence[Any]:
    return [(native.drawn[name].astype(np.float64) + 1) / 2 for name in ("across", "down")]


def _liquid(native: Native) -> Sequence[Any]:
    return [native.drawn["field"]]


def _channels_last(field: NDArray[Any]) -> NDArray[Any]:
    """(C, H, W) as (H, W, C); of a grey image (H, W), as the original takes it."""
    return field[0] if len(field) == 1 else field.transpose(1, 2, 0)


FEEDS: dict[str, Callable[[Native], Sequence[Any]]] = {
    "gaussian_noise": _normal,
    "shot_noise": _photons,
    "impulse_noise": _salt_and_pepper,
    "glass_blur": _moves,
    "motion_blur": _angle,
    "snow": _flakes,
    "frost": _crop,
    "fog": _plasma,
    "elastic_transform": _displacements,
    "speckle_noise": _normal,
    "spatter": _liquid,
}
