"""Linear filters of images with the borders and kernels of the libraries that the original corruptions call.

Each is a product with small matrices, made once for a size: on a CPU that is faster than a convolution for kernels this
wide, borders cost nothing, and an image's result is the same to the bit whatever batch it is in. (On a GPU products of
other shapes may be summed in another order: once in some 10^5 pixels that is a grey level.)
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from harness_corruptions.fields import gaussian_matrix

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, C, H, W), cut at four standard deviations, the border pixels repeated beyond the border.

    As ``skimage.filters.gaussian`` and ``scipy.ndimage.gaussian_filter(mode="nearest")`` do.
    """
    down, across = (gaussian_matrix(size, sigma, 4.0, "nearest", x.dtype, x.device) for size in x.shape[-2:])
    return _both_sides(x, down, across)


def gaussian_to_the_bit(x: Tensor, sigma: float) -> Tensor:
    """The same in float64 (n, C, H, W), summed in SciPy's order: equal to it to the last bit, also in flat regions.

    Needed where fractions are cut off afterwards and the result goes on being used; several times slower.
    """
    import torch

    height, width = x.shape[-2:]
    weights = _gaussian_weights(sigma)
    radius = len(weights) // 2
    x = x.double()
    for axis, size in ((2, height), (3, width)):
        index = torch.arange(-radius, size + radius, device=x.device).clamp_(0, size - 1)
        padded = x.index_select(axis, index)
        x = padded.narrow(axis, radius, size) * weights[radius]
        for k in range(radius):
            # Not add_(..., alpha=...), which may be rounded once instead of twice.
            x += (padded.narrow(axis, k, size) + padded.narrow(axis, 2 * radius - k, size)) * weights[k]
    return x


def _gaussian_weights(sigma: float) -> list[float]:
    import numpy as np

    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    return [float(weight) for weight in weights / weights.sum()]


def disk(x: Tensor, radius: float, alias_blur: float, *, compat: bool) -> Tensor:
    """Mean of (n, C, H, W) over a disk of `radius` pixels, its edge softened by a Gaussian of `alias_blur` pixels.

    Borders are mirrored without repeating the border pixel, as ``cv2.filter2D`` does; an image smaller than the disk
    is mirrored again. Needs images of 2 px at least.

    A filter with a kernel that is symmetric both ways multiplies the cosine coefficients (DCT-I) of an image that is
    mirrored so: two products there, two back, whatever the size of the disk.

    compat: the original's disks of radius 8 and more touch the border of their array, where the softening mirrors part
    of the edge back in: their weights add up to 1.013 (radius 8) and 1.011 (10), and images become brighter. Otherwise
    weights add up to 1.
    """
    height, width = x.shape[-2:]
    left, right = _cosines(height, x.device), _cosines(width, x.device)
    coefficients = _both_sides(x, left, right).mul_(_disk_spectrum(height, width, radius, alias_blur, compat, x.device))
    return _both_sides(coefficients, left, right)


def zoomed_sum(x: Tensor, factors: tuple[float, ...], *, compat: bool) -> Tensor:
    """Sum over `factors` of (n, C, H, W) magnified about its centre, bilinearly: ``scipy.ndimage.zoom(order=1)``.

    `compat`: at some sizes (36 px at factor 1.2, say) SciPy takes the last row and column, which it puts an ulp beyond
    the border, for outside and makes them black.
    """
    height, width = x.shape[-2:]
    total = x.new_zeros(x.shape)
    for factor in factors:
        rows = _zoom(height, factor, compat, x.device)
        columns = _zoom(width, factor, compat, x.device)
        total += _both_sides(x, rows, columns)
    return total


