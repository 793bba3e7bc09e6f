"""The one place where images in [0, 1] meet the scale [-1, 1] that diffusion works on.

v = 2 x - 1, so a density of v is one of x after p(x) = 2^D p(v): D ln 2 nats are added, and bits per dimension
(`harness.models.bits_per_dim`) then come out as if the model had worked on [0, 1].
"""

from __future__ import annotations

import math

from torch import Tensor


def to_scaled(x: Tensor) -> Tensor:
    """Images in [0, 1] on the scale [-1, 1]."""
    return 2 * x - 1


def to_image(v: Tensor) -> Tensor:
    """The inverse of `to_scaled`; not clamped."""
    return (v + 1) / 2


def log_prob_of_image(log_prob: Tensor, dimensions: int) -> Tensor:
    """(B,) nats with respect to x in [0, 1], from nats with respect to v in [-1, 1]."""
    return log_prob + dimensions * math.log(2)


def dequantise(x: Tensor, levels: int, uniform: Tensor) -> Tensor:
    """Grey level k of `levels`, held as k / (levels - 1), spread over its bin: (k + u) / levels, in [0, 1).

    Then -log p(x) / (D ln 2) + log2(levels) bounds the bits per dimension of the grey levels themselves (Theis et al.
    2016, *A note on the evaluation of generative models*, section 3.1). Differentiable in `x`.

    Args:
        uniform: noise in [0, 1) of the shape of `x`; 0.5 everywhere gives the middles of the bins.
    """
    return (x * (levels - 1) + uniform) / levels


def quantise(x: Tensor, levels: int) -> Tensor:
    """The inverse of `dequantise`: the grey level in whose bin x lies, as k / (levels - 1); ends are clamped."""
    return (x * levels).floor().clamp(0, levels - 1) / (levels - 1)
