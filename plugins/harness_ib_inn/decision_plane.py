"""A latent code seen from the axis through the means of its two likeliest classes (paper 4.2, figure 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import ModelError

TOP_CLASSES = 5
"""Classes whose means span the decision space of figure 3."""


@dataclass(frozen=True)
class DecisionPlane:
    """Codes and class means by their position along the axis and their distance from it.

    Distances are those within the flat space through the means of the `classes`, of dimension `dimension`: all that
    decides between these classes lies in it. Within it, ``along^2 + away^2`` is the squared distance to the first mean.

    Attributes:
        classes: int64 (m,), the likeliest classes, likeliest first.
        distance: between the means of the first two.
        codes: float64 (n, 2), the codes: (along, away), the first mean at (0, 0), the second at (distance, 0).
        means: float64 (m, 2), the classes' means.
        boundary: position along the axis where the first two classes are equally likely, of their priors too.
        radius: of the circle around a mean that holds 90 % of that class's mass within the flat space.
        beyond: float64 (n,), squared distance of each code from that flat space. It is the same for all these classes,
            so it bears on how likely the code is and not on its class; about D - dimension for a typical code.
    """

    classes: Tensor
    dimension: int
    distance: float
    codes: Tensor
    means: Tensor
    boundary: float
    radius: float
    beyond: Tensor


def decision_plane(
    z: Tensor, means: Tensor, log_prior: Tensor, count: int = TOP_CLASSES, mass: float = 0.9
) -> DecisionPlane:
    """The plane of the two classes that are likeliest for the first code.

    Args:
        z: (n, D) codes; the first one chooses the classes.
        means: (K, D), K at least 2.
        log_prior: (K,).
        count: how many of the likeliest classes span the decision space.
        mass: share of a class's mass in its circle.

    Raises:
        ModelError: the two likeliest classes have the same mean.
    """
    code, centres = z.double(), means.double()
    score = log_prior.double() - 0.5 * (code[:1] - centres).square().sum(dim=1)
    classes = score.argsort(descending=True)[: min(count, len(centres))]
    first, chosen = centres[classes[0]], centres[classes]
    if torch.equal(chosen[0], chosen[1]):
        one, other = classes[:2].tolist()
        raise ModelError(f"classes {one} and {other} have the same mean: no axis runs through both")
    basis = _orthonormal(chosen[1:] - first)
    within = (code - first) @ basis.T  # the first axis runs through the second mean
    inside = (chosen - first) @ basis.T
    distance = float(inside[1, 0])
    tilt = float(log_prior[classes[0]] - log_prior[classes[1]])
    beyond = (code - first).square().sum(dim=1) - within.square().sum(dim=1)
    return DecisionPlane(
        classes=classes,
        dimension=len(basis),
        distance=distance,
        codes=_folded(within),
        means=_folded(inside),
        boundary=distance / 2 + tilt / distance,
        radius=mass_radius(len(basis), mass),
        beyond=beyond,
    )


def mass_radius(dimension: int, mass: float = 0.9) -> float:
    """Radius of the ball that holds this share of a standard normal distribution in so many dimensions."""
    from scipy.stats import chi2

    return math.sqrt(float(chi2.ppf(mass, dimension)))


def _folded(points: Tensor) -> Tensor:
    """Position along the first axis, and distance from it (n, 2)."""
    return torch.stack([points[:, 0], points[:, 1:].norm(dim=1)], dim=1)


def _orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal rows that span those of `vectors`, the first along the first of them; dependent ones left out."""
    rows: list[Tensor] = []
    scale = vectors.norm(dim=1).max()
    for vector in vectors:
        rest = vector
        for _ in range(2):  # twice is enough (Giraud et al. 2005): what rounding left of the other rows
            for row in rows:
                rest = rest - (rest @ row) * row
        if rest.norm() > 1e-6 * scale:  # less is the rounding of float32 means
            rows.append(rest / rest.norm())
    return torch.stack(rows)
