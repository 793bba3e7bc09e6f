"""What an iterative attack asks at an image: how far the model is from being fooled, and which way leads there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from harness_attacks.losses import LOSSES, TARGETED_LOSSES, Loss, margin_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws
    from harness_attacks.evasion import Evasion


class Asked(Protocol):
    """Whom a question is about: n samples.

    Attributes:
        labels, targets: int64 (n,); a target is -1 where there is none.
        draws: their streams, so that the host knows whose the evaluations are.
        scale: float64 (n, 1), what their logits are multiplied by first; None for 1 (see `losses.sharpened`).
    """

    @property
    def labels(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def draws(self) -> Draws: ...
    @property
    def scale(self) -> Tensor | None: ...


class Point(NamedTuple):
    """What was found at n images; of a random model the mean over the draws.

    Attributes:
        margin: float64 (n,), the largest logit of another class minus the label's; positive where misclassified.
        towards: float64 (n,), the target's logit minus the largest other one; None unless a target is the goal.
        excess: float64 (n,), by how much the detector's score exceeds its threshold (see `Evasion`); None without one.
        values: gives what the attack increases, float64 (n,).
        gradient: gives its gradient (n, C, H, W), once.
    """

    margin: Tensor
    towards: Tensor | None
    excess: Tensor | None
    values: Callable[[], Tensor]
    gradient: Callable[[], Tensor]


class Objective:
    """A model together with a loss, and a detector where the attack must get past one too.

    Args:
        loss: name in `LOSSES`.
        towards_targets: whether the loss leads to the targets, not only away from the labels.
        reach_targets: whether `Point.towards` is wanted: only the target counts.
        eot: draws of a random model averaged for each gradient (expectation over transformation, Athalye et al. 2018,
            arXiv 1707.07397). A deterministic model is asked once. One draw's graph is gone before the next is made, so
            memory does not grow with their number.
    """

    def __init__(
        self,
        model: ModelView,
        loss: str,
        *,
        towards_targets: bool = False,
        reach_targets: bool = False,
        eot: int = 1,
        evasion: Evasion | None = None,
    ) -> None:
        self.model = model
        self.eot = eot if model.stochastic else 1
        self._loss = loss
        self._towards_targets = towards_targets
        self._reach_targets = reach_targets
        self._evasion = evasion

    def at(self, x: Tensor, asked: Asked, number: int, differentiable: bool = True) -> Point:
        """Evaluate images `x` (n, C, H, W), which may change once the gradient has been taken.

        Args:
            number: of the question, each one its own: a random model answers it afresh.
            differentiable: whether the gradient will be wanted.
        """
        if self.eot == 1:
            answer = self._ask(x, asked, number, differentiable)
        else:
            numbers = range(number * self.eot, (number + 1) * self.eot)
            answer = _mean((self._ask(x, asked, k, differentiable) for k in numbers), self.eot, differentiable)
        evasion, excess = self._evasion, answer.excess
        if evasion is None or excess is None:
            return Point(answer.margin, answer.towards, None, answer.values, lambda: answer.slopes()[0])
        return Point(
            answer.margin,
            answer.towards,
            excess,
            lambda: evasion.value(answer.values(), excess),
            lambda: evasion.direction(answer.slopes(), answer.margin, excess),
        )

    def _ask(self, x: Tensor, asked: Asked, number: int, differentiable: bool) -> _Answer:
        """One draw."""
        import torch

        model, evasion = self.model, self._evasion
        draws = asked.draws.numbered(number) if model.stochastic else asked.draws
        with torch.set_grad_enabled(differentiable):
            x = x.detach().requires_grad_(differentiable)
            logits = model.logits(x, draws)
            excess = None if evasion is None else evasion.excess(model.ood_score(x, draws))
        loss = self._value(logits, asked)
        towards = -margin_of(logits, asked.targets) if self._reach_targets else None
        if excess is None:
            return _Answer(
                loss.margin, towards, None, loss.values, lambda: (model.input_gradient(logits, x, loss.weights),)
            )
        return _Answer(
            loss.margin,
            towards,
            excess.detach().double(),
            loss.values,
            lambda: (model.input_gradient(logits, x, loss.weights), model.input_gradient(excess, x)),
        )

    def _value(self, logits: Tensor, asked: Asked) -> Loss:
        scale = asked.scale
        scaled = logits if scale is None else logits.detach().double() * scale
        if self._towards_targets:
            loss = TARGETED_LOSSES[self._loss](scaled, asked.labels, asked.targets)
        else:
            loss = LOSSES[self._loss](scaled, asked.labels)
        if scale is None:
            return loss
        return Loss((loss.weights * scale).to(logits.dtype), loss.margin / scale[:, 0], loss.values)


class _Answer(NamedTuple):
    """A `Point` before the detector's say; `slopes` gives the gradients of the loss and, with a detector, of excess."""

    margin: Tensor
    towards: Tensor | None
    excess: Tensor | None
    values: Callable[[], Tensor]
    slopes: Callable[[], tuple[Tensor, ...]]


def _mean(answers: Iterable[_Answer], count: int, differentiable: bool) -> _Answer:
    """The mean of `count` answers, each used up before the next is asked for."""
    numbers: list[Tensor | None] = []
    slopes: tuple[Tensor, ...] = ()
    for answer in answers:
        found = [answer.margin, answer.towards, answer.excess, answer.values()]
        numbers = [_plus(a, b) for a, b in zip(numbers, found, strict=True)] if numbers else found
        if differentiable:
            new = answer.slopes()
            slopes = tuple(a + b for a, b in zip(slopes, new, strict=True)) if slopes else new
    margin, towards, excess, values = (None if total is None else total / count for total in numbers)
    assert margin is not None  # a margin and a value are always found
    assert values is not None
    return _Answer(margin, towards, excess, lambda: values, lambda: tuple(slope / count for slope in slopes))


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a + b
