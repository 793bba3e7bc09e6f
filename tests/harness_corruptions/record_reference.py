"""What the untouched package `imagecorruptions` 1.1.2 gives, under versions of its time.

python tests/harness_corruptions/record_reference.py    # in the environment of `tox -e corruptions-old`

writes reference.npz beside this file: the images, one result of every corruption whole, and of every corruption and
severity a digest and a mean. Imports nothing of the harness.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).parent / "reference.npz"
SEED = 20190312
WHOLE = 3
"""The severity whose results are kept whole."""
SEVERITIES = (1, 2, 3, 4, 5)
SIZES = {"small": (32, 32), "wide": (48, 80)}

Image = NDArray[np.uint8]


def images() -> dict[str, Image]:
    """Images (H, W, 3) with a gradient, waves, edges and saturated colours."""
    out = {}
    for name, (height, width) in SIZES.items():
        y, x = np.mgrid[0:height, 0:width]
        waves = 127.5 + 90 * np.sin(x / 3.0) * np.cos(y / 5.0)
        out[name] = np.stack([waves, 255.0 * x / width, 200.0 * y / height], axis=-1).astype(np.uint8)
        out[name][height // 4 : height // 2, width // 4 : width // 2] = (250, 20, 30)
        out[name][height // 2 :, -width // 4 :] = 0
    return out


def digest(image: Image) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def untouched() -> Callable[[Image, str, int], Image]:
    """The package's own `corrupt`, seeded: NumPy's global generator, and the one that scikit-image makes.

    Raises:
        ImportError: it does not import on this environment.
    """
    import imagecorruptions  # type: ignore[import-not-found,unused-ignore]

    default_rng = np.random.default_rng

    def corrupt(image: Image, name: str, severity: int) -> Image:
        state = np.random.get_state()  # noqa: NPY002
        np.random.seed(SEED)  # noqa: NPY002
        try:
            with (
                np.errstate(all="ignore"),
                mock.patch("numpy.random.default_rng", lambda seed=None: default_rng(SEED if seed is None else seed)),
            ):
                found: Image = imagecorruptions.corrupt(image, corruption_name=name, severity=severity)
        finally:
            np.random.set_state(state)  # noqa: NPY002
        return found

    return corrupt


def record(corrupt: Callable[[Image, str, int], Image], names: list[str], versions: str) -> None:
    arrays: dict[str, Any] = {"versions": np.array(versions)}
    for size, image in images().items():
        arrays[f"{size}/image"] = image
        found = {(name, severity): corrupt(image, name, severity) for name in names for severity in SEVERITIES}
        arrays[f"{size}/digests"] = np.array([[digest(found[name, s]) for s in SEVERITIES] for name in names])
        arrays[f"{size}/means"] = np.array([[found[name, s].mean() for s in SEVERITIES] for name in names])
        if size == "small":
            arrays[f"{size}/whole"] = np.stack([found[name, WHOLE] for name in names])
    arrays["names"] = np.array(names)
    np.savez_compressed(FILE, **arrays)


def main() -> None:
    from importlib.metadata import version

    import imagecorruptions

    packages = ("imagecorruptions", "numpy", "scikit-image", "scipy", "opencv-python-headless", "pillow")
    record(
        untouched(),
        imagecorruptions.get_corruption_names("all"),
        ", ".join(f"{name} {version(name)}" for name in packages),
    )


if __name__ == "__main__":
    main()
