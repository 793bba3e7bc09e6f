"""JPEG compression: by tensor arithmetic, or through Pillow where that is faster and gives the same bits."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from harness_corruptions.jpeg_codec import colour_through_jpeg, grey_through_jpeg

if TYPE_CHECKING:
    from torch import Tensor

    from harness_corruptions.corruption import Drawn, Parameters

_PILLOW_FROM = 64 * 64
"""Pixels from which Pillow, image by image, is faster on a CPU: a third as fast at 32 px, twice at 224 px."""


def jpeg_compression(x: Tensor, parameters: Parameters, _drawn: Drawn, _compat: bool) -> Tensor:
    """Images, uint8, written as JPEG of a quality and read back, as levels; `parameters`: quality, 1 to 100.

    Three channels are one colour image, its chroma at half the resolution; of any other number each is a grey image.
    """
    quality = int(parameters[0])
    if x.device.type == "cpu" and x.shape[2] * x.shape[3] >= _PILLOW_FROM:
        return through_pillow(x, quality)
    levels = x.float()
    if x.shape[1] == 3:
        return colour_through_jpeg(levels, quality)
    return grey_through_jpeg(levels.flatten(0, 1), quality).view_as(x)


def through_pillow(levels: Tensor, quality: int) -> Tensor:
    """Images (n, C, H, W), uint8, written and read by Pillow, one after the other, on the CPU."""
    import numpy as np
    import torch
    from PIL import Image

    planes = levels.numpy()
    out = np.empty_like(planes)
    # Pillow puts the channels of a colour image together and takes them apart faster than a copy of the tensor does.
    colour = levels.shape[1] == 3
    for image, read in zip(planes, out, strict=True):
        bands = [Image.fromarray(plane) for plane in image]
        for channel, picture in enumerate([Image.merge("RGB", bands)] if colour else bands):
            file = BytesIO()
            picture.save(file, "JPEG", quality=quality)
            found = Image.open(file, formats=("JPEG",))
            for place, band in enumerate(found.split(), start=channel):
                read[place] = np.frombuffer(band.tobytes(), np.uint8).reshape(read[place].shape)
    return torch.from_numpy(out)
