"""Classifiers whose ReLUs are exchanged for activations that are discontinuous or random."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.randomness import Draws
from harness.testing.zoo.preprocessing import Averaged


class WinnersTakeAll(nn.Module):
    """Keeps the largest share of a sample's activations and zeroes the others (k-WTA, Xiao, Zhong and Zheng 2020).

    Discontinuous almost everywhere, so the gradient at a point says little about its surroundings. With
    `straight_through` the backward pass is that of ReLU.
    """

    def __init__(self, share: float, straight_through: bool = False) -> None:
        super().__init__()
        self.share = share
        self.straight_through = straight_through

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        k = max(1, math.ceil(self.share * flat.shape[1]))
        least = flat.topk(k, dim=1).values[:, -1:]
        kept = (flat * (flat >= least)).relu().view_as(x)
        if not self.straight_through:
            return kept
        smooth = x.relu()
        return smooth + (kept - smooth).detach()


class Pruned(nn.Module):
    """Stochastic activation pruning after ReLU (Dhillon et al. 2018, algorithm 1).

    Each sample draws as many activations as `share` of their number, with replacement, in proportion to their size;
    those never drawn are zeroed, the others divided by the probability of being drawn. The `draws` of the samples are
    set before every call.
    """

    def __init__(self, number: int, share: float) -> None:
        super().__init__()
        self.number = number
        self.share = share
        self.draws: Draws | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.draws is not None  # RandomActivations hands them out
        active = x.relu()
        flat = active.flatten(1)
        # 1e-12: a sample without any activation keeps its zeros.
        odds = flat.detach() / flat.detach().sum(dim=1, keepdim=True).clamp_min(1e-12)
        drawn = -torch.expm1(self.share * flat.shape[1] * torch.log1p(-odds.clamp_max(1 - 1e-6)))
        kept = self.draws.uniform("pruning", self.number, flat.shape[1:]).to(x) < drawn
        return (flat * kept / drawn.clamp_min(1e-12)).view_as(x)


class Reactivated(nn.Module):
    """A copy of a classifier, each ReLU exchanged for the activation that ``make(number)`` builds.

    The adaptive form exchanges them for ``make_adaptive(number)``.

    Raises:
        HarnessError: the classifier has no ReLU module.
    """

    stochastic = False

    def __init__(
        self, inner: Any, make: Callable[[int], nn.Module], make_adaptive: Callable[[int], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self._original = [inner]  # in a list, so that it is no submodule
        self._make_adaptive = make_adaptive
        self.inner = copy.deepcopy(inner)
        self.num_classes = int(inner.num_classes)
        self.layers = _exchange(self.inner, make)

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner.logits(x)
        return out

    def adaptive(self) -> Any:
        make = self._make_adaptive
        return self if make is None else Reactivated(self._original[0], make)


class RandomActivations(Reactivated):
    """The same with `Pruned` activations, which need the samples' draws. The adaptive form averages draws."""

    stochastic = True

    def __init__(self, inner: Any, share: float) -> None:
        super().__init__(inner, lambda number: Pruned(number, share))

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        for layer in self.layers:
            layer.draws = draws  # type: ignore[assignment]
        return super().logits(x)

    def adaptive(self) -> Averaged:
        return Averaged(self, 16)


def _exchange(module: nn.Module, make: Callable[[int], nn.Module]) -> list[nn.Module]:
    """Put a new activation in the place of every ReLU, in place; returns the new ones."""
    made: list[nn.Module] = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                made.append(make(len(made)))
                setattr(parent, name, made[-1])
    if not made:
        raise HarnessError("the classifier has no nn.ReLU module to exchange; give one that is built of modules")
    return made
