"""Fog: a plasma fractal laid over the image, and the image's range kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_corruptions.fields import uniform_field

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness_corruptions.corruption import Drawn, Parameters


def plasma_side(height: int, width: int) -> int:
    """Side of the fractal for an image: the least power of two that covers it."""
    return 1 << (max(height, width) - 1).bit_length()


def draw_fog(draws: Draws, number: int, shape: tuple[int, ...], _parameters: Parameters) -> Drawn:
    """``wibbles`` (n, side^2 - 1), uniform on [-1, 1): what `plasma` adds to its means, coarsest level first."""
    side = plasma_side(*shape[1:])
    return {"wibbles": uniform_field(draws, "wibbles", number, (side * side - 1,))}


def plasma(wibbles: Tensor, side: int, decay: float) -> Tensor:
    """Maps (n, side, side) from 0 to 1 that tile the plane, by diamonds and squares (Fournier et al. 1982).

    From one point, each level puts a point in the middle of every square and then of every edge: the mean of its four
    neighbours and a random amount, whose size is divided by decay^2 from level to level. `wibbles` hold, level by
    level, the amounts of the squares' middles, of the horizontal edges and of the vertical ones.
    """
    import torch

    count = wibbles.shape[0]
    points = wibbles.new_zeros(count, 1, 1)
    amount, start, size = 1.0, 0, 1
    while size < side:
        # A quarter, as the four neighbours are averaged. The common scale falls out at the end.
        random = (wibbles[:, start : start + 3 * size * size] * amount).view(count, 3, size, size)
        right, below = points.roll(-1, 2), points.roll(-1, 1)
        middles = (points + below).add_(right).add_(below.roll(-1, 2)).mul_(0.25).add_(random[:, 0])
        horizontal = (middles + middles.roll(1, 1)).add_(points).add_(right).mul_(0.25).add_(random[:, 1])
        vertical = (middles + middles.roll(1, 2)).add_(points).add_(below).mul_(0.25).add_(random[:, 2])
        rows = torch.stack([torch.stack([points, horizontal], dim=-1), torch.stack([vertical, middles], dim=-1)], dim=2)
        start += 3 * size * size
        size *= 2
        amount /= decay * decay
        points = rows.view(count, size, size)
    low, high = points.amin(dim=(1, 2), keepdim=True), points.amax(dim=(1, 2), keepdim=True)
    return (points - low).div_(high - low)


def fog(x: Tensor, parameters: Parameters, drawn: Drawn, _compat: bool) -> Tensor:
    """(x + c * plasma) * m / (m + c), m being the image's largest value; `parameters`: c and the plasma's decay.

    A black image stays black. The map is as large as the image needs; ImageNet-C's own was 256, CIFAR-10-C's 32.
    """
    c, decay = parameters
    height, width = x.shape[2:]
    haze = plasma(drawn["wibbles"], plasma_side(height, width), decay)[:, None, :height, :width]
    largest = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + c * haze).mul_(largest / (largest + c)).clamp_(0, 1)