def smear(x: Tensor, radius: int, sigma: float, angle: Tensor, *, compat: bool) -> Tensor:
    """(n, C, H, W) moved along a line, each image in its own direction, as in imagecorruptions 1.1.2.

    The weighted mean of the image and of 2 `radius` copies of it, the i-th moved by i pixels, rounded to whole ones,
    with weights falling as a Gaussian of `sigma` pixels from the first on; border pixels repeated beyond the border.

    Args:
        angle: float64 (n,), degrees; at 0 the copies move left, at 90 up.
        compat: a copy moved by a whole image or more, and all after it, are left out without making up for their
            weight: small images become darker. Otherwise such a copy shows the repeated border.
    """
    import torch

    n, channels, height, width = x.shape
    taps = 2 * radius + 1
    steps = torch.arange(taps, device=x.device, dtype=torch.float64)
    weights = torch.exp(-steps.square() / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(n, taps)
    direction = torch.deg2rad(angle)[:, None]
    up = torch.ceil(steps * torch.sin(direction) - 0.5).long()
    left = torch.ceil(steps * torch.cos(direction) - 0.5).long()
    if compat:
        gone = (up.abs() >= height) | (left.abs() >= width)
        weights = weights * (gone.cumsum(dim=1) == 0)
    up, left = up.clamp(1 - height, height - 1), left.clamp(1 - width, width - 1)  # further on there is border only
    above, below, before, after = (max(0, int(most.max())) for most in (-up, up, -left, left))
    padded = torch.nn.functional.pad(x, (before, after, above, below), mode="replicate").contiguous()
    line = padded.shape[-1]
    # Every run of `width` pixels, as rows of a view: a moved image is a choice of them, copied line by line.
    runs = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    first = torch.arange(n * channels, device=x.device).view(n, channels, 1) * padded[0, 0].numel()
    first = first + torch.arange(height, device=x.device) * line
    start = (above + up) * line + before + left
    scale = weights.to(x.dtype)[:, :, None, None, None]
    total, moved = x.new_zeros(x.shape), x.new_empty(n * channels * height, width)
    for tap in range(taps):
        torch.index_select(runs, 0, (first + start[:, tap, None, None]).flatten(), out=moved)
        total.addcmul_(moved.view_as(x), scale[:, tap])
    return total


def _both_sides(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """left @ x @ right^T for each channel of each image."""
    return left @ (x @ right.T)


@functools.lru_cache(maxsize=16)
def _cosines(size: int, device: torch.device) -> Tensor:
    """(size, size): the cosine transform (DCT-I) of a signal mirrored at both ends, scaled to be its own inverse."""
    import torch

    index = torch.arange(size, dtype=torch.float64)
    ends = torch.ones(size, dtype=torch.float64)
    ends[[0, -1]] = 0.5
    matrix = torch.cos(torch.outer(index, index) * (math.pi / (size - 1))) * ends * math.sqrt(2 / (size - 1))
    return matrix.float().to(device)


@functools.lru_cache(maxsize=32)
def _disk_spectrum(
    height: int, width: int, radius: float, alias_blur: float, compat: bool, device: torch.device
) -> Tensor:
    """(height, width): what a disk multiplies each cosine coefficient by."""
    import torch

    kernel = _disk(radius, alias_blur)
    if not compat:
        kernel = kernel / kernel.sum()
    reach = len(kernel) // 2
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    rows, columns = (
        torch.cos(torch.outer(torch.arange(size, dtype=torch.float64), offsets) * (math.pi / (size - 1)))
        for size in (height, width)
    )
    return (rows @ kernel @ columns.T).float().to(device)


def _disk(radius: float, alias_blur: float) -> Tensor:
    """float64 (k, k): the kernel; k is 17 up to radius 8, where the softened edge of radius 8 is mirrored back in."""
    import torch

    reach, border = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (offsets.square()[:, None] + offsets.square() <= radius**2).double()
    near = torch.arange(-border, border + 1)
    weights = torch.exp(-near.double().square() / (2 * alias_blur**2))
    size = len(offsets)
    pixels = torch.arange(size)[:, None]
    sources = (pixels + near).abs()
    sources = (size - 1) - ((size - 1) - sources).abs()
    soften = torch.zeros(size, size, dtype=torch.float64)
    soften.index_put_((pixels.expand_as(sources), sources), (weights / weights.sum()).expand(size, -1), accumulate=True)
    return soften @ (inside / inside.sum()) @ soften.T


@functools.lru_cache(maxsize=256)
def _zoom(size: int, factor: float, compat: bool, device: torch.device) -> Tensor:
    """(size, size): the middle of a line of pixels, magnified by `factor` and cut to its old length from the start."""
    import torch

    kept = math.ceil(size / factor)
    magnified = round(kept * factor)
    step = (kept - 1) / (magnified - 1)
    place = torch.arange(min(magnified, size), dtype=torch.float64) * step
    below = place.floor().clamp(0, max(kept - 2, 0)).long()
    share = (place - below).clamp(0, 1)
    first = (size - kept) // 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    pixels = torch.arange(len(place))
    matrix[pixels, first + below] = 1 - share
    matrix[pixels, (first + below + 1).clamp_max(size - 1)] += share
    if compat and factor != 1:
        matrix[pixels[place > kept - 1]] = 0
    return matrix.float().to(device)
