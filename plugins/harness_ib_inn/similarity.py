"""How alike two classes are to the model: by the distance of their means alone (paper 4.2 and C.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mean_distances(means: Tensor) -> Tensor:
    """Delta mu, float64 (K, K): Euclidean distances between the class means (K, D)."""
    exact = means.double()
    distances: Tensor = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")
    return distances


def confidence_density(confidence: Tensor, distance: float) -> Tensor:
    """p(c) of the confidence c in [1/2, 1] in the likelier of two classes (eq. 22), float64, of c's shape.

    The paper leaves the normalisation A of eq. 23 as an integral. It is ``Delta mu sqrt(2 pi) exp(Delta mu^2 / 8)``.
    Taken in logarithms, so that near c = 1 and for far classes nothing overflows.

    Args:
        distance: Delta mu > 0, between the means of the two classes.
    """
    c = confidence.double()
    logit = torch.log(c) - torch.log1p(-c)
    log_rho = -1.5 * (torch.log(c) + torch.log1p(-c)) - logit.square() / (2 * distance**2)
    log_a = math.log(distance) + 0.5 * math.log(2 * math.pi) + distance**2 / 8
    return torch.where(c < 1, torch.exp(log_rho - log_a), 0.0)


def expected_confidence(distance: Tensor) -> Tensor:
    """C of eq. 24: the confidence expected in the likelier of two classes, float64 in [1/2, 1], of `distance`'s shape.

    With t the position along the axis through both means, measured from the middle, eq. 24 is the integral over t > 0
    of posterior times mixture, which is the joint density of class 1: C = Phi(Delta mu / 2). So the mean confidence is
    the accuracy that the best decision between the two has; the paper integrates numerically.
    """
    confidence: Tensor = torch.special.ndtr(distance.double() / 2)
    return confidence


def similarity_order(distances: Tensor) -> Tensor:
    """An order of the classes (K,) that puts similar ones side by side, int64.

    Leaves of average-linkage clustering, optimally ordered; the order given where there are fewer than three classes.
    """
    classes = len(distances)
    if classes < 3:
        return torch.arange(classes)
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    condensed = squareform(((distances + distances.T) / 2).cpu().numpy(), checks=False)
    tree = linkage(condensed, method="average")
    return torch.from_numpy(leaves_list(optimal_leaf_ordering(tree, condensed)).astype("int64"))
