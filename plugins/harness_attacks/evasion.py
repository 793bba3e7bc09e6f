"""Fooling a classifier and its detector at once: three ways to trade one for the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView

Way = Literal["penalty", "selective", "orthogonal"]


class Evasion:
    """A detector's threshold, and how an attack gets below it.

    "penalty" increases the loss minus `weight` times the excess, as far as that is positive (Carlini & Wagner 2017,
    arXiv 1705.07263). "selective" increases the loss of a sample that is classified rightly and decreases the score of
    one that is not; "orthogonal" does the same along the part of that gradient which leaves the other unchanged
    (Bryniarski et al. 2021, *Evading Adversarial Example Detection Defenses with Orthogonal Projected Gradient
    Descent*, arXiv 2106.15023, section 4). Each sample is in a phase of its own.

    Attributes:
        threshold: the highest score that is accepted: a share `fpr` of held-out clean images lies above it.
        BOTH: a `strength` above this is that of an image that is misclassified and accepted.
        unit: its distance from the median of held-out clean images, in which excess is measured, so that `weight` means
            the same for any detector; 1 where there is none.
    """

    BOTH = 3.0

    def __init__(self, model: ModelView, way: Way, weight: float, fpr: float) -> None:
        self.threshold = model.ood_threshold(fpr)
        distance = self.threshold - model.ood_threshold(0.5)
        self.unit = distance if distance > 0 else 1.0
        self._way = way
        self._weight = weight

    def excess(self, score: Tensor) -> Tensor:
        """(n,) by how much a score exceeds the threshold, in units; positive where rejected."""
        return (score - self.threshold) / self.unit

    def value(self, loss: Tensor, excess: Tensor) -> Tensor:
        """(n,) what the attack increases, all told."""
        return loss - self._weight * excess.clamp_min(0.0)

    def strength(self, margin: Tensor, excess: Tensor) -> Tensor:
        """(n,) orders images: wrong and accepted before wrong before right; then by margin, or by the score's excess.

        An image that fools the classifier is the better, the nearer it is to acceptance: at another false-positive rate
        it may be accepted.
        """
        import torch

        wrong, accepted = margin > 0, excess <= 0
        near = torch.where(wrong & ~accepted, -excess, margin)
        return near / (1 + near.abs()) + 2.0 * wrong + 2.0 * (wrong & accepted)

    def direction(self, slopes: tuple[Tensor, ...], margin: Tensor, excess: Tensor) -> Tensor:
        """Where to go (n, C, H, W), given the gradients of the loss and of the excess."""
        import torch

        ascent, rise = slopes
        if self._way == "penalty":
            return ascent - rise * _rows(self._weight * (excess > 0).to(rise.dtype))
        if self._way == "orthogonal":
            ascent, rise = _without(ascent, rise), _without(rise, ascent)
        return torch.where(_rows(margin > 0), -rise, ascent)


def _without(a: Tensor, b: Tensor) -> Tensor:
    """The part of each `a` (n, C, H, W) that is orthogonal to `b`, scaled to a largest entry of 1 beforehand."""
    from harness_attacks.balls import peaks

    # Gradients of 1e-30 have no squares in float32.
    a, b = (v / _rows(peaks(v).clamp_min(1e-38)) for v in (a, b))
    square = (b * b).sum(dim=(1, 2, 3)).clamp_min(0.5)  # at least 1 unless b is zero
    return a - b * _rows((a * b).sum(dim=(1, 2, 3)) / square)


def _rows(values: Tensor) -> Tensor:
    return values[:, None, None, None]
