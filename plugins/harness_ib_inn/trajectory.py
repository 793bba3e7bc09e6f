"""The way of an attack through latent space (paper D.3, figures 6, 19 and 20)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness_ib_inn.decision_space import FLAT, Plane, fitted_plane

NEAREST_CLASSES = 5
"""Classes whose means the plane is fitted through, as in figure 20."""


@dataclass(frozen=True)
class Trajectory:
    """The codes of an attack's iterates, by what decides and by how likely they are.

    Attributes:
        classes: int64 (m,), the classes that the way passes closest to, closest first.
        plane: the plane through their means, or fitted to them where they do not lie in one.
        exact: whether they do, so that the position in the plane decides between them.
        path: float64 (T, 2), the codes in the plane.
        means: float64 (m, 2), the means in the plane.
        log_posterior: float64 (T, K), nats.
        log_prob: float64 (T,), log p(x), nats.
    """

    classes: Tensor
    plane: Plane
    exact: bool
    path: Tensor
    means: Tensor
    log_posterior: Tensor
    log_prob: Tensor


def trajectory(
    codes: Tensor, log_det: Tensor, means: Tensor, log_prior: Tensor, count: int = NEAREST_CLASSES
) -> Trajectory:
    """The way of an attack.

    Args:
        codes: (T, D), the codes of the iterates in order.
        log_det: (T,), the log-determinants at the iterates, nats; `log_prob` is the density that they belong to.
        means: (K, D), K at least 3.
        log_prior: (K,).
        count: how many classes are shown, unless all means lie in one plane: then all are.
    """
    z, centres = codes.double(), means.double()
    flat = fitted_plane(centres)[1] <= FLAT
    distances = torch.cdist(z, centres, compute_mode="donot_use_mm_for_euclid_dist")
    joint = log_prior.double() - 0.5 * distances.square()
    log_mixture = joint.logsumexp(dim=1)
    nearest = distances.amin(dim=0).argsort()
    classes = nearest if flat else nearest[: max(3, min(count, len(centres)))]
    plane, _ = fitted_plane(centres[classes])
    return Trajectory(
        classes=classes,
        plane=plane,
        exact=flat,
        path=plane.coordinates(z),
        means=plane.coordinates(centres[classes]),
        log_posterior=joint - log_mixture[:, None],
        log_prob=log_mixture - 0.5 * z.shape[1] * math.log(2 * math.pi) + log_det.double(),
    )
