"""Which pixel ends up where when pixels change places one after another, for all images at once.

Glass blur goes through the pixels of an image from the last to the first, and each changes places with a neighbour that
may have moved already. The order of the moves matters, so they cannot simply be made at once. But where a pixel came
from is a chain of moves, and a chain of length L is followed in log2(L) steps by letting every link point to where the
link it points to points (pointer jumping). Chains are short: half of all moves go to a pixel that has not moved yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def origins(dy: Tensor, dx: Tensor, size: tuple[int, int], reach: int, *, copies: bool) -> Tensor:
    """int64 (n, H * W): for each pixel the one it shows in the end, both counted row by row.

    Args:
        dy, dx: int64 (n, rounds, H - 2 reach, W - 2 reach) in [-reach, reach): the neighbour of each pixel of rows
            reach + 1 .. H - reach and columns reach + 1 .. W - reach, which are the ones that are gone through.
        copies: a pixel takes its neighbour's value and the neighbour keeps it, instead of changing places.
    """
    import torch

    height, width = size
    n, rounds = dy.shape[:2]
    origin = torch.arange(height * width, device=dy.device).expand(n, -1)
    if dy.numel() == 0:
        return origin
    one_round = _after_copies if copies else _after_swaps
    for r in range(rounds):
        origin = origin.gather(1, one_round(dy[:, r], dx[:, r], size, reach))
    return origin


def _after_copies(dy: Tensor, dx: Tensor, size: tuple[int, int], reach: int) -> Tensor:
    """One round in which values are copied: a pixel shows its neighbour, as that is when the pixel's turn comes.

    Links: pixel p points to its neighbour q where q had its turn before, and else to N + q, q as it was at first.
    """
    import torch

    height, width = size
    n, pixels = len(dy), height * width
    rows, columns = _visited(height, reach), _visited(width, reach)
    number = torch.arange(pixels, device=dy.device).view(height, width)
    here = number[rows, columns]
    neighbour = here + dy * width + dx
    y = torch.arange(height, device=dy.device)[rows, None] + dy
    x = torch.arange(width, device=dy.device)[columns] + dx
    visited = (y >= rows.start) & (y < rows.stop) & (x >= columns.start) & (x < columns.stop)
    links = (number + pixels).expand(n, height, width).clone()
    links[:, rows, columns] = torch.where(visited & (neighbour > here), neighbour, neighbour + pixels)
    return _ends(links.flatten(1)) - pixels


def _after_swaps(dy: Tensor, dx: Tensor, size: tuple[int, int], reach: int) -> Tensor:
    """One round of true swaps.

    The turn of pixel p leaves two values behind: one in p, node p, and one in its neighbour, node N + p. Each is what
    the other place held before, which is what the last earlier turn that touched that place left there, or node 2 N + q
    where none did. A place is touched by its own turn and by those of the (2 reach)^2 pixels around it; these are gone
    through in the order of their turns, for all places at once, while `last` keeps who touched a place last.
    """
    import torch

    height, width = size
    n, pixels = len(dy), height * width
    rows, columns = _visited(height, reach), _visited(width, reach)
    number = torch.arange(pixels, device=dy.device).view(height, width)
    last = (number + 2 * pixels).expand(n, height, width).clone()
    links = last.repeat(1, 2, 1).view(n, 2, height, width)
    kept, given = links[:, 0, rows, columns], links[:, 1, rows, columns]
    here = number[rows, columns]
    move = dy * (2 * reach) + dx
    for y in range(-reach, reach):
        for x in range(-reach, reach):
            chosen = move == y * (2 * reach) + x
            there = last[:, rows.start + y : rows.stop + y, columns.start + x : columns.stop + x]
            kept.copy_(torch.where(chosen, there, kept))
            if (y, x) == (0, 0):
                given.copy_(there)
                there.copy_(here.expand_as(there))
            else:
                there.copy_(torch.where(chosen, here + pixels, there))
    ends = torch.cat([_ends(links.flatten(1)), (number + 2 * pixels).flatten().expand(n, -1)], dim=1)
    return ends.gather(1, last.flatten(1)) - 2 * pixels


def _visited(size: int, reach: int) -> slice:
    return slice(reach + 1, size - reach + 1)


def _ends(links: Tensor) -> Tensor:
    """Where the chains of links (n, M) end: at numbers from M on, which point nowhere."""
    import torch

    count = links.shape[1]
    while bool((links < count).any()):
        links = torch.where(links < count, links.gather(1, links.clamp_max(count - 1)), links)
    return links
