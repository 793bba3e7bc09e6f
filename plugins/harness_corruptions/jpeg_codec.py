"""What JPEG loses, as batched tensor arithmetic that gives bit for bit what libjpeg's default methods give.

A JPEG file loses nothing but in colour conversion, halved chroma, the two cosine transforms and quantisation (ITU-T
T.81), so these are all there is to compute; the entropy code in between is left out. The integer arithmetic is that of
libjpeg: its accurate transform (jfdctint, jidctint; Loeffler, Ligtenberg & Moschytz 1989) with 13-bit constants, its
colour tables of 16 bits, its triangular ("fancy") upsampling. Whole numbers in floating point are exact, and products
of matrices are fastest there: float32 where they stay below 2^24, float64 in the transforms.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Annex K of T.81: the tables of quality 50.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)


def grey_through_jpeg(levels: Tensor, quality: int) -> Tensor:
    """Planes (n, H, W) of whole numbers 0 to 255, float32, as a grey JPEG of the quality shows them."""
    height, width = levels.shape[1:]
    return _quantised(_to_blocks(levels), quality, chroma=False)[:, :height, :width]


def colour_through_jpeg(levels: Tensor, quality: int) -> Tensor:
    """Images (n, 3, H, W) of whole numbers 0 to 255, float32, as a JPEG of the quality shows them, 4:2:0."""
    import torch

    height, width = levels.shape[2:]
    red, green, blue = levels.unbind(1)
    # Sums reach 2^24 - 1 and no further: exact.
    y = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).div_(65536).floor_()
    offset = 128 * 65536 + 32767
    cb = (blue * 32768).add_(green, alpha=-21709).add_(red, alpha=-11059).add_(offset).div_(65536).floor_()
    cr = (red * 32768).add_(green, alpha=-27439).add_(blue, alpha=-5329).add_(offset).div_(65536).floor_()
    y = _quantised(_to_blocks(y), quality, chroma=False)[:, :height, :width]
    chroma = _quantised(_to_blocks(_halved(torch.cat([cb, cr]))), quality, chroma=True)
    chroma = _doubled(chroma[:, : -(-height // 2), : -(-width // 2)])[:, :height, :width].sub_(128)
    cb, cr = chroma.chunk(2)
    red = (cr * 91881).add_(32768).div_(65536).floor_().add_(y)
    green = (cb * -22554).add_(cr, alpha=-46802).add_(32768).div_(65536).floor_().add_(y)
    blue = (cb * 116130).add_(32768).div_(65536).floor_().add_(y)
    return torch.stack([red, green, blue], dim=1).clamp_(0, 255)


def quantisation_table(quality: int, chroma: bool, device: torch.device) -> Tensor:
    """Steps (8, 8), float64, of a quality from 1 to 100: the table of quality 50 scaled, 1 to 255."""
    import torch

    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor(_CHROMINANCE if chroma else _LUMINANCE, device=device)
    return ((base * scale + 50) // 100).clamp(1, 255).double()


# The transform's rows, frequencies 0 to 7, in units of 2^-13: sqrt(8) times the orthonormal cosine transform. Each is
# given for samples 0 to 3; 4 to 7 mirror them, with the opposite sign for odd frequencies. Sums of libjpeg's rounded
# constants, hence pairs such as 10703 and 10704. The inverse is the transpose.
_HALVES = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)


@functools.cache
def _transform(device: torch.device) -> Tensor:
    import torch

    rows = [half + tuple((-1) ** k * w for w in reversed(half)) for k, half in enumerate(_HALVES)]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def _quantised(blocks: Tensor, quality: int, chroma: bool) -> Tensor:
    """Planes (n, H, W), sides multiples of 8, transformed, quantised and back: whole numbers 0 to 255, float32."""
    count, height, width = blocks.shape
    transform = _transform(blocks.device)
    steps = quantisation_table(quality, chroma, blocks.device)
    # Each transform rounds to multiples of 2^-2 in between. Rows first, then columns; back the other way round.
    x = (blocks.double() - 128).view(-1, 8) @ (transform.T / 2**11)
    x = x.add_(0.5).floor_().view(-1, 8, width)
    x = _down(transform / 2**15, x).add_(0.5).floor_()
    x = x.view(-1, 8, width // 8, 8)
    ratio = x / (steps * 8)[:, None]
    # To the nearest whole number, halves away from zero.
    x = ratio.abs().add_(0.5).floor_().copysign_(ratio).mul_(steps[:, None]).view(-1, 8, width)
    x = _down(transform.T / 2**11, x).add_(0.5).floor_()
    x = x.view(-1, 8) @ (transform / 2**18)
    return x.add_(128.5).floor_().clamp_(0, 255).float().view(count, height, width)


def _down(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix (8, 8) times the columns of strips (m, 8, W)."""
    import torch

    return torch.bmm(matrix.expand(len(x), 8, 8), x)


def _to_blocks(plane: Tensor) -> Tensor:
    """Planes (n, H, W) continued to multiples of 8 by repeating the last row and column."""
    from torch.nn.functional import pad

    height, width = plane.shape[1:]
    if height % 8 == 0 and width % 8 == 0:
        return plane
    return pad(plane[None], (0, -width % 8, 0, -height % 8), mode="replicate")[0]


def _halved(plane: Tensor) -> Tensor:
    """Planes (n, H, W) at half the resolution: means of 2 x 2, halves rounded down and up in turn along a row.

    A row or column beyond an odd side repeats the last.
    """
    import torch
    from torch.nn.functional import pad

    height, width = plane.shape[1:]
    # As many columns as whole blocks need: their rounding alternates, so they are made here, not repeated later.
    plane = pad(plane[None], (0, -width % 16, 0, height % 2), mode="replicate")[0]
    total = (plane[:, 0::2, 0::2] + plane[:, 0::2, 1::2]).add_(plane[:, 1::2, 0::2]).add_(plane[:, 1::2, 1::2])
    bias = 1.0 + torch.arange(total.shape[2], device=plane.device) % 2
    return total.add_(bias).div_(4).floor_()


def _doubled(plane: Tensor) -> Tensor:
    """Planes (n, h, w) of whole numbers at twice the resolution: 3/4 of the nearer and 1/4 of the further neighbour."""
    import torch
    from torch.nn.functional import pad

    height, width = plane.shape[1:]
    edged = pad(plane[None], (1, 1, 1, 1), mode="replicate")[0]
    near = edged[:, 1:-1] * 3
    rows = torch.stack([near + edged[:, :-2], near + edged[:, 2:]], dim=2).view(-1, 2 * height, width + 2)
    near = rows[:, :, 1:-1] * 3
    left = (near + rows[:, :, :-2]).add_(8).div_(16).floor_()
    right = (near + rows[:, :, 2:]).add_(7).div_(16).floor_()
    return torch.stack([left, right], dim=3).view(-1, 2 * height, 2 * width)
