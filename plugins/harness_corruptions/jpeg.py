"""JPEG compression through Pillow, image by image on the CPU."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness_corruptions.corruption import Drawn, Parameters


def jpeg_compression(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:
    """Images written as JPEG of a quality and read back; `parameters`: quality, 1 to 100.

    Three channels are one colour image, its chroma at half the resolution; of any other number each is a grey image.
    """
    import numpy as np
    import torch
    from PIL import Image

    (quality,) = parameters
    levels = (x * 255).round_().to(torch.uint8)
    if x.shape[1] == 3:
        pictures = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    else:
        pictures = levels.flatten(0, 1).cpu().numpy()
    out = np.empty_like(pictures)
    for number, picture in enumerate(pictures):
        file = BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=int(quality))
        out[number] = Image.open(file)
    back = torch.from_numpy(out).to(x.device)
    back = back.permute(0, 3, 1, 2) if x.shape[1] == 3 else back.view_as(levels)
    return back.to(x.dtype).div_(255)
