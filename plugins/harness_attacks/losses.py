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
        weights: (n, K) derivative of the value with respect to the logits, in their type.
        margin: float64 (n,), the largest logit of another class minus the class's own; positive where misclassified.
        values: gives the loss itself, float64 (n,); an attack needs it at the ends of its path only.
    """

    weights: Tensor
    margin: Tensor
    values: Callable[[], Tensor]


def log_odds_against(logits: Tensor, classes: Tensor) -> Loss:
    """Log-odds that the class is not `classes` (n,): log((1 - p) / p), nats.

    Cross-entropy is softplus of it, so both have the same gradient up to a positive factor for each sample, which
    neither the sign nor the normalised gradient sees. That factor is 1 - p, which rounds to 0 for a certain classifier
    and stops an attack on cross-entropy itself; this form never saturates.
    """
    mine, others = split(logits, classes)
    top = others.amax(dim=1, keepdim=True)
    margin = top[:, 0] - mine
    # By hand, because softmax over few classes takes three times as long.
    shares = others.sub_(top).exp_()
    total = shares.sum(dim=1, keepdim=True)
    weights = shares.div_(total).scatter_(1, classes[:, None], -1.0)
    return Loss(weights.to(logits.dtype), margin, lambda: margin + total[:, 0].log())


def margin_against(logits: Tensor, classes: Tensor) -> Loss:
    """The largest logit of another class minus that of `classes` (n,)."""
    mine, others = split(logits, classes)
    top, rival = others.max(dim=1)
    weights = logits.new_zeros(logits.shape).scatter_(1, rival[:, None], 1.0).scatter_(1, classes[:, None], -1.0)
    margin = top - mine
    return Loss(weights, margin, lambda: margin)


LOSSES: dict[str, Callable[[Tensor, Tensor], Loss]] = {
    "cross-entropy": log_odds_against,
    "margin": margin_against,
}


def split(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of `classes` (n,) and all others, the class's own place masked by -inf (n, K); float64."""
    own = classes[:, None]
    exact = logits.detach().double()
    return exact.gather(1, own)[:, 0], exact.scatter(1, own, float("-inf"))
