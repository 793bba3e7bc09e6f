"""A model as another library sees it: a `torch.nn.Module` whose answers are float32 scores, every call booked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from harness.models import ModelView

if TYPE_CHECKING:
    from harness.randomness import Draws

Centre = Literal["log-probability", "probability", "positive"]


class ServedModel(nn.Module):
    """Scores (n, K) of any model with `Classifier`, for images of the samples that are under attack.

    The library never holds the model itself: moving this module, changing its mode or calling ``backward()`` reaches
    neither the model's mode and device nor its parameters' gradients. No graph is made where none is asked for.

    The part shared by all classes is removed in float64 before the scores are rounded to float32, so that differences
    of log-likelihoods in the thousands survive: "log-probability" hands over the log-softmax, exact near the top;
    "positive" scores whose smallest is 1, for libraries that mask classes by multiplying with 0. Differences between
    classes are the model's own in both. "probability" hands over the softmax, for attacks that accept nothing else.

    Whose image a row is: with one sample every row is its. With several, a call with as many rows as samples asks of
    each; other calls leave it open, and are booked to the samples in turn, so that the sum over the batch is right. A
    model with randomness answers every call with a draw of its own.

    Attributes:
        gradient_steps, zero_gradient_steps, nonfinite_gradient_steps: int64 (B,), forward evaluations of each sample
            that were differentiated, those whose gradients were all zero in every entry while the sample was still
            classified rightly, and those with an infinite or NaN entry.
    """

    def __init__(self, view: ModelView, draws: Draws, labels: Tensor, centre: Centre = "log-probability") -> None:
        super().__init__()
        self._view = view
        self._draws = draws
        self.labels = labels
        self._centre = centre
        self._calls = 0
        self._next = 0
        self._owners: dict[tuple[int, int], tuple[Tensor, Draws]] = {}
        self.num_classes = view.num_classes
        self.gradient_steps = torch.zeros_like(labels)
        self.zero_gradient_steps = torch.zeros_like(labels)
        self.nonfinite_gradient_steps = torch.zeros_like(labels)
        # Libraries ask a model's parameters where it lives.
        self.place = nn.Parameter(torch.zeros((), device=labels.device), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(n, K) float32."""
        x = x.to(self.labels.device, torch.float32)
        owner, draws = self._owner(len(x))
        if torch.is_grad_enabled() and x.requires_grad:
            scores: Tensor = _Differentiated.apply(x, self, owner, draws)  # type: ignore[no-untyped-call]
            return scores
        with torch.no_grad():
            return self.exact(x, draws).float()

    def exact(self, x: Tensor, draws: Draws) -> Tensor:
        """(n, K) float64, the shared part removed."""
        if self._view.stochastic:
            draws = draws.numbered(self._calls)
            self._calls += 1
        exact = self._view.logits(x, draws).double()
        if self._centre == "positive":
            return exact - exact.amin(dim=1, keepdim=True) + 1.0
        return exact.softmax(dim=1) if self._centre == "probability" else exact.log_softmax(dim=1)

    def gradient(self, scores: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        """Gradient of the sum of ``scores * weights`` with respect to `x`; may be asked for again."""
        if scores.requires_grad:
            # A library differentiates class by class, so the graph must outlive the first gradient.
            (found,) = torch.autograd.grad(scores, x, weights, retain_graph=True, allow_unused=True)
            if found is not None:
                return found  # type: ignore[no-any-return]
        return self._view.input_gradient(scores, x, weights)  # which says what is wrong

    def _owner(self, rows: int) -> tuple[Tensor, Draws]:
        """The sample that each row is booked to, int64 (rows,), and its draws."""
        samples = len(self.labels)
        start = 0
        if rows != samples:
            start = self._next
            self._next = (start + rows) % samples
        if (start, rows) not in self._owners:
            owner = (torch.arange(rows, device=self.labels.device) + start) % samples
            self._owners[start, rows] = owner, self._draws[owner]
        return self._owners[start, rows]

    def count(self, gradient: Tensor, owner: Tensor, right: Tensor, blind: Tensor | None) -> Tensor:
        """Count a gradient (n, C, H, W). `blind` are rows counted as zero by an earlier one of the same evaluation."""
        peak = gradient.abs().amax(dim=(1, 2, 3))
        if blind is None:
            blind = (peak == 0) & right
            self.gradient_steps.index_add_(0, owner, torch.ones_like(owner))
            self.zero_gradient_steps.index_add_(0, owner, blind.long())
        else:
            seen = blind & (peak != 0)
            self.zero_gradient_steps.index_add_(0, owner, -seen.long())
            blind = blind & ~seen
        self.nonfinite_gradient_steps.index_add_(0, owner, (~peak.isfinite()).long())
        return blind


class _Differentiated(torch.autograd.Function):
    """Scores with a graph of their own, so that ``backward()`` on what a library makes of them ends at the image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, served: ServedModel, owner: Tensor, draws: Draws) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            scores = served.exact(inner, draws)
        ctx.served, ctx.owner, ctx.inner, ctx.scores = served, owner, inner, scores
        ctx.blind = None
        return scores.detach().float()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[misc,untyped-decorator]
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None, None]:
        served: ServedModel = ctx.served
        gradient = served.gradient(ctx.scores, ctx.inner, weights.double())
        right = ctx.scores.detach().argmax(dim=1) == served.labels[ctx.owner]
        ctx.blind = served.count(gradient, ctx.owner, right, ctx.blind)
        return gradient, None, None, None
