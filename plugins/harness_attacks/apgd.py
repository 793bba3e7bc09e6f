"""Auto-PGD: projected gradient descent that chooses its step sizes itself.

Croce & Hein 2020, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks*
(arXiv 2003.01690), section 3 and algorithm 1; in l1 Croce & Hein 2021, *Mind the box* (arXiv 2103.01208), section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationInfo, field_validator

from harness.errors import HarnessError
from harness.options import option
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_attacks.apgd_moves import SparseMoves, StraightMoves, moves_around
from harness_attacks.attacked import Findings
from harness_attacks.ball_options import BallOptions, check_diameter
from harness_attacks.balls import balls_around
from harness_attacks.dlr import dlr_against, dlr_towards
from harness_attacks.l1 import project_l1
from harness_attacks.losses import LOSSES, Loss
from harness_attacks.options import problem

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws

CLASSES_NEEDED = {"cross-entropy": 2, "margin": 2, "dlr": 3, "targeted-dlr": 4}
_RHO = 0.75  # share of a window's steps that must increase the loss


class APGDOptions(BallOptions):
    """Options of `apgd`."""

    steps: int = option(100, help="gradient steps in each run", ge=1)
    restarts: int = option(1, help="runs from a fresh random start, for the samples still standing", ge=1)
    loss: Literal["cross-entropy", "margin", "dlr", "targeted-dlr"] = option(
        "cross-entropy", help="what a step increases; targeted-dlr runs once for each of the likeliest wrong classes"
    )
    targets: int = option(
        9, help="targeted-dlr: how many wrong classes, the likeliest first (as far as there are)", ge=1
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
        return large


@dataclass
class _Paths:
    """Where n samples are on their runs.

    Attributes:
        rows: int64 (n,), the samples' rows in the batch.
        centre, x, before: (n, C, H, W), the clean images, the current ones and those one step earlier.
        labels, targets: int64 (n,); a target is -1 where any wrong class will do.
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

    def only(self, index: Tensor) -> _Paths:
        """Those at `index` (int64)."""
        kept = {}
        for field in fields(self):
            value = getattr(self, field.name)
            kept[field.name] = value[index] if field.name in ("draws", "moves") else value.index_select(0, index)
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
        steps: gradient steps planned for each run.
        gradient_steps: gradients spent, all runs together; 0 for a sample that was not attacked.
        zero_gradient_steps, nonfinite_gradient_steps: how many of them were zero, or had an infinite or NaN entry.
        loss_first, loss_last: the loss at the first and the last image of the sample's latest run, NaN if it was not
            attacked. For "cross-entropy" the log-odds against the label, of which cross-entropy is softplus.
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
        targets = self._targets(batch)
        for number in range(targets.shape[1] * self.options.restarts):
            if len(rows):
                rows = self._run(model, batch, rows, targets[:, number // self.options.restarts], number, found)
        return {
            "adversarial": found.best,
            "steps": batch.y.new_full(batch.y.shape, self.options.steps),
            "gradient_steps": found.gradient_steps,
            "zero_gradient_steps": found.zero_gradient_steps,
            "nonfinite_gradient_steps": found.nonfinite_gradient_steps,
            "loss_first": found.loss_first,
            "loss_last": found.loss_last,
            "success_step": found.success_step,
            "restart": found.restart,
        }

    def _targets(self, batch: Batch) -> Tensor:
        """int64 (B, T): the wrong classes to aim at, one run each; one column of -1 for the untargeted losses."""
        if self.options.loss != "targeted-dlr":
            return batch.y.new_full((len(batch.y), 1), -1)
        return likeliest_wrong(batch, self.options.targets)

    def _stages(self) -> list[tuple[float, int]]:
        """Radius and steps of each part of a run."""
        steps = self.options.steps
        if not self.options.large_radii:
            return [(self.eps, steps)]
        part = math.ceil(0.3 * steps)
        stages = [(3 * self.eps, part), (2 * self.eps, part), (self.eps, steps - 2 * part)]
        return [stage for stage in stages if stage[1] > 0]

    def _run(
        self, model: ModelView, batch: Batch, rows: Tensor, targets: Tensor, number: int, found: Findings
    ) -> Tensor:
        """One run from a fresh start. Returns the rows that still stand."""
        options = self.options
        centre, draws = batch.x[rows], batch.draws[rows]
        stages = self._stages()
        x = balls_around(centre, options.norm, stages[0][0]).start(centre, draws.stream("restart", number))
        done = 0
        for place, (eps, steps) in enumerate(stages):
            if place:
                x = project_l1(x, centre, eps)
            moves = moves_around(centre, x if place else None, options.norm, eps)
            run = _Run(self, model, found, number, steps, place, done, last=place == len(stages) - 1)
            rows, x = run(rows, centre, batch.y[rows], targets[rows], draws, moves, x)
            done += steps
        return rows


@dataclass
class _Run:
    """One run, or one stage of it, of the samples that still stand."""

    attack: APGD
    model: ModelView
    found: Findings
    number: int
    steps: int
    stage: int
    done: int  # steps of the stages before
    last: bool  # whether this stage stays inside the budget

    def __call__(
        self,
        rows: Tensor,
        centre: Tensor,
        labels: Tensor,
        targets: Tensor,
        draws: Draws,
        moves: StraightMoves | SparseMoves,
        x: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Returns the rows that still stand, and their images of the highest loss."""
        import torch

        none = torch.full((len(x),), float("-inf"), dtype=torch.float64, device=x.device)
        paths = _Paths(
            rows, centre, labels, targets, draws, moves, x, x, x, x.clone(), torch.zeros_like(x), none, none,
            torch.zeros_like(rows), none, torch.ones_like(rows, dtype=torch.bool),
        )  # fmt: skip
        check, window = self._first_check(), self._first_check()
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
        return paths.rows, paths.best

    def _first_check(self) -> int:
        share = 0.04 if self.attack.options.norm == "l1" else 0.22
        return max(int(share * self.steps), 1)

    def _next_window(self, window: int) -> int:
        if self.attack.options.norm == "l1":
            return window
        return max(window - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1))

    def _look(self, paths: _Paths, step: int) -> _Paths:
        """Evaluate the current images: the fallen leave, of the others loss, gradient and best image are updated."""
        import torch

        last = step == self.steps
        loss, gradient, wrong = self._evaluate(paths, step, not last)
        if step == 0 and not self.done:
            self.found.loss_first[paths.rows] = loss
        if self.last and bool(wrong.any()):
            self.found.mark_success(paths.rows[wrong], self.number, step + self.done)
            if not self.model.stochastic:
                paths, loss, gradient = self._leave(paths, wrong, loss, gradient, step)
        if gradient is not None:
            paths.gradient = self.found.checked(gradient, paths.rows)
        paths.rises += loss > paths.loss
        paths.loss = loss
        better = loss > paths.best_loss
        paths.best_loss = loss.where(better, paths.best_loss)
        better = better[:, None, None, None]
        paths.best = torch.where(better, paths.x, paths.best)
        if not last:
            paths.best_gradient = torch.where(better, paths.gradient, paths.best_gradient)
        if step == 0:
            paths.checked_loss, paths.rises = loss, torch.zeros_like(paths.rises)
        return paths

    def _evaluate(self, paths: _Paths, step: int, differentiate: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Loss, float64 (n,), gradient and who is misclassified; for a random model means over draws, and a majority."""
        options, model = self.attack.options, self.model
        if not model.stochastic:
            return self._once(paths, paths.draws, differentiate)
        first = (self.number * (options.steps + 3) + self.done + self.stage + step) * options.eot
        loss, gradient, wrong = self._once(paths, paths.draws.numbered(first), differentiate)
        votes = wrong.long()
        for number in range(first + 1, first + options.eot):
            more_loss, more_gradient, more_wrong = self._once(paths, paths.draws.numbered(number), differentiate)
            loss, votes = loss + more_loss, votes + more_wrong
            gradient = None if gradient is None or more_gradient is None else gradient + more_gradient
        gradient = None if gradient is None else gradient / options.eot
        return loss / options.eot, gradient, 2 * votes > options.eot

    def _once(self, paths: _Paths, draws: Draws, differentiate: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        import torch

        x = paths.x.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            logits = self.model.logits(x, draws)
        loss = self._loss(logits, paths)
        gradient = self.model.input_gradient(logits, x, loss.weights) if differentiate else None
        return loss.values(), gradient, loss.margin > 0  # a tie or NaN is no success

    def _loss(self, logits: Tensor, paths: _Paths) -> Loss:
        name = self.attack.options.loss
        if name == "targeted-dlr":
            return dlr_towards(logits, paths.labels, paths.targets)
        return dlr_against(logits, paths.labels) if name == "dlr" else LOSSES[name](logits, paths.labels)

    def _leave(
        self, paths: _Paths, wrong: Tensor, loss: Tensor, gradient: Tensor | None, step: int
    ) -> tuple[_Paths, Tensor, Tensor | None]:
        fallen, left = wrong.nonzero()[:, 0], (~wrong).nonzero()[:, 0]
        rows = paths.rows[fallen]
        self.found.best[rows] = paths.x.detach()[fallen]
        self.found.score[rows] = float("inf")
        self.found.loss_last[rows] = loss[fallen]
        # The gradient of the batch was taken before anybody left.
        self.found.gradient_steps[rows] += step + (gradient is not None)
        return paths.only(left), loss[left], gradient if gradient is None else gradient.index_select(0, left)

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
        if self.last:
            better = paths.best_loss > self.found.score[rows]
            self.found.best[rows[better]] = paths.best[better]
            self.found.score[rows[better]] = paths.best_loss[better]


def likeliest_wrong(batch: Batch, count: int) -> Tensor:
    """int64 (B, T), T = min(count, K - 1): wrong classes by their clean logit, the likeliest first."""
    if batch.clean_logits is None:
        raise ValueError("an attack on a class needs a classifier")
    others = batch.clean_logits.double().scatter(1, batch.y[:, None], float("-inf"))
    return others.topk(min(count, others.shape[1] - 1), dim=1)[1]


def build(options: APGDOptions, context: ThreatContext) -> APGD:
    """The attack.

    Raises:
        HarnessError: a budget larger than the image space, or a loss that needs more classes than there are.
    """
    check_diameter("apgd", options.norm, options.eps, context.data)
    needed = CLASSES_NEEDED[options.loss]
    if context.data.num_classes < needed:
        raise HarnessError(
            f'apgd: the loss "{options.loss}" needs {needed} classes and the data have {context.data.num_classes};'
            ' use "margin"'
        )
    return APGD(options)
