"""Reading samples from the middle of a file, by offset.

Plain reads, not a memory map: mapped pages count as resident memory and would grow with the samples visited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.datasets import Ints
from harness.errors import HarnessError

if TYPE_CHECKING:
    from torch import Tensor

_PIECE_BYTES = 1 << 17


@dataclass(frozen=True)
class RowFile:
    """`count` arrays of one type and shape, one after the other from byte `offset` of a file.

    `origin` is the file the user knows, named in errors (the file read may be a copy in the cache).
    """

    path: Path
    offset: int
    count: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    origin: Path

    def __post_init__(self) -> None:
        size = self.path.stat().st_size
        needed = self.offset + self.count * self.row_bytes
        if size < needed:
            copy = "" if self.path == self.origin else f" (its copy {self.path}; delete that)"
            raise HarnessError(f"{self.origin}: is truncated{copy}: {size:,} bytes where {needed:,} are needed")

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, index: Ints) -> NDArray[Any]:
        """The rows of these indices, (B, *shape), in native byte order.

        Raises:
            HarnessError: an index out of range, or a file that shrank.
        """
        index = checked(index, self.count, self.origin)
        out = np.empty((index.size, *self.shape), self.dtype)
        view = out.reshape(-1).view(np.uint8)
        breaks = np.flatnonzero(np.diff(index) != 1) + 1
        runs = np.split(index, breaks) if index.size else []  # of consecutive rows, one read each
        spans = [(self.offset + int(run[0]) * self.row_bytes, run.size * self.row_bytes) for run in runs]
        _read_spans(self.path, self.origin, spans, view)
        return out.astype(self.dtype.newbyteorder("="), copy=False)


def read_spans(path: Path, origin: Path, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of each (offset, length) of a file.

    Raises:
        HarnessError: the file ends before a span does.
    """
    out = np.empty(sum(length for _, length in spans), np.uint8)
    _read_spans(path, origin, spans, out)
    ends = np.cumsum([length for _, length in spans])
    return [out[end - length : end].tobytes() for end, (_, length) in zip(ends.tolist(), spans, strict=True)]


def _read_spans(path: Path, origin: Path, spans: Sequence[tuple[int, int]], out: NDArray[np.uint8]) -> None:
    buffer, filled = out.data, 0
    try:
        with path.open("rb", buffering=0) as file:
            for offset, length in spans:
                file.seek(offset)
                end = filled + length
                while filled < end:
                    got = file.readinto(buffer[filled:end])
                    if not got:
                        raise HarnessError(f"{origin}: is truncated: it ends before byte {offset + length:,}")
                    filled += got
    except OSError as error:
        raise HarnessError(f"{origin}: cannot be read ({path}): {error.strerror or error}") from error


def checked(index: Ints, count: int, origin: Path | str) -> Ints:
    """`index` as int64 (B,), every entry in [0, count)."""
    index = np.asarray(index, dtype=np.int64)
    if index.size and not (index.min() >= 0 and index.max() < count):
        bad = int(index[(index < 0) | (index >= count)][0])
        raise HarnessError(f"{origin}: has samples 0 to {count - 1}, not {bad}")
    return index


def check_labels(labels: NDArray[Any], classes: int, origin: Path) -> Ints:
    """`labels` as int64 (N,).

    Raises:
        HarnessError: one is outside [0, classes); the text names the sample and the file.
    """
    out = labels.astype(np.int64)
    wrong = np.flatnonzero((out < 0) | (out >= classes))
    if wrong.size:
        raise HarnessError(
            f"{origin}: sample {wrong[0]} has label {out[wrong[0]]}, but the {classes} classes are 0 to {classes - 1}"
        )
    return out


def to_tensor(read: Callable[[Ints], NDArray[Any]], index: Ints, shape: tuple[int, int, int], levels: int) -> Tensor:
    """Images as the harness wants them, read and converted a small piece at a time: only the result is large.

    Args:
        read: gives the pixels of an index, (b, H, W) or (b, H, W, C); integers 0 to `levels` - 1, or floats in [0, 1].
        shape: (C, H, W).

    Returns:
        float32 (B, C, H, W) in [0, 1].
    """
    import torch

    index = np.asarray(index, dtype=np.int64)
    out = torch.empty((index.size, *shape), dtype=torch.float32)
    step = max(1, _PIECE_BYTES // int(np.prod(shape)))
    for start in range(0, index.size, step):
        pixels = read(index[start : start + step])
        images = torch.from_numpy(pixels[..., np.newaxis] if pixels.ndim == 3 else pixels).permute(0, 3, 1, 2)
        piece = out[start : start + step].copy_(images)
        if not images.is_floating_point():
            piece.div_(levels - 1)
    return out
