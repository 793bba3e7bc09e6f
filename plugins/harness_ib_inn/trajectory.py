"""The way of an attack through latent space (paper D.3, figures 6, 19 and 20).

Figure 20 fits a plane to the five classes nearest to the way. Five means fill four dimensions, and what a fitted plane
shows of the way may be next to nothing where the means are about equally far apart. Three means lie in a plane: here it
goes through those of the class the way starts in, the class it ends in, and the next nearest, so that the place in it
decides between the three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness_ib_inn.decision_space import FLAT, Plane, fitted_plane


@dataclass(frozen=True)
class Trajectory:
    """The codes of an attack's iterates, by what decides and by how likely they are.

    Attributes:
        classes: int64 (m,): the likeliest class at the start, that at the end, then those that the way passes closest
            to. All classes where all means lie in one plane, otherwise three.
        plane: the plane through their means.
        whole: whether these are all classes.
        path: float64 (T, 2), the codes in the plane.
        means: float64 (m, 2), the means in the plane.
        log_posterior: float64 (T, K), nats.
        log_prob: float64 (T,), log p(x), nats.
    """

    classes: Tensor
    plane: Plane
    whole: bool
    path: Tensor
    means: Tensor
    log_posterior: Tensor
    log_prob: Tensor


def trajectory(codes: Tensor, log_det: Tensor, means: Tensor, log_prior: Tensor) -> Trajectory:
    """The way of an attack.

    Args:
        codes: (T, D), the codes of the iterates in order.
        log_det: (T,), the log-determinants at the iterates, nats; `log_prob` is the density that they belong to.
        means: (K, D), K at least 3.
        log_prior: (K,).
    """
    z, centres = codes.double(), means.double()
    flat = fitted_plane(centres)[1] <= FLAT
    distances = torch.cdist(z, centres, compute_mode="donot_use_mm_for_euclid_dist")
    joint = log_prior.double() - 0.5 * distances.square()
    log_mixture = joint.logsumexp(dim=1)
    ends = joint[[0, -1]].argmax(dim=1).tolist()
    order = list(dict.fromkeys([*ends, *distances.amin(dim=0).argsort().tolist()]))
    classes = torch.tensor(order if flat else order[:3], device=codes.device)
    plane, _ = fitted_plane(centres[classes])
    return Trajectory(
        classes=classes,
        plane=plane,
        whole=len(classes) == len(centres),
        path=plane.coordinates(z),
        means=plane.coordinates(centres[classes]),
        log_posterior=joint - log_mixture[:, None],
        log_prob=log_mixture - 0.5 * z.shape[1] * math.log(2 * math.pi) + log_det.double(),
    )
