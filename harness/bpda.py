"""Differentiable surrogates for steps of a model that have no useful gradient.

A model that rounds, compresses or thresholds its input gives an attack zero gradients, and looks robust without being
so. Backward pass differentiable approximation (Athalye, Carlini & Wagner 2018, *Obfuscated Gradients Give a False Sense
of Security*, arXiv 1802.00420, section 4.1) takes the step as it is on the way forward, and a smooth function that is
near it on the way back. A model declares it where it defines the step::

    def logits(self, x):
        return self.network(straight_through(jpeg)(x))

or for a module that it contains, whose code stays as it is::

    declare_surrogate(network.quantise)

"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

Step = Callable[["Tensor"], "Tensor"]


def straight_through(forward: Step, surrogate: Step | None = None) -> Step:
    """A function that gives exactly what `forward` gives, and the gradient of `surrogate`.

    Args:
        forward: the step. It is run without recording a graph, on a tensor cut off from the one it is given, so it may
            leave torch.
        surrogate: a differentiable function from the same input to an output of the same shape; the identity unless
            given.

    Raises:
        ModelError: when called, if the surrogate's output has another shape, or does not depend on its input.
    """

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            exact = forward(x.detach())
        return _with_gradient_of(surrogate, x, exact)

    return step


def declare_surrogate(module: nn.Module, surrogate: Step | None = None) -> None:
    """Let `module`, which takes and returns one tensor, answer as before and have the gradient of `surrogate`.

    Its code, parameters and their names stay as they are. Its own parameters get no gradient any more. See
    `straight_through` for the surrogate and what it raises.
    """
    hooks = _Hooks(surrogate)
    module.register_forward_pre_hook(hooks.before)
    module.register_forward_hook(hooks.after)


class _Hooks:
    """Cuts a module's input off on the way in, and puts the surrogate's gradient under its output."""

    def __init__(self, surrogate: Step | None) -> None:
        self._surrogate = surrogate
        self._given: Tensor | None = None

    def before(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(arguments) != 1 or not isinstance(arguments[0], torch.Tensor):
            raise ModelError(
                f"a surrogate needs a step that takes one tensor; {type(module).__name__} was given"
                f" ({', '.join(type(argument).__name__ for argument in arguments)})"
            )
        self._given = arguments[0]
        return (self._given.detach(),)

    def after(self, module: nn.Module, _: tuple[Any, ...], exact: Any) -> Tensor:
        given, self._given = self._given, None
        if given is None or not isinstance(exact, torch.Tensor):
            raise ModelError(
                f"a surrogate needs a step that returns one tensor; {type(module).__name__} returned a"
                f" {type(exact).__name__}"
            )
        return _with_gradient_of(self._surrogate, given, exact.detach())


def _with_gradient_of(surrogate: Step | None, x: Tensor, exact: Tensor) -> Tensor:
    smooth = x if surrogate is None else surrogate(x)
    if smooth.shape != exact.shape:
        what = "the identity" if surrogate is None else "the surrogate"
        raise ModelError(
            f"{what} gives shape {tuple(smooth.shape)}, the step it stands for {tuple(exact.shape)}: give a surrogate"
            " with an output of that shape"
        )
    if x.requires_grad and torch.is_grad_enabled() and not smooth.requires_grad:
        raise ModelError("the surrogate's output does not depend on its input: it must be differentiable itself")
    result: Tensor = _Replaced.apply(smooth, exact)  # type: ignore[no-untyped-call]
    return result


class _Replaced(torch.autograd.Function):
    """The second tensor, with the gradient of the first. Adding their difference would round the second."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, exact: Tensor) -> Tensor:
        ctx.dtype = smooth.dtype
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None
