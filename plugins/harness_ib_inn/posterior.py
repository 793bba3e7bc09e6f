"""The posterior heat map: a class's log-posterior split over the image (section 4.2, appendix C.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from harness_ib_inn.model import IBINN

_FLOOR = 0.03  # equation 32


def posterior_heatmap(model: IBINN, z: Tensor, y: Tensor) -> Tensor:
    """Q(k, l, y) of equation 31, float64 (B, H', W'), whose sum over (k, l) is log q(y | x).

    With a class prior that is not uniform its logarithm is spread evenly over the locations, so that the sum still holds.

    Args:
        z: latent vectors (B, D).
        y: classes, int64 (B,).
    """
    maps = model.to_spatial(z.double())
    means = model.to_spatial(model.means.double())
    places = maps.shape[2] * maps.shape[3]
    products = torch.einsum("bchw,kchw->bkhw", maps, means)
    squares = maps.square().sum(dim=1)[:, None] + means.square().sum(dim=1)[None]
    by_class = products - squares / 2 + (model.log_prior / places)[:, None, None]
    total = by_class.sum(dim=(2, 3)).logsumexp(dim=1)
    # The mixture at each location, scaled to [0, 1] over the image, says how much of S goes where.
    local = (by_class + model.log_prior[:, None, None] * (1 - 1 / places)).logsumexp(dim=1)
    low, high = local.amin(dim=(1, 2), keepdim=True), local.amax(dim=(1, 2), keepdim=True)
    share = (local - low) / (high - low).clamp_min(1e-300) + _FLOOR
    share = share / share.sum(dim=(1, 2), keepdim=True)
    own = by_class[torch.arange(len(y), device=y.device), y]
    return own - total[:, None, None] * share
