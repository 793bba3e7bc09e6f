"""Pairs of the data's own images: each sample with another one, drawn from the sample's stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from harness.datasets import DatasetSlice
from harness.errors import ThreatError

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
            ThreatError: `pool` is not the data that the batch comes from, or has one image only.
        """
        import torch

        self._check(batch)
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

    def _check(self, batch: Batch) -> None:
        """The pool must hold the batch's images under their ids: here, its first one."""
        first = batch.ids[:1].cpu().numpy()
        known = bool((self.pool.ids == first[0]).any()) and self.pool.facts.shape == tuple(batch.x.shape[1:])
        if not known or not self.pool.load(first)[0].to(batch.x.device).equal(batch.x[:1]):
            raise ThreatError(
                f"sample {int(first[0])} of data set '{self.pool.name}', as the option data opens it, is another image"
                " than the suite's: repeat the suite's dataset table as the option data"
            )
