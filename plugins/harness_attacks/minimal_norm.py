"""The smallest perturbation that fools a classifier, per sample: robust accuracy at every budget from one run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationInfo, field_validator

from harness.judge import norm_of
from harness.options import Amount, Options, check_radius, option, problem
from harness.threats import Batch, Budget, Columns, Norm, ThreatContext
from harness_attacks.attacked import randomness
from harness_attacks.fmn import Search
from harness_attacks.losses import LOSSES, split
from harness_attacks.smallest import CONFIRMING_DRAWS, Kept, clearance, confirmed, settle

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws

_CURVES: dict[Norm, tuple[str, ...]] = {
    "linf": ("1/255", "2/255", "4/255", "8/255", "16/255", "32/255", "64/255"),
    "l2": ("0.1", "0.25", "0.5", "1", "2", "4"),
    "l1": ("1", "2", "4", "8", "16", "32"),
}
# Cross-entropy weighs all rivals, which finds the way to the nearest better than the margin of the best one does; at
# the boundary that margin is what counts. So logits are measured in clean margins, whatever their scale, and sharpened.
_SHARPNESS = (3.0, 300.0)
_SMALLER = 0.99  # a random model is asked again only where an image is smaller by so much


class MinimalNormOptions(Options):
    """Options of `minimal-norm`."""

    norm: Literal["linf", "l2", "l1"] = option("linf", help="norm to make small, over all entries of an image")
    steps: int = option(100, help="gradient steps in each restart", ge=1)
    restarts: int = option(1, help="walks: the first from the image, the others from random points around it", ge=1)
    loss: Literal["cross-entropy", "margin"] = option(
        "cross-entropy", help="what a step increases: cross-entropy, or the best other logit minus the label's"
    )
    eot: int = option(1, help="gradients averaged in each step, on a draw each, for a model with randomness", ge=1)
    curve: tuple[Amount, ...] = option(
        (), help="budgets at which robust accuracy is reported; a usual set unless given", unit="[0, 1] pixel values"
    )

    @field_validator("curve")
    @classmethod
    def _curve_in_range(cls, curve: tuple[Amount, ...], info: ValidationInfo) -> tuple[Amount, ...]:
        for eps in curve:
            check_radius(eps, info.data.get("norm", ""))
        if len(set(curve)) < len(curve):
            raise problem("names a budget twice")
        return curve


class MinimalNorm:
    """Per sample the smallest perturbation found by fast minimum-norm search (`fmn`), over all steps and restarts.

    Only samples that the model classifies rightly are attacked. Where nothing fools the model the clean image is
    returned: the host finds it right and books an infinite norm. The walk of a sample depends on nothing but itself.

    A model with randomness is given a draw of its own for every question. An image that fools it and is smaller than
    what is known must do so on 8 of 10 further draws, and in the end on 16 of 20 that the search never saw (see
    `smallest.settle`): the norm is that of an image that fools most of the time.

    Columns, one row a sample, beside those of the host:
        adversarial: (B, C, H, W).
        steps: gradient steps planned for each restart.
        gradient_steps: gradients spent, all restarts together; 0 for a sample that was not attacked.
        zero_gradient_steps, nonfinite_gradient_steps: how many of them were zero, or had an infinite or NaN entry.
        curve: (B, E), the budgets asked for, the same in every row: robust accuracy at one of them is the share of
            samples whose `minimal_norm` is larger.
    """

    def __init__(self, options: MinimalNormOptions) -> None:
        self.options = options
        self.budget: Budget | None = Budget(options.norm, float("inf"))
        self.curve = [float(eps) for eps in options.curve or map(Amount, _CURVES[options.norm])]

    def run(self, model: ModelView, batch: Batch) -> Columns:
        kept = Kept.before(batch.x)
        rows = batch.clean_correct.nonzero()[:, 0]
        for restart in range(self.options.restarts):
            if len(rows):
                self._walk(model, batch, rows, restart, kept)
        if model.stochastic:
            settle(model, batch.x, batch.y, batch.draws, kept, self.options.restarts * self._draws_a_walk)
        columns: dict[str, Any] = {
            "adversarial": kept.images,
            **randomness(model, batch.y, self.options.eot),
            "steps": batch.y.new_full(batch.y.shape, self.options.steps),
            **kept.counts(),
            "curve": kept.cost.new_tensor(self.curve).expand(len(batch.y), -1),
        }
        return columns

    @property
    def _draws_a_walk(self) -> int:
        return (self.options.steps + 1) * (self.options.eot + CONFIRMING_DRAWS)

    def _walk(self, model: ModelView, batch: Batch, rows: Tensor, restart: int, kept: Kept) -> None:
        """One walk of all attacked samples."""
        options = self.options
        x0, labels, draws = batch.x[rows], batch.y[rows], batch.draws[rows]
        start = x0.clone() if restart == 0 else self._around(x0, kept.cost[rows], draws.stream("restart", restart))
        unit = _clean_margin(batch, rows)
        search = Search.start(x0, start, kept.cost[rows], options.norm, options.steps)
        for step in range(options.steps + 1):
            first = restart * self._draws_a_walk + step * (options.eot + CONFIRMING_DRAWS)
            last = step == options.steps
            sharpness = _sharpness(step / options.steps) / unit
            margin, gradient, clear = self._asked(model, search.x, labels, draws, sharpness, first, last)
            fools = margin > clear
            size = norm_of(search.x - x0, options.norm)
            fools = self._keep(model, search.x, labels, draws, rows, fools, size, first + options.eot, kept)
            if not last:
                assert gradient is not None
                search.step(step, kept.checked(gradient, rows), fools, clear - margin)

    def _asked(
        self,
        model: ModelView,
        x: Tensor,
        labels: Tensor,
        draws: Draws,
        sharpness: Tensor,
        first: int,
        last: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Margin of the best wrong class (n,), the loss's gradient at `x`, and the margin that is clear (n,).

        Of a random model they are means over `eot` draws, numbered from `first`; no graph outlives its draw.
        """
        import torch

        margins, clears, total = [], [], None
        for number in range(first, first + (self.options.eot if model.stochastic else 1)):
            x = x.detach().requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                logits = model.logits(x, draws.numbered(number) if model.stochastic else draws)
            loss = LOSSES[self.options.loss](logits.detach().double() * sharpness[:, None], labels)
            margins.append(loss.margin / sharpness)
            clears.append(clearance(logits))
            if not last:
                gradient = model.input_gradient(logits, x, loss.weights.to(logits.dtype))
                total = gradient if total is None else total + gradient
        count = len(margins)
        return sum(margins) / count, None if total is None else total / count, sum(clears) / count  # type: ignore[return-value]

    def _keep(
        self,
        model: ModelView,
        x: Tensor,
        labels: Tensor,
        draws: Draws,
        rows: Tensor,
        fools: Tensor,
        size: Tensor,
        number: int,
        kept: Kept,
    ) -> Tensor:
        """Keep the images that fool and are smaller than those kept. Returns which fool, as far as is now known."""
        better = fools & (size < kept.cost[rows] * (_SMALLER if model.stochastic else 1.0))
        index = better.nonzero()[:, 0]
        if len(index) and model.stochastic:
            sure = confirmed(model, x[index], labels[index], draws[index], number)
            fools = fools.index_put((index[~sure],), fools.new_tensor(False))
            index = index[sure]
        if len(index):
            level = kept.level.new_full((len(index),), 2)
            kept.keep(rows[index], x[index].detach(), level, size[index])
        return fools

    def _around(self, x0: Tensor, least: Tensor, draws: Draws) -> Tensor:
        """Random images at the distance of the smallest known ones, or at a tenth of the box where none is known."""
        noise = draws.normal("start", 0, x0.shape[1:])
        reach = norm_of(x0.new_ones(x0.shape[1:])[None], self.options.norm) * 0.1
        length = least.where(least.isfinite(), reach) / norm_of(noise, self.options.norm)
        return (x0 + noise * length.to(x0.dtype)[:, None, None, None]).clamp_(0.0, 1.0)


def _sharpness(progress: float) -> float:
    """What the clean margin counts in nats of cross-entropy, at a share `progress` of the steps."""
    first, last = _SHARPNESS
    return math.exp(math.log(first) + (math.log(last) - math.log(first)) * progress)


def _clean_margin(batch: Batch, rows: Tensor) -> Tensor:
    """float64 (n,): by how much the label of these rows wins on the clean image; not quite 0 where it hardly does."""
    assert batch.clean_logits is not None
    logits = batch.clean_logits[rows]
    mine, others = split(logits, batch.y[rows])
    return (mine - others.amax(dim=1)).maximum(clearance(logits)).clamp_min(1e-300)


def build(options: MinimalNormOptions, context: ThreatContext) -> MinimalNorm:  # noqa: ARG001 - a factory's signature
    return MinimalNorm(options)
