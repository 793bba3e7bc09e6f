"""What an attack increases: scores (n,) of how close a classifier is to the attacker's goal.

Every loss is formed from differences of logits in float64, so adding any function of the image to all logits changes
nothing, and its gradient does not die when the classifier is certain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Score = Callable[["Tensor", "Tensor"], "Tensor"]


def log_odds_against(logits: Tensor, classes: Tensor) -> Tensor:
    """Log-odds that the class is not `classes`: log((1 - p) / p), nats, float64 (n,).

    Cross-entropy is softplus of it, so both have the same gradient up to a positive factor for each sample, which
    neither the sign nor the normalised gradient sees. That factor is 1 - p, which rounds to 0 for a certain classifier
    and stops an attack on cross-entropy itself; this form never saturates.
    """
    return _gaps(logits, classes).logsumexp(dim=1)


def margin_against(logits: Tensor, classes: Tensor) -> Tensor:
    """The largest logit of another class minus that of `classes`, float64 (n,); positive where misclassified."""
    return _gaps(logits, classes).max(dim=1).values


LOSSES: dict[str, Score] = {"cross-entropy": log_odds_against, "margin": margin_against}


def _gaps(logits: Tensor, classes: Tensor) -> Tensor:
    """Each logit minus that of `classes`, whose own place is masked by -inf; float64 (n, K)."""
    own = classes[:, None]
    exact = logits.double()
    return (exact - exact.gather(1, own)).scatter(1, own, float("-inf"))
