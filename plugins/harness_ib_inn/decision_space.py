"""The whole decision space of a model whose class means lie in one plane (paper C.1, figure 15).

For such a model the position in the plane decides between the classes alone: what lies outside adds the same to the
distance to every mean. For any other model it does not, and a projection of its means would show a decision that the
model does not make; `plane_of` refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import ModelError

FLAT = 1e-4
"""How far means may lie off a plane, of their largest extent: what float32 leaves of one."""


@dataclass(frozen=True)
class Plane:
    """A plane in latent space.

    Attributes:
        origin: float64 (D,), a point of it.
        basis: float64 (2, D), orthonormal.
    """

    origin: Tensor
    basis: Tensor

    def coordinates(self, z: Tensor) -> Tensor:
        """float64 (n, 2): where the codes (n, D) lie, seen along the normal of the plane."""
        return (z.double() - self.origin) @ self.basis.T


def plane_of(means: Tensor) -> Plane:
    """The plane in which the means (K, D) of at least three classes lie.

    Raises:
        ModelError: they do not lie in a plane.
    """
    plane, left = fitted_plane(means)
    if left > FLAT:
        raise ModelError(
            f"the class means lie off their best plane by {left:.2g} of their extent, so there is no 2D decision space:"
            " fine-tune the model for it (training option plane=true, on data of the chosen classes)"
        )
    return plane


def fitted_plane(means: Tensor) -> tuple[Plane, float]:
    """The plane nearest to the means (K, D), K at least 3, in squares; and how far they lie off it.

    That is the third singular value of the centred means over the first: 0 for means in a plane.
    """
    exact = means.double()
    origin = exact.mean(dim=0)
    _, extent, directions = torch.linalg.svd(exact - origin, full_matrices=False)
    # Signs of singular vectors are free; fixed here, so that two pictures of one model look alike.
    basis = directions[:2]
    basis = basis * basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)).sign()
    left = float(extent[2] / extent[0]) if len(extent) > 2 and float(extent[0]) > 0 else 0.0
    return Plane(origin, basis), left


def cells(centres: Tensor, log_prior: Tensor, bounds: tuple[float, float, float, float]) -> list[Tensor]:
    """Where in a rectangle each class is the likeliest: one convex polygon (n_k, 2) a class, float64, empty if nowhere.

    Of a uniform prior these are the Voronoi cells of the centres; a prior moves each border towards the rarer class.

    Args:
        centres: (K, 2), positions of the means in the plane.
        log_prior: (K,).
        bounds: left, right, bottom, top.
    """
    left, right, bottom, top = bounds
    corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
    places: list[list[float]] = centres.double().tolist()
    prior: list[float] = log_prior.double().tolist()
    found = []
    for own, (a, b) in enumerate(places):
        polygon: list[tuple[float, float]] = list(corners)
        for other, (c, d) in enumerate(places):
            if other != own and polygon:
                # log p(own) - |p - own|^2 / 2 >= the same of the other, which is linear in p
                offset = prior[own] - prior[other] - (a * a + b * b - c * c - d * d) / 2
                polygon = _clip(polygon, (a - c, b - d), offset)
        found.append(torch.tensor(polygon, dtype=torch.float64).reshape(-1, 2))
    return found


def _clip(
    polygon: Sequence[tuple[float, float]], normal: tuple[float, float], offset: float
) -> list[tuple[float, float]]:
    """The part of a convex polygon where normal . p + offset >= 0 (Sutherland and Hodgman 1974)."""
    heights = [normal[0] * x + normal[1] * y + offset for x, y in polygon]
    kept: list[tuple[float, float]] = []
    for i, (point, height) in enumerate(zip(polygon, heights, strict=True)):
        before, last = polygon[i - 1], heights[i - 1]
        if (height >= 0) != (last >= 0):
            share = last / (last - height)
            kept.append((before[0] + share * (point[0] - before[0]), before[1] + share * (point[1] - before[1])))
        if height >= 0:
            kept.append(point)
    return kept
