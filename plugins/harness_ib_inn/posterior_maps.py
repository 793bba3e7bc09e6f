"""Where in the image a class gets its probability: the latent density, taken apart by place (paper C.3, C.4).

The inverse DCT is orthonormal, so ``|z - mu_y|^2`` is the sum over places (k, l) of ``|w_kl|^2``, where
``w = DCT^-1(z - mu_y)`` (eq. 25, 26). Every map here has the shape (H', W') of the last feature maps, and holds nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

ToSpatial = Callable[[Tensor], Tensor]
"""Latents (N, D) as feature maps (N, C', H', W'), an isometry; float64 in, float64 out."""

CONTRAST = 0.03
"""The hyperparameter of eq. 32."""
_CHUNK = 16_000_000


def class_maps(z: Tensor, means: Tensor, to_spatial: ToSpatial) -> Tensor:
    """log q(w_kl | y) without its constant, ``-|w_kl|^2 / 2``, float64 (B, K, H', W') (eq. 27, 28).

    Args:
        z: (B, D) latents.
        means: (K, D).
    """
    w = to_spatial(z.double())
    step = max(1, _CHUNK // max(1, w.numel()))
    parts = []
    for first in range(0, len(means), step):  # a thousand classes of 150,528 numbers each need not fit at once
        difference = w[:, None] - to_spatial(means[first : first + step].double())
        parts.append(-0.5 * difference.square().sum(dim=2))
    return torch.cat(parts, dim=1)


def likelihood_maps(by_class: Tensor, channels: int) -> Tensor:
    """log q(w_kl | y), the constant ``-C'/2 log(2 pi)`` at every place: each class's map sums to log q(z | y).

    Args:
        by_class: (B, K, H', W'), what `class_maps` gives.
        channels: C' of the feature maps.
    """
    return by_class - 0.5 * channels * math.log(2 * math.pi)


def saliency_maps(by_class: Tensor, log_prior: Tensor) -> Tensor:
    """-log sum_y p(y) q(w_kl | y), float64 (B, H', W') (eq. 29): how much information each place holds.

    Of what `class_maps` gives it is without the constant, as in the paper; of what `likelihood_maps` gives, with it.
    Every place has a mixture of its own, so the sum over places is -log of a product of mixtures: it is -log q(z) for
    one class only, and for several classes it is not.
    """
    return -(by_class + log_prior.to(by_class)[None, :, None, None]).logsumexp(dim=1)


def posterior_maps(by_class: Tensor, log_prior: Tensor) -> Tensor:
    """Q(k, l, y), float64 (B, K, H', W'): each class's map sums to log q(y | x) (eq. 30 to 33).

    The image S_kl that is subtracted is the same for all classes and sums to log S, S = sum_y q(z | y) (the paper's
    "S" in eq. 31 and 32 is its logarithm; the constants cancel and are left out). Of log S the place (k, l) bears the
    share r_kl + 0.03 over the sum of those (eq. 32), r_kl being the saliency scaled to [0, 1] over the image: so what
    is salient comes out bright. The paper says log p(w_kl) in place of the saliency -log p(w_kl); but log S is
    negative, and with such shares the maps would be darkest where the information is, unlike the paper's figures. The
    share is a heuristic, and the sum alone is exact; the difference of two classes' maps has no S_kl in it. A prior
    that is not uniform adds (log p(y) + log K) / (H' W') at every place.

    Args:
        by_class: (B, K, H', W'), what `class_maps` gives.
        log_prior: (K,).
    """
    batch, classes, height, width = by_class.shape
    tilt = (log_prior.to(by_class) + math.log(classes))[None, :, None, None] / (height * width)
    scores = by_class + tilt
    saliency = saliency_maps(by_class, log_prior).flatten(1)
    low, high = saliency.amin(dim=1, keepdim=True), saliency.amax(dim=1, keepdim=True)
    share = (saliency - low) / (high - low).clamp_min(torch.finfo(saliency.dtype).tiny) + CONTRAST
    share = (share / share.sum(dim=1, keepdim=True)).reshape(batch, 1, height, width)
    log_s = scores.sum(dim=(2, 3)).logsumexp(dim=1)
    return scores - log_s[:, None, None, None] * share
