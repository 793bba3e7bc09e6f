"""Class means in latent space, free where features are mean-pooled, of low rank elsewhere (equation 15)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

_DISTANCE = 3.5
_SMALL = 0.01


class ClassMeans(nn.Module):
    """mu_y = [mu_mean,y, sum_k alpha_yk mu_k] for K classes in a latent space of D = C + D_rest dimensions.

    At first the means of the pooled features lie on a regular simplex with edges of length 3.5, and the rest is small,
    as in the authors' released code.

    Attributes:
        pooled: (K, C), the part that belongs to mean-pooled features.
        weights: alpha, (K, rank).
        prototypes: (rank, D_rest).
    """

    def __init__(self, num_classes: int, pooled: int, rest: int, rank: int, generator: Generator) -> None:
        super().__init__()
        self.pooled = nn.Parameter(_simplex(num_classes, pooled, generator))
        self.weights = nn.Parameter(_SMALL * torch.randn(num_classes, rank, generator=generator))
        self.prototypes = nn.Parameter(_SMALL * torch.randn(rank, rest, generator=generator))

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all classes but these."""
        self.pooled = nn.Parameter(self.pooled.detach()[list(rows)])
        self.weights = nn.Parameter(self.weights.detach()[list(rows)])

    def rest(self) -> Tensor:
        """The low-rank part, (K, D_rest)."""
        return self.weights @ self.prototypes

    def scores(self, z: Tensor) -> Tensor:
        """<z, mu_y> - |mu_y|^2 / 2, (B, K): minus half the squared distances, without |z|^2 / 2, which classes share.

        The D-dimensional means are never formed: the cost is C K + rank (D_rest + K) a sample.
        """
        means, weights, prototypes = (p.to(z.dtype) for p in (self.pooled, self.weights, self.prototypes))
        pooled, rest = z[:, : means.shape[1]], z[:, means.shape[1] :]
        products = pooled @ means.T + (rest @ prototypes.T) @ weights.T
        gram = prototypes @ prototypes.T
        squares = means.square().sum(dim=1) + ((weights @ gram) * weights).sum(dim=1)
        scores: Tensor = products - squares / 2
        return scores


def _simplex(num_classes: int, dimensions: int, generator: Generator) -> Tensor:
    """(K, C): unit vectors of classes, tiled over the dimensions; random directions if there are fewer than K."""
    copies = dimensions // num_classes
    if copies == 0:
        directions = torch.randn(num_classes, dimensions, generator=generator)
        lengths: Tensor = directions.norm(dim=1, keepdim=True)
        return directions * (_DISTANCE / math.sqrt(2)) / lengths
    out = torch.zeros(num_classes, dimensions)
    out[:, : copies * num_classes] = torch.eye(num_classes).repeat(1, copies)
    return out * (_DISTANCE / math.sqrt(2 * copies))
