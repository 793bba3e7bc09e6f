"""Transformations of a classifier's answer that keep the largest logit where it is and take the gradient away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Transformation = Callable[[Tensor], Tensor]  # logits (B, K) to logits


class Reworded(nn.Module):
    """A classifier that answers ``transformation(logits)``. The adaptive form is the classifier itself."""

    stochastic = False

    def __init__(self, inner: Any, transformation: Transformation) -> None:
        super().__init__()
        self.inner = inner
        self.num_classes = int(inner.num_classes)
        self._transformation = transformation

    def logits(self, x: Tensor) -> Tensor:
        return self._transformation(self.inner.logits(x))

    def adaptive(self) -> Any:
        return self.inner


def cold(temperature: float) -> Transformation:
    """Logits divided by a small temperature: the softmax saturates (defensive distillation, Papernot et al. 2016)."""
    return lambda logits: logits / temperature


def softmax_twice(temperature: float) -> Transformation:
    """The log-softmax of a softmax: the inner one has rounded to 0 and 1, and has no derivative left."""
    return lambda logits: (logits / temperature).softmax(dim=1).log_softmax(dim=1)


def shifted(amount: float) -> Transformation:
    """A constant added to all logits, so large that float32 rounds their differences."""
    return lambda logits: logits + amount


def shrunk(factor: float) -> Transformation:
    """Logits so small that their derivatives underflow on the way back."""
    return lambda logits: logits * factor


class BoundaryDetector(nn.Module):
    """A classifier whose detector rejects whatever lies near a decision boundary.

    `ood_score` is minus the margin between the two largest logits: an image that an attack has just carried over the
    boundary is detected, one that it carried further is not. The adaptive form of the attack does not stop there.
    """

    stochastic = False

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.num_classes = int(inner.num_classes)

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner.logits(x)
        return out

    def ood_score(self, x: Tensor) -> Tensor:
        """(B,), higher is nearer to a boundary."""
        best: Tensor = self.inner.logits(x).topk(2, dim=1).values
        return best[:, 1] - best[:, 0]

    def adaptive(self) -> Any:
        return self.inner
