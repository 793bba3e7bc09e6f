"""Synthetic latents: what the explanations are made of, without a trained network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


def cosine_basis(size: int) -> Tensor:
    """The orthonormal DCT-II, made by scipy's definition and not by the plugin's."""
    import numpy as np
    from scipy.fft import dct

    return torch.from_numpy(dct(np.eye(size), norm="ortho", axis=0))


@dataclass(frozen=True)
class Latents:
    """Codes and means whose last feature maps are (C', H', W')."""

    z: Tensor
    means: Tensor
    log_prior: Tensor
    shape: tuple[int, int, int]

    def to_spatial(self, z: Tensor) -> Tensor:
        """The inverse orthonormal DCT of latents kept channel by channel."""
        channels, height, width = self.shape
        by_component = z.double().reshape(-1, channels, height, width)
        return torch.einsum("ik,ncij,jl->nckl", cosine_basis(height), by_component, cosine_basis(width))

    def log_likelihood(self) -> Tensor:
        """log q(z | y), float64 (B, K), by its definition."""
        normal = torch.distributions.Normal(self.means.double(), 1.0)
        return normal.log_prob(self.z.double()[:, None]).sum(dim=2)

    def log_posterior(self) -> Tensor:
        return (self.log_likelihood() + self.log_prior.double()).log_softmax(dim=1)


def make_latents(
    seed: int, batch: int = 5, classes: int = 7, shape: tuple[int, int, int] = (6, 3, 4), tilted: bool = True
) -> Latents:
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    means = 0.7 * torch.randn(classes, size, generator=generator)
    z = means[torch.arange(batch) % classes] + torch.randn(batch, size, generator=generator)
    prior = torch.randn(classes, generator=generator) if tilted else torch.zeros(classes)
    return Latents(z, means, prior.log_softmax(dim=0), shape)


@pytest.fixture
def latents() -> type[Latents]:
    """Makes synthetic latents: ``latents.make(seed, ...)``."""

    class Maker(Latents):
        make = staticmethod(make_latents)

    return Maker
