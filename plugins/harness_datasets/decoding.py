"""Encoded images (JPEG, PNG, anything Pillow reads) to 8-bit pixels."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from harness.errors import HarnessError

MODES = {1: "L", 3: "RGB"}


def open_image(source: Path | BinaryIO, name: str, channels: int | None = None) -> Image.Image:
    """The decoded image, 8 bits a channel, in mode "L" (`channels` 1) or "RGB" (3; by default what the image has).

    Palettes are looked up, an alpha channel is dropped, of 16-bit greys the high byte is kept (as Pillow does with
    16-bit colours); the first frame is taken, and an EXIF orientation is ignored, as usual training pipelines do.

    Raises:
        HarnessError: cannot be decoded, or holds 32-bit values of unknown range; the text names `name`.
    """
    try:
        with Image.open(source) as image:
            image.load()
            decoded = _eight_bit(image, name)
    except HarnessError:
        raise
    except UnidentifiedImageError as error:
        raise HarnessError(f"{name}: is not an image that Pillow can read; remove or replace it") from error
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, ... on damaged files
        text = " ".join(str(error).split())
        raise HarnessError(f"{name}: damaged image ({text or type(error).__name__}); remove or replace it") from error
    if channels is None:
        channels = 1 if decoded.mode in {"1", "L", "LA"} else 3
    mode = MODES[channels]
    return decoded if decoded.mode == mode else decoded.convert(mode)


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (H, W, C) of an image in mode "L" or "RGB"."""
    array = np.asarray(image, dtype=np.uint8)
    return array[..., np.newaxis] if array.ndim == 2 else array


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise HarnessError(f"{name}: has 32-bit pixels of unknown range (mode {image.mode}); save it with 8 or 16 bits")
    return image.copy()
