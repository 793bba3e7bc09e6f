"""Auto-PGD: projected gradient descent that chooses its step sizes itself.

Croce & Hein 2020, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks*
(arXiv 2003.01690), section 3 and algorithm 1; in l1 Croce & Hein 2021, *Mind the box* (arXiv 2103.01208), section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationInfo, field_validator

from harness.options import option, problem
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_attacks.apgd_moves import SparseMoves, StraightMoves, moves_around
from harness_attacks.attacked import Findings, randomness
from harness_attacks.ball_options import BallOptions, check_diameter
from harness_attacks.balls import balls_around
from harness_attacks.l1 import project_l1
from harness_attacks.losses import likeliest_wrong, refuse_few_classes, sharpened
from harness_attacks.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws

_RHO = 0.75  # share of a window's steps that must increase the loss


class APGDOptions(BallOptions):
    """Options of `apgd`."""

    steps: int = option(100, help="gradient steps in each run", ge=1)
    restarts: int = option(1, help="runs from a fresh random start, for the samples still standing", ge=1)
    loss: Literal["cross-entropy", "margin", "dlr"] = option(
        "cross-entropy",
        help="what a step increases: cross-entropy, the best other logit minus the label's, difference of logits ratio",
    )
    targets: int | None = option(
        None,
        help="runs towards as many wrong classes, the likeliest first (as far as there are); none: any at once",
        ge=1,
    )
    large_radii: bool = option(
        False, help="l1: begin each run in balls of 3 and 2 times eps, for three tenths of the steps each"
    )
    eot: int = option(1, help="draws of a random model's noise that a step averages; others are asked once", ge=1)

    @field_validator("large_radii")
    @classmethod
    def _large_radii_in_l1(cls, large: bool, info: ValidationInfo) -> bool:
        if large and info.data.get("norm") != "l1":
            raise problem('large_radii is for norm = "l1"')
        if large and info.data.get("steps", 3) < 3:
            raise problem("large_radii needs 3 steps or more: one for each radius")
        return large


@dataclass
class _Paths:
    """Where n samples are on their runs.

    Attributes:
        rows: int64 (n,), the samples' rows in the batch.
        centre, x, before: (n, C, H, W), the clean images, the current ones and those one step earlier.
        labels, targets: int64 (n,); a target is -1 where any wrong class will do.
        scale: float64 (n, 1), what the logits are multiplied by (see `losses.sharpened`); None for 1.
        gradient: (n, C, H, W), of the loss at `x`.
        best, best_gradient, best_loss: the image of the highest loss of the run; float64 (n,).
        loss: float64 (n,), at `x`.
        rises: int64 (n,), how often the loss rose since the last check.
        checked_loss: float64 (n,), `best_loss` at the last check.
        halved: bool (n,), whether that check halved the step.
    """

    rows: Tensor
    centre: Tensor
    labels: Tensor
    targets: Tensor
    scale: Tensor | None
    draws: Draws
    moves: StraightMoves | SparseMoves
    x: Tensor
    before: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    loss: Tensor
    rises: Tensor
    checked_loss: Tensor
    halved: Tensor

    @classmethod
    def at_start(cls, x: Tensor, moves: StraightMoves | SparseMoves, **samples: Any) -> _Paths:
        """At the start, `x`; `samples` are the attributes from `rows` to `draws`."""
        import torch

        none = torch.full((len(x),), float("-inf"), dtype=torch.float64, device=x.device)
        return cls(
            **samples,
            moves=moves,
            x=x,
            before=x,
            gradient=torch.zeros_like(x),
            best=x,
            best_gradient=torch.zeros_like(x),
            best_loss=none,
            loss=none,
            rises=torch.zeros_like(samples["rows"]),
            checked_loss=none,
            halved=torch.ones_like(none, dtype=torch.bool),
        )

    def only(self, index: Tensor) -> _Paths:
        """Those at `index` (int64)."""
        kept: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or field.name in ("draws", "moves"):
                kept[field.name] = None if value is None else value[index]
            else:
                kept[field.name] = value.index_select(0, index)
        return _Paths(**kept)


class APGD:
    """Momentum steps of length 2 eps at first, halved at checkpoints where the loss no longer rises as it should.

    At a checkpoint a sample's step is halved, and the sample goes back to its best image, if fewer than 75 % of the
    steps since the last one increased its loss, or if neither its step was halved nor its best loss rose since then
    (Croce & Hein 2020, conditions 1 and 2). All state is the sample's own.

    Only samples that the model classifies rightly are attacked; the others keep their clean image. A sample leaves as
    soon as an image of it is misclassified, and that image is returned; one that stands returns its image of the
    highest loss. In l1 steps are sparse, and how sparse is adapted instead (`SparseMoves`).

    For a model with randomness each step averages loss and gradient over `eot` draws of its own, and no sample leaves
    early: the image of the highest mean loss is returned.

    Columns, one row a sample:
        adversarial: (B, C, H, W).
        stochastic: bool, whether the model is random; eot: draws averaged for each gradient, 1 if it is not.
        steps: gradient steps planned for each run.
        gradient_steps: steps made, all runs together; 0 for a sample that was not attacked.
        zero_gradient_steps, nonfinite_gradient_steps: how many of them were zero, or had an infinite or NaN entry.
        loss_first, loss_last: the loss at the first and the last image of the sample's latest run, NaN if it was not
            attacked. For "cross-entropy" the log-odds against the label, of which cross-entropy is softplus, or those
            of the target; in the same way for the other losses.
        success_step, restart: the gradient steps taken when the sample was misclassified, and the run in which that
            was, from 0 (targets one after the other, `restarts` runs each); -1 if it never was.
    """

    def __init__(self, options: APGDOptions) -> None:
        self.options = options
        self.eps = float(options.eps)
        self.budget: Budget | None = Budget(options.norm, self.eps)

    def run(self, model: ModelView, batch: Batch) -> Columns:
        found = Findings.before(batch.x)
        rows = (batch.clean_correct & (self.eps > 0)).nonzero()[:, 0]
        if len(rows):
            objective = Objective(
                model, self.options.loss, towards_targets=self.options.targets is not None, eot=self.options.eot
            )
            targets = self._targets(batch)
            for number in range(targets.shape[1] * self.options.restarts):
                if len(rows):
                    run = _Run(self, objective, found, number)
                    rows = run.from_random_start(batch, rows, targets[rows, number // self.options.restarts])
        return {
            "adversarial": found.best,
            **randomness(model, batch.y, self.options.eot),
            "steps": batch.y.new_full(batch.y.shape, self.options.steps),
            **found.counts(),
            "loss_first": found.loss_first,
            "loss_last": found.loss_last,
            "success_step": found.success_step,
            "restart": found.restart,
        }

    def _targets(self, batch: Batch) -> Tensor:
        """int64 (B, T): the wrong classes to aim at, one run each; one column of -1 where any will do."""
        if self.options.targets is None:
            return batch.y.new_full((len(batch.y), 1), -1)
        return likeliest_wrong(batch.clean_logits, batch.y, self.options.targets)

    def stages(self) -> list[tuple[float, int]]:
        """Radius and steps of each part of a run."""
        steps = self.options.steps
        if not self.options.large_radii:
            return [(self.eps, steps)]
        part = math.ceil(0.3 * steps)
        stages = [(3 * self.eps, part), (2 * self.eps, part), (self.eps, steps - 2 * part)]
        return [stage for stage in stages if stage[1] > 0]


@dataclass
class _Run:
    """One run of the samples that still stand.

    Attributes:
        number: of the run, from 0.
        radius, steps: of the stage of the run, of which there is one but for `large_radii`.
        done: steps of the stages before.
        calls: questions to the model, in this run.
    """

    attack: APGD
    objective: Objective
    found: Findings
    number: int
    radius: float = 0.0
    steps: int = 0
    done: int = 0
    calls: int = 0

    def from_random_start(self, batch: Batch, rows: Tensor, targets: Tensor) -> Tensor:
        """Returns the rows that still stand."""
        norm = self.attack.options.norm
        scale = None
        if self.attack.options.loss == "cross-entropy" and batch.clean_logits is not None:
            scale = sharpened(batch.clean_logits[rows])
        centre, draws = batch.x[rows], batch.draws[rows]
        stages = self.attack.stages()
        x = self._start(centre, draws.stream("restart", self.number), stages[0][0])
        for radius, steps in stages:
            self.radius, self.steps = radius, steps
            if norm == "l1":
                x = project_l1(x, centre, radius)
            moves = moves_around(centre, x if len(stages) > 1 else None, norm, radius)
            paths = _Paths.at_start(
                x, moves, rows=rows, centre=centre, labels=batch.y[rows], targets=targets, scale=scale, draws=draws
            )
            paths = self._ascend(paths)
            rows, x = paths.rows, paths.best
            self.done += self.steps
        return rows

    def _start(self, centre: Tensor, draws: Draws, radius: float) -> Tensor:
        """A random point of each ball."""
        if self.attack.options.norm == "l1":
            # Normal noise keeps its largest entries only: sparse, as the perturbations are to be. A uniform point of
            # the ball moves all entries, and sparse steps take long to undo that.
            return project_l1(draws.normal("start", 0, centre.shape[1:]).add_(centre), centre, radius)
        return balls_around(centre, self.attack.options.norm, radius).start(centre, draws)

    def _ascend(self, paths: _Paths) -> _Paths:
        """All steps in balls of one radius. Returns those that still stand."""
        check = window = self._first_window()
        for step in range(self.steps + 1):
            paths = self._look(paths, step)
            if step == self.steps or not len(paths.rows):
                break
            if step == check:
                self._check(paths, window)
                window = self._next_window(window)
                check += window
            x = paths.moves.next(paths.x, paths.before, paths.gradient, first=step == 0)
            paths.before, paths.x = paths.x, x
        self._finish(paths, step)
        return paths

    @property
    def inside(self) -> bool:
        """Whether the images are inside the budget."""
        return self.radius == self.attack.eps

    def _first_window(self) -> int:
        share = 0.04 if self.attack.options.norm == "l1" else 0.22
        return max(int(share * self.steps), 1)

    def _next_window(self, window: int) -> int:
        if self.attack.options.norm == "l1":
            return window
        return max(window - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1))

    def _look(self, paths: _Paths, step: int) -> _Paths:
        """Evaluate the current images: the fallen leave, of the others loss, gradient and best image are updated."""
        import torch

        model, last = self.objective.model, step == self.steps
        call = self.number * (self.attack.options.steps + 3) + self.calls
        self.calls += 1
        point = self.objective.at(paths.x, paths, call, differentiable=not last)
        loss, wrong = point.values(), point.margin > 0  # a tie or NaN is no success
        if self.calls == 1:
            self.found.loss_first[paths.rows] = loss
        fallen = self.inside and bool(wrong.any())
        if fallen:
            self.found.mark_success(paths.rows[wrong], self.number, step + self.done)
            fallen = not model.stochastic
        spent = not last and not (fallen and bool(wrong.all()))
        gradient = point.gradient() if spent else torch.zeros_like(paths.x)
        if fallen:
            self._keep(paths, wrong.nonzero()[:, 0], loss, step)
            left = (~wrong).nonzero()[:, 0]
            paths, loss, gradient = paths.only(left), loss[left], gradient.index_select(0, left)
        if spent:
            gradient = self.found.checked(gradient, paths.rows)
        self._ahead(paths, loss, gradient)
        if step == 0:
            paths.checked_loss, paths.rises = loss, torch.zeros_like(paths.rises)
        return paths

    def _ahead(self, paths: _Paths, loss: Tensor, gradient: Tensor) -> None:
        """Note the loss (n,) and gradient of the current images, and which are the best of the run."""
        import torch

        paths.gradient = gradient
        paths.rises = paths.rises + (loss > paths.loss)
        paths.loss = loss
        better = loss > paths.best_loss
        paths.best_loss = loss.where(better, paths.best_loss)
        better = better[:, None, None, None]
        paths.best = torch.where(better, paths.x, paths.best)
        paths.best_gradient = torch.where(better, gradient, paths.best_gradient)

    def _keep(self, paths: _Paths, fallen: Tensor, loss: Tensor, steps: int) -> None:
        """Keep the images of the samples at `fallen`, which leave after so many steps of this stage."""
        rows = paths.rows[fallen]
        self.found.best[rows] = paths.x[fallen]
        self.found.score[rows] = float("inf")
        self.found.loss_last[rows] = loss[fallen]
        self.found.gradient_steps[rows] += steps

    def _check(self, paths: _Paths, window: int) -> None:
        """A checkpoint: adapt the steps; whose steps change goes back to its best image."""
        import torch

        if isinstance(paths.moves, SparseMoves):
            back = paths.moves.adapt(paths.best)
        else:
            stalled = ~paths.halved & (paths.best_loss <= paths.checked_loss)
            back = (paths.rises <= _RHO * window) | stalled
            paths.moves.halve(back)
            paths.halved, paths.checked_loss = back, paths.best_loss
        paths.rises = torch.zeros_like(paths.rises)
        mask = back[:, None, None, None]
        paths.x = torch.where(mask, paths.best, paths.x)
        paths.gradient = torch.where(mask, paths.best_gradient, paths.gradient)

    def _finish(self, paths: _Paths, step: int) -> None:
        """Those who stand at the end: what they spent, and their best image if it is the best of all runs."""
        rows = paths.rows
        self.found.gradient_steps[rows] += step
        self.found.loss_last[rows] = paths.loss
        if self.inside:
            better = paths.best_loss > self.found.score[rows]
            self.found.best[rows[better]] = paths.best[better]
            self.found.score[rows[better]] = paths.best_loss[better]


def build(options: APGDOptions, context: ThreatContext) -> APGD:
    """The attack.

    Raises:
        HarnessError: a budget larger than the image space, or a loss that needs more classes than there are.
    """
    check_diameter("apgd", options.norm, options.eps, context.data)
    refuse_few_classes(options.loss, context.data.num_classes, targeted=options.targets is not None)
    return APGD(options)
