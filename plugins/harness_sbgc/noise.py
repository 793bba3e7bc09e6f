"""The random numbers behind a likelihood: dequantisation, probes, and the draws of the surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.randomness import Draws, draws_for


@dataclass(frozen=True)
class StreamNoise:
    """Noise from one stream a sample, or from a single stream for all of them. The classes share it.

    Attributes:
        draws: the streams, of B samples or of one.
        samples: B.
        shape: (C, H, W).
        count: probes.
        gaussian: probes are normal instead of Rademacher.
    """

    draws: Draws
    samples: int
    shape: Sequence[int]
    count: int
    gaussian: bool

    def dequantisation(self) -> Tensor:
        """(B, C, H, W), uniform on [0, 1)."""
        return self._each(self.draws.uniform("dequantisation", 0, self.shape))

    def probes(self, number: int) -> Tensor:
        """(B, n, C, H, W), entries of mean 0 and variance 1: the probes of evaluation `number`."""
        draw = self.draws.normal if self.gaussian else self.draws.rademacher
        return self._each(draw("probe", number, (self.count, *self.shape)))

    def diffusion(self, number: int) -> tuple[Tensor, Tensor]:
        """Draw `number` of the denoising loss: a fraction in [0, 1) (B,), and standard normal noise (B, C, H, W)."""
        fraction = self.draws.uniform("time", number, ())
        return self._each(fraction), self._each(self.draws.normal("noise", number, self.shape))

    def _each(self, drawn: Tensor) -> Tensor:
        return drawn if len(drawn) == self.samples else drawn.expand(self.samples, *drawn.shape[1:])


def fixed_stream(seed: int, device: torch.device) -> Draws:
    """The one stream of a deterministic model."""
    return draws_for(torch.zeros(1, dtype=torch.int64, device=device), seed, "sbgc")
