"""One random stream per sample, whatever batch the sample is in.

Noise is counter-based: Philox4x32-10 (Salmon et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*), keyed by the
seed and the name of the stream, counted by sample id and draw number. The arithmetic is 64-bit integer arithmetic on
tensors, so the bits are the same on every device, and sharding, compaction and order of evaluation change nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words of 32 random bits (held in int64) for each counter.

    Args:
        counter: four broadcastable int64 tensors with values in [0, 2^32).
        key: two integers in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A 32 x 32 bit product wraps into the sign bit of int64; shift and mask recover its high half. The low half is
        # masked once it has been mixed in: what stands above its 32 bits until then is harmless.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = ((p0 >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


@dataclass(frozen=True)
class Draws:
    """The random streams of a batch of samples. Indexes and masks like a tensor: ``draws[still_standing]``.

    Attributes:
        key: what the streams are keyed by beside the sample: the seed and the stream's name.
        ids: int64 (B,), the samples' ids.
        slots: int64 (B,), each sample's row in the batch that the host handed out (model calls are booked to it).
        draw: number of the draw, for expectations over a model's randomness.
    """

    key: tuple[int | str, ...]
    ids: Tensor
    slots: Tensor
    draw: int = 0

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Draws:
        return replace(self, ids=self.ids[index], slots=self.slots[index])

    def stream(self, *parts: int | str) -> Draws:
        """A stream of its own for these samples, such as ``draws.stream("restart", 2)``."""
        return replace(self, key=(*self.key, *parts))

    def numbered(self, draw: int) -> Draws:
        """The same streams at another draw: what a model that is asked twice must be given to answer afresh."""
        return replace(self, draw=draw)

    def bits(self, name: str, number: int, shape: Sequence[int]) -> Tensor:
        """int64 (B, *shape) with 32 uniformly random bits in each entry."""
        import torch

        size = math.prod(shape)
        # int() so that a NumPy integer, whose repr differs, names the same stream.
        parts = [part if isinstance(part, str) else int(part) for part in (*self.key, name, self.draw)]
        text = repr(tuple(parts)).encode()
        words = hashlib.blake2b(text, digest_size=8).digest()
        key = (int.from_bytes(words[:4], "little"), int.from_bytes(words[4:], "little"))
        blocks = torch.arange(-(-size // 4), device=self.ids.device)[None, :]
        low, high = (self.ids & _MASK)[:, None], ((self.ids >> 32) & _MASK)[:, None]
        counter = (blocks, torch.full_like(blocks, number & _MASK), low, high)
        out = torch.stack(philox(counter, key), dim=-1).flatten(1)
        return out[:, :size].reshape(len(self), *shape)

    def uniform(self, name: str, number: int, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """(B, *shape), uniform on [0, 1), a multiple of 2^-24."""
        import torch

        return (self.bits(name, number, shape) >> 8).to(dtype or torch.float32) * 2.0**-24

    def normal(self, name: str, number: int, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """(B, *shape), standard normal (Box-Muller, formed in float64)."""
        import torch

        size = math.prod(shape)
        half = -(-size // 2)
        u = self.bits(name, number, (2, half)).to(torch.float64)
        radius = torch.sqrt(-2.0 * torch.log((u[:, 0] + 0.5) * 2.0**-32))
        angle = (2.0 * math.pi * 2.0**-32) * u[:, 1]
        out = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :size]
        return out.reshape(len(self), *shape).to(dtype or torch.float32)

    def rademacher(self, name: str, number: int, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """(B, *shape), -1 or +1 with equal probability."""
        import torch

        return ((self.bits(name, number, shape) >> 31) * 2 - 1).to(dtype or torch.float32)

    def integers(self, name: str, number: int, shape: Sequence[int], high: int) -> Tensor:
        """int64 (B, *shape), uniform on 0 .. high - 1 (bias below high / 2^32)."""
        return (self.bits(name, number, shape) * high) >> 32


def draws_for(ids: Tensor, seed: int, *stream: int | str) -> Draws:
    """The streams of the samples `ids` (int64, (B,)) under a seed, as a batch whose rows are numbered 0 .. B - 1."""
    import torch

    return Draws(key=(seed, *stream), ids=ids, slots=torch.arange(ids.shape[0], device=ids.device))
