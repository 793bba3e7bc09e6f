"""Classifiers that answer as ever and tamper with the gradient on its way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Tampering = Callable[[Tensor], Tensor]  # input gradient (B, C, H, W) to what the attack sees


class Tampered(nn.Module):
    """The classifier's answers, with ``tampering(gradient)`` for its input gradient; the adaptive form leaves it."""

    stochastic = False

    def __init__(self, inner: Any, tampering: Tampering) -> None:
        super().__init__()
        self.inner = inner
        self.num_classes = int(inner.num_classes)
        self._tampering = tampering

    def logits(self, x: Tensor) -> Tensor:
        seen = x.view_as(x)
        if seen.requires_grad:
            seen.register_hook(self._tampering)  # type: ignore[no-untyped-call]
        out: Tensor = self.inner.logits(seen)
        return out

    def adaptive(self) -> Any:
        return self.inner


def flipped(gradient: Tensor) -> Tensor:
    """Points downhill."""
    return -gradient


def scrambled(gradient: Tensor) -> Tensor:
    """Each entry belongs to the pixel opposite the centre: of the right size, and of no use."""
    return gradient.flip((-2, -1))


def narrowed(gradient: Tensor) -> Tensor:
    """Only the image's first column is left: the loss rises along it, and there is little to gain."""
    left = gradient.clone()
    left[..., 1:] = 0
    return left


class Detached(nn.Module):
    """A classifier whose answer is cut off from its input. The adaptive form is the classifier itself."""

    stochastic = False

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.num_classes = int(inner.num_classes)

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner.logits(x.detach())
        return out.detach()

    def adaptive(self) -> Any:
        return self.inner
