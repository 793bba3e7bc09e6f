"""What the DCT components of the class means contribute to the decision (paper B.1, figure 12)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_basis(size: int) -> Tensor:
    """The orthonormal DCT-II of `size` points, float64 (frequency, place)."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    place = torch.arange(size, dtype=torch.float64)[None, :]
    basis = math.sqrt(2 / size) * torch.cos(math.pi * frequency * (2 * place + 1) / (2 * size))
    basis[0] /= math.sqrt(2)
    return basis


def components(maps: Tensor) -> Tensor:
    """Feature maps (n, C', H', W') by DCT component, float64 of the same shape: [..., 0, 0] is the pooled mean's.

    The inverse of the model's own inverse DCT. It is worked out from the feature maps, so that it does not depend on
    the order in which the model keeps its latent dimensions.
    """
    down = dct_basis(maps.shape[2]).to(maps.device)
    across = dct_basis(maps.shape[3]).to(maps.device)
    return torch.einsum("ik,nckl,jl->ncij", down, maps.double(), across)


def mean_spread(of_means: Tensor) -> Tensor:
    """For each DCT component, the standard deviation of the means over classes, mean over channels: float64 (H', W').

    Args:
        of_means: (K, C', H', W'), the class means by component.
    """
    return of_means.std(dim=0, correction=0).mean(dim=0)


def accuracy_by_components(of_codes: Tensor, of_means: Tensor, log_prior: Tensor, labels: Tensor) -> Tensor:
    """Accuracy where only some components decide: float64 (H' W',), entry n - 1 for the n of the lowest frequency.

    Components go by i + j, ties by the larger of the two, then by i: the first is the pooled mean, whose entry is the
    accuracy without mu_rest; the last is the accuracy of the model. A component that is left out adds the same to the
    distance to every mean, as if all means were 0 there.

    Args:
        of_codes: (n, C', H', W'), the codes by component.
        of_means: (K, C', H', W').
        log_prior: (K,).
        labels: int64 (n,).
    """
    height, width = of_means.shape[2:]
    order = frequency_order(height, width)
    # |z - mu|^2 less |z|^2, which is the same for all classes
    cross = torch.einsum("ncij,kcij->ijnk", of_codes.double(), of_means.double())
    size = of_means.double().square().sum(dim=1).permute(1, 2, 0)[:, :, None]
    score = cross - size / 2
    rows, columns = [i for i, _ in order], [j for _, j in order]
    by_number = score[rows, columns].cumsum(dim=0) + log_prior.double()
    return (by_number.argmax(dim=2) == labels).double().mean(dim=1)


def frequency_order(height: int, width: int) -> list[tuple[int, int]]:
    """All components (i, j), the lowest frequencies first."""
    every = [(i, j) for i in range(height) for j in range(width)]
    return sorted(every, key=lambda c: (c[0] + c[1], max(c), c[0]))
