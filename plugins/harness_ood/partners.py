"""Pairs of the data's own images: each sample with another one, drawn from the sample's stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from harness.datasets import DatasetSlice
from harness.errors import ThreatError
from harness.threats import ThreatContext

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness.threats import Batch

STREAM = "partner"


class Pairs(NamedTuple):
    """The partners of a batch: their images, float32 (B, C, H, W), and sample ids, int64 (B,)."""

    x: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Partners:
    """Pairs images with others of `pool`, any but themselves, each as likely, whatever the suite's limit.

    A sample has the same partner in every batch, run and threat under one seed and threat name.
    """

    pool: DatasetSlice

    def of(self, batch: Batch) -> Pairs:
        """
        Raises:
            ThreatError: there is one image only.
        """
        import torch

        ids = self._ids(batch.draws)
        x, _ = self.pool.load(ids.cpu().numpy())
        return Pairs(x.to(batch.x.device), torch.as_tensor(ids, device=batch.ids.device))

    def _ids(self, draws: Draws) -> Tensor:
        import torch

        pool = torch.from_numpy(self.pool.ids).to(draws.ids.device)
        if len(pool) < 2:
            raise ThreatError(f"data set '{self.pool.name}' has one image: there is none to pair it with")
        own = torch.searchsorted(pool, draws.ids)
        drawn = draws.integers(STREAM, 0, (), len(pool) - 1)
        return pool[drawn + (drawn >= own)]


def partners_of(context: ThreatContext) -> Partners:
    """Pairs the suite's images with each other: all those of the classes that it keeps, whatever its limit.

    Raises:
        ThreatError: outside the engine, where nobody says what the suite's images are.
    """
    if context.open_own is None:
        raise ThreatError("pairs of images need the suite's data: ThreatContext.open_own is None")
    own = context.open_own()
    return Partners(DatasetSlice(own.name, own.dataset, replace(own.spec, limit=None)))
