"""Difference-of-logits ratio, temporary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_attacks.losses import Loss, split

if TYPE_CHECKING:
    from torch import Tensor


def dlr_against(logits: Tensor, classes: Tensor) -> Loss:
    """(best other - own) / (first - third) of the logits (Croce & Hein 2020, equation 6)."""
    mine, others = split(logits, classes)
    top, rival = others.max(dim=1)
    best, order = logits.detach().double().topk(3, dim=1)
    return _ratio(
        logits, top - mine, (rival, classes), best[:, 0] - best[:, 2], (order[:, 0], order[:, 2:]), top - mine
    )


def dlr_towards(logits: Tensor, classes: Tensor, targets: Tensor) -> Loss:
    """(target - own) / (first - (third + fourth) / 2) of the logits (Croce & Hein 2020, equation 7)."""
    mine, others = split(logits, classes)
    margin = others.amax(dim=1) - mine
    wanted = others.gather(1, targets[:, None])[:, 0] - mine
    best, order = logits.detach().double().topk(4, dim=1)
    spread = best[:, 0] - best[:, 2:].mean(dim=1)
    return _ratio(logits, wanted, (targets, classes), spread, (order[:, 0], order[:, 2:]), margin)


def _ratio(
    logits: Tensor,
    difference: Tensor,
    pair: tuple[Tensor, Tensor],
    spread: Tensor,
    ranks: tuple[Tensor, Tensor],
    margin: Tensor,
) -> Loss:
    spread = spread.masked_fill(spread == 0, 1.0)
    value = difference / spread
    weights = logits.new_zeros(logits.shape, dtype=value.dtype)
    one = value.new_ones(len(value), 1)
    weights.scatter_add_(1, pair[0][:, None], one).scatter_add_(1, pair[1][:, None], -one)
    weights.scatter_add_(1, ranks[0][:, None], -value[:, None])
    count = ranks[1].shape[1]
    weights.scatter_add_(1, ranks[1], (value / count)[:, None].expand(-1, count))
    return Loss(weights.div_(spread[:, None]).to(logits.dtype), margin, lambda: value)
