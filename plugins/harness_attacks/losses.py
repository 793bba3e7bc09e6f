"""What an attack increases, with its derivative: how close a classifier is to letting go of a class.

Losses are formed from differences of logits in float64, so adding any function of the image to all logits changes
nothing, and their derivatives do not die when the classifier is certain. The margin and DLR do not depend on the scale
of the logits; `sharpened` sees to it for cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import HarnessError

if TYPE_CHECKING:
    from torch import Tensor

# Cross-entropy is strongest where the logits spread as those of ordinary networks do. Measured on the two embedded
# classifiers of digits (robust accuracy, l2, 40 steps) with logits times 1e-4, 0.1, 0.3, 1, 3, 10, 1e4: plain 28.4,
# 20.7, 13.6, 9.4, 10.1, 10.6, 10.9 %, adversarially trained 55.7, 49.8, 39.3, 29.4, 31.9, 34.2, 35.6 %.
# All test images of both have a spread of 2.7 to 26 (median 15 and 10), of a ResNet-20 on CIFAR-10 4.4 to 40 (22).
_ORDINARY = (2.5, 40.0)
_SPREAD = 10.0  # what a spread outside is brought to

_TINY = 1e-18  # a difference of logits below this does not divide


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


def dlr_against(logits: Tensor, classes: Tensor) -> Loss:
    """Difference of logits ratio: the margin over the largest logit minus the third largest.

    Croce & Hein 2020, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks* (arXiv 2003.01690), equation 6. Where three logits tie at the top, or the third is infinitely small, the
    ratio is not defined, and the margin itself takes its place.

    Raises:
        HarnessError: fewer than 3 classes.
    """
    refuse_few_classes("dlr", logits.shape[1])
    mine, others = split(logits, classes)
    top, rival = others.max(dim=1)
    margin = top - mine
    ranked, order = logits.detach().double().topk(3, dim=1)
    weights = _one_against(others, rival, classes)
    value = _over(margin, weights, ranked[:, 0] - ranked[:, 2], order, (1.0, 0.0, -1.0))
    return Loss(weights.to(logits.dtype), margin, lambda: value)


def log_odds_towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Loss:
    """Log-odds that the class is the target: what targeted cross-entropy decreases is softplus of its negative."""
    return _towards(log_odds_against(logits, targets), logits, labels)


def margin_towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Loss:
    """The target's logit minus the largest other one."""
    return _towards(margin_against(logits, targets), logits, labels)


def dlr_towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Loss:
    """Targeted difference of logits ratio: the target's logit minus the label's, over the largest logit minus the mean
    of the third and the fourth largest (Croce & Hein 2020, equation 7).

    Where that divisor is 0 or infinite, the difference itself takes its place.

    Raises:
        HarnessError: fewer than 4 classes.
    """
    refuse_few_classes("dlr", logits.shape[1], targeted=True)
    exact = logits.detach().double()
    ahead = (exact.gather(1, targets[:, None]) - exact.gather(1, labels[:, None]))[:, 0]
    ranked, order = exact.topk(4, dim=1)
    weights = _one_against(exact, targets, labels)
    width = ((ranked[:, 0] - ranked[:, 2]) + (ranked[:, 0] - ranked[:, 3])) / 2
    value = _over(ahead, weights, width, order, (1.0, 0.0, -0.5, -0.5))
    return Loss(weights.to(logits.dtype), margin_of(logits, labels), lambda: value)


LOSSES: dict[str, Callable[[Tensor, Tensor], Loss]] = {
    "cross-entropy": log_odds_against,
    "margin": margin_against,
    "dlr": dlr_against,
}
"""Away from the labels: (logits, labels)."""

TARGETED_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Loss]] = {
    "cross-entropy": log_odds_towards,
    "margin": margin_towards,
    "dlr": dlr_towards,
}
"""Towards a class: (logits, labels, targets). `Loss.margin` is that of the labels here too."""


def refuse_few_classes(loss: str, classes: int, targeted: bool = False) -> None:
    """Raise a HarnessError where a loss is not defined for so few classes."""
    needed = {"dlr": 4 if targeted else 3}.get(loss, 2)
    if classes < needed:
        kind = f"the targeted loss {loss}" if targeted else f"the loss {loss}"
        raise HarnessError(f'{kind} needs {needed} classes, there are {classes}: set loss = "margin"')


def sharpened(clean_logits: Tensor) -> Tensor | None:
    """By what cross-entropy must multiply the logits of each sample (n, 1), float64; None where it is 1 for all.

    A flat softmax asks for all other classes at once, a hard one for the best of them alone, and both cost strength.
    The spread of a sample is its largest logit minus the median one. If that is far from what classifiers have, the
    logits are scaled to an ordinary spread; otherwise they stay as they are, bit for bit. Of the clean image, so that
    the loss is one function along the whole path.
    """
    import torch

    if clean_logits.shape[1] < 3:  # of two classes cross-entropy is the margin
        return None
    exact = clean_logits.double()
    spread = exact.amax(dim=1, keepdim=True) - exact.median(dim=1, keepdim=True).values
    odd = ((spread < _ORDINARY[0]) | (spread > _ORDINARY[1])) & (spread > 0) & spread.isfinite()
    return torch.where(odd, _SPREAD / spread, 1.0) if bool(odd.any()) else None


def split(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of `classes` (n,) and all others, the class's own place masked by -inf (n, K); float64."""
    own = classes[:, None]
    exact = logits.detach().double()
    return exact.gather(1, own)[:, 0], exact.scatter(1, own, float("-inf"))


def margin_of(logits: Tensor, classes: Tensor) -> Tensor:
    """The largest logit of another class minus that of `classes`, float64 (n,)."""
    mine, others = split(logits, classes)
    return others.amax(dim=1) - mine


def likeliest_wrong(logits: Tensor | None, labels: Tensor, count: int) -> Tensor:
    """int64 (n, T), T = min(count, K - 1): the wrong classes of the largest logits (n, K), the largest first."""
    if logits is None:
        raise ValueError("an attack on a class needs a classifier")
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.sort(dim=1, descending=True, stable=True).indices[:, : min(count, logits.shape[1] - 1)]


def _towards(against: Loss, logits: Tensor, labels: Tensor) -> Loss:
    return Loss(-against.weights, margin_of(logits, labels), lambda: -against.values())


def _one_against(like: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    """(n, K): 1 at the class `plus` (n,), -1 at `minus`."""
    import torch

    return torch.zeros_like(like).scatter_(1, plus[:, None], 1.0).scatter_(1, minus[:, None], -1.0)


def _over(value: Tensor, weights: Tensor, width: Tensor, order: Tensor, part: tuple[float, ...]) -> Tensor:
    """`value` / `width`, and in place its derivative from `weights`, that of `value`.

    The width is the sum of the logits at `order` (n, len(part)), each times its `part`.
    """
    import torch

    usable = (width > _TINY) & width.isfinite() & value.isfinite()
    width = torch.where(usable, width, 1.0)
    ratio = value / width
    pull = torch.where(usable, -ratio / width, 0.0)
    weights.div_(width[:, None]).scatter_add_(1, order, pull[:, None] * weights.new_tensor(part))
    return ratio
