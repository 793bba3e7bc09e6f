"""What an attack increases, with its derivative: how close a classifier is to letting go of a class.

Losses are formed from differences of logits in float64, so adding any function of the image to all logits changes
nothing, and their derivatives do not die when the classifier is certain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Loss(NamedTuple):
    """A loss of n samples.

    Attributes:
        value: float64 (n,).
        weights: (n, K) derivative of the value with respect to the logits, in their type.
        margin: float64 (n,), the largest logit of another class minus the class's own; positive where misclassified.
    """

    value: Tensor
    weights: Tensor
    margin: Tensor


def log_odds_against(logits: Tensor, classes: Tensor) -> Loss:
    """Log-odds that the class is not `classes` (n,): log((1 - p) / p), nats.

    Cross-entropy is softplus of it, so both have the same gradient up to a positive factor for each sample, which
    neither the sign nor the normalised gradient sees. That factor is 1 - p, which rounds to 0 for a certain classifier
    and stops an attack on cross-entropy itself; this form never saturates.
    """
    gaps = gaps_to(logits, classes)
    top = gaps.amax(dim=1, keepdim=True)
    shares = gaps.sub_(top).exp_()
    total = shares.sum(dim=1, keepdim=True)
    value = total.log().add_(top)[:, 0]
    weights = shares.div_(total).scatter_(1, classes[:, None], -1.0)
    return Loss(value, weights.to(logits.dtype), top[:, 0])


def margin_against(logits: Tensor, classes: Tensor) -> Loss:
    """The largest logit of another class minus that of `classes` (n,)."""
    margin, rival = gaps_to(logits, classes).max(dim=1)
    weights = logits.new_zeros(logits.shape).scatter_(1, rival[:, None], 1.0).scatter_(1, classes[:, None], -1.0)
    return Loss(margin, weights, margin)


LOSSES: dict[str, Callable[[Tensor, Tensor], Loss]] = {
    "cross-entropy": log_odds_against,
    "margin": margin_against,
}


def gaps_to(logits: Tensor, classes: Tensor) -> Tensor:
    """Each logit minus that of `classes`, whose own place is masked by -inf; float64 (n, K)."""
    own = classes[:, None]
    exact = logits.detach().double()
    return (exact - exact.gather(1, own)).scatter_(1, own, float("-inf"))
