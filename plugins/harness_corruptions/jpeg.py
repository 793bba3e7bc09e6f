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
    """Images written as JPEG of a quality and read back, on 8-bit levels; `parameters`: quality, 1 to 100.

    Three channels are one colour image, its chroma at half the resolution; of any other number each is a grey image.
    """
    quality = int(parameters[0])
    levels = (x * 255).round_()
    if x.device.type == "cpu" and x.shape[2] * x.shape[3] >= _PILLOW_FROM:
        levels = through_pillow(levels, quality)
    elif x.shape[1] == 3:
        levels = colour_through_jpeg(levels, quality)
    else:
        levels = grey_through_jpeg(levels.flatten(0, 1), quality).view_as(x)
    return levels.div_(255)


def through_pillow(levels: Tensor, quality: int) -> Tensor:
    """Images (n, C, H, W) of whole numbers 0 to 255 written and read by Pillow, one after the other, on the CPU."""
    import torch
    from PIL import Image

    count, channels, height, width = levels.shape
    small = levels.to(torch.uint8)
    if channels == 3:
        mode, pictures = "RGB", torch.stack(small.unbind(1), dim=-1).numpy()
    else:
        mode, pictures = "L", small.flatten(0, 1).numpy()
    read = []
    for picture in pictures:
        file = BytesIO()
        Image.frombuffer(mode, (width, height), picture, "raw", mode, 0, 1).save(file, "JPEG", quality=quality)
        read.append(Image.open(file, formats=("JPEG",)).tobytes())
    out = torch.frombuffer(bytearray(b"".join(read)), dtype=torch.uint8)
    if channels == 3:
        out = out.view(count, height, width, 3).permute(0, 3, 1, 2).contiguous()
    return out.view(levels.shape).to(levels.dtype)
