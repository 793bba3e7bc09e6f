"""Elastic deformation: a random affine map, then a smooth random displacement of every pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_corruptions.fields import smooth, uniform_field

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness_corruptions.corruption import Drawn, Parameters


def draw_elastic(draws: Draws, number: int, shape: tuple[int, ...], _parameters: Parameters) -> Drawn:
    """``across``, ``down`` (n, H, W) and ``points`` (n, 3, 2), uniform on [-1, 1]."""
    shapes = {"across": shape[1:], "down": shape[1:], "points": (3, 2)}
    return {name: uniform_field(draws, name, number, each) for name, each in shapes.items()}


def elastic_transform(x: Tensor, parameters: Parameters, drawn: Drawn, compat: bool) -> Tensor:
    """Images moved by an affine map and a smoothed random field, bilinear, mirrored at the edges.

    Args:
        parameters: all as shares of the image's side: amplitude of the displacements before smoothing, standard
            deviation of the smoothing, and how far three points that fix the affine map move. Simard et al. 2003.
        compat: the affine map reads at 1/32 pixel, as OpenCV's fixed-point arithmetic did for CIFAR-10-C.
    """
    import torch

    amplitude, sigma, affine = parameters
    height, width = x.shape[2:]
    if affine:
        x = _affine(x, drawn["points"] * (affine * height), compat)
    if amplitude:
        widths = (sigma * height, sigma * width)
        across, down = (smooth(drawn[name], widths, 3, "reflect") for name in ("across", "down"))
        # grid_sample counts from -1 to 1 between the outer edges of the outer pixels.
        scale = 2 * amplitude * height
        grid_x = across * (scale / width) + ((torch.arange(width, device=x.device) + 0.5) * (2 / width) - 1)
        grid_y = down * (scale / height) + ((torch.arange(height, device=x.device) + 0.5) * (2 / height) - 1)[:, None]
        grid = torch.stack([grid_x, grid_y], dim=-1)
        x = torch.nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return x.clamp(0, 1)


def _affine(x: Tensor, moves: Tensor, compat: bool) -> Tensor:
    """Images under the affine map that takes three points around the centre to where `moves` (n, 3, 2) puts them."""
    import torch

    height, width = x.shape[2:]
    cx, cy, reach = width // 2, height // 2, min(height, width) // 3
    corners = [[cx + reach, cy + reach], [cx + reach, cy - reach], [cx - reach, cy - reach]]
    before = torch.tensor(corners, dtype=torch.float64, device=x.device)
    after = before + moves.double()
    homogeneous = torch.cat([after, torch.ones_like(after[..., :1])], dim=-1)
    # Each pixel of the result asks where it came from, so the map is solved backwards: (n, 3, 2).
    back = torch.linalg.solve(homogeneous, before.expand_as(after))
    columns = torch.arange(width, dtype=torch.float64, device=x.device)
    rows = torch.arange(height, dtype=torch.float64, device=x.device)
    from_columns = columns[None, :, None] * back[:, None, 0]  # (n, W, 2)
    from_rows = rows[None, :, None] * back[:, None, 1] + back[:, None, 2]  # (n, H, 2)
    if compat:
        # Both parts in 1/1024 pixel, their sum to the nearest 1/32.
        whole = (from_rows * 1024).round()[:, :, None] + (from_columns * 1024).round()[:, None]
        source = ((whole + 16) / 32).floor() / 32
    else:
        source = from_rows[:, :, None] + from_columns[:, None]
    # Mirrored about the centres of the outer pixels (d c b | a b c d | c b a), which align_corners means.
    last = torch.tensor([width - 1, height - 1], dtype=torch.float64, device=x.device)
    grid = (source * (2 / last) - 1).to(x.dtype)
    return torch.nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=True)
