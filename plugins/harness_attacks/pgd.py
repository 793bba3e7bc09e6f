"""Projected gradient descent, the attack of Madry et al. 2018 (arXiv 1706.06083), section 2.1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_attacks.attacked import Findings, Standing
from harness_attacks.balls import balls_around
from harness_attacks.losses import LOSSES, Loss, split
from harness_attacks.options import PGDOptions, in_255ths

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView


class PGD:
    """x <- project(x + step_size * steepest ascent of the loss), from a random point of the ball.

    Only samples that the model classifies rightly are attacked; the others keep their clean image. The image returned
    is the strongest met, the random start and the last step included: one classified as the target, if there is a
    target; else the one with the largest margin of a wrong class over the label. With `early_stop` a sample leaves the
    batch when the goal is reached: any wrong class, or the target where there is one. (Whether the attack succeeded,
    the host decides from the image: misclassified as anything.)

    For a model with randomness every call is given a draw of its own, no sample leaves early and the last image of a
    restart is the one that counts: one lucky draw among many proves nothing.

    Columns, one row a sample:
        adversarial: (B, C, H, W).
        steps: gradient steps planned for each restart.
        gradient_steps: gradients spent, all restarts together; 0 for a sample that was not attacked.
        zero_gradient_steps, nonfinite_gradient_steps: how many of them were zero, or had an infinite or NaN entry
            (the image then stays where it is for that step).
        loss_first, loss_last: the loss at the first and last image of the sample's latest restart, NaN if it was not
            attacked. For "cross-entropy" the log-odds against the label (of which cross-entropy is softplus, without
            its rounding), for "margin" the best other logit minus the label's; with a target the same, negated.
        success_step, restart: the gradient steps taken when the sample was first misclassified, and the restart in
            which that was, from 0; -1 if it never was.
        target, target_reached: with a target only. A sample whose label is the target is not attacked.
    """

    def __init__(self, options: PGDOptions) -> None:
        self.options = options
        self.eps = float(options.eps)
        self.step_size = 2.5 * self.eps / options.steps if options.step_size is None else float(options.step_size)
        self.budget: Budget | None = Budget(options.norm, self.eps)

    def run(self, model: ModelView, batch: Batch) -> Columns:
        found = Findings.before(batch.x)
        targets = self._targets(batch)
        # The ball of radius 0 holds the clean image alone, and nothing is to be found there.
        rows = (batch.clean_correct & (targets != batch.y) & (self.eps > 0)).nonzero()[:, 0]
        ball = balls_around(batch.x, self.options.norm, self.eps)
        standing = Standing(
            rows, batch.y[rows], targets[rows], batch.draws[rows], ball[rows], found.score[rows], found.loss_first[rows]
        )
        for restart in range(self.options.restarts):
            if len(standing):
                standing = self._restart(model, batch.x[standing.rows], standing, restart, found)
        return self._columns(found, targets)

    def _restart(self, model: ModelView, centre: Tensor, standing: Standing, restart: int, found: Findings) -> Standing:
        """One run from a fresh start. Returns the samples that still stand."""
        import torch

        steps = self.options.steps
        x = centre.clone()
        if self.options.random_start:
            x = standing.ball.start(centre, standing.draws.stream("restart", restart))
        for step in range(steps + 1):
            spent = restart * steps + step
            last = step == steps
            draws = standing.draws.numbered(spent + restart) if model.stochastic else standing.draws
            with torch.set_grad_enabled(not last):
                logits = model.logits(x.requires_grad_(not last), draws)
            loss = self._loss(logits, standing)
            if step == 0:
                standing.loss_first = loss.values()
            fallen = self._look(model, standing, x.detach(), logits, loss.margin, restart, step, found)
            if last or (fallen is not None and bool(fallen.all())):
                found.finish(standing, slice(None), loss.values(), spent)
                return standing if fallen is None else standing.only((~fallen).nonzero()[:, 0])
            gradient = model.input_gradient(logits, x, loss.weights)
            x = x.detach()
            if fallen is not None:
                found.finish(standing, fallen.nonzero()[:, 0], loss.values(), spent)
                left = (~fallen).nonzero()[:, 0]
                standing, x, gradient = standing.only(left), x.index_select(0, left), gradient.index_select(0, left)
            standing.ball.step_(x, found.checked(gradient, standing.rows), self.step_size)
        raise AssertionError("the last step returns")

    def _loss(self, logits: Tensor, standing: Standing) -> Loss:
        """What the attack increases."""
        loss = LOSSES[self.options.loss]
        if self.options.target is None:
            return loss(logits, standing.labels)
        towards = loss(logits, standing.targets)
        return Loss(-towards.weights, towards.margin, lambda: -towards.values())

    def _look(
        self,
        model: ModelView,
        standing: Standing,
        x: Tensor,
        logits: Tensor,
        margin: Tensor,
        restart: int,
        step: int,
        found: Findings,
    ) -> Tensor | None:
        """Keep what is better than before. Returns a mask of the samples that leave, or None where none does."""
        import torch

        # A tie or NaN is no success: argmax may well decide a tie for the label.
        if self.options.target is None:
            score = margin
            wrong = reached = margin > 0
        else:
            reached = margin < 0
            mine, others = split(logits, standing.labels)
            score = others.amax(dim=1) - mine
            wrong = score > 0
            score = score.masked_fill(reached, float("inf"))
        better = score > standing.score
        # The one time in a step that the host waits for the device.
        any_wrong, all_better = torch.stack([wrong.any(), better.all()]).tolist()
        if not model.stochastic or step == self.options.steps:
            found.keep_better(standing, x, score, None if all_better else better)
        if not any_wrong:
            return None
        found.mark_success(standing.rows[wrong], restart, step)
        if not self.options.early_stop or model.stochastic:
            return None
        return reached if self.options.target is None or bool(reached.any()) else None

    def _targets(self, batch: Batch) -> Tensor:
        """int64 (B,): the class to reach, -1 for any."""
        target = self.options.target
        if target is None:
            return batch.y.new_full(batch.y.shape, -1)
        if isinstance(target, int):
            return batch.y.new_full(batch.y.shape, target)
        if batch.clean_logits is None:
            raise ValueError("pgd needs a classifier")
        if target == "least-likely":
            return batch.clean_logits.argmin(dim=1)
        other = batch.draws.integers("target", 0, (), batch.clean_logits.shape[1] - 1)
        return other + (other >= batch.y)

    def _columns(self, found: Findings, targets: Tensor) -> Columns:
        columns: dict[str, Any] = {
            "adversarial": found.best,
            "steps": targets.new_full(targets.shape, self.options.steps),
            "gradient_steps": found.gradient_steps,
            "zero_gradient_steps": found.zero_gradient_steps,
            "nonfinite_gradient_steps": found.nonfinite_gradient_steps,
            "loss_first": found.loss_first,
            "loss_last": found.loss_last,
            "success_step": found.success_step,
            "restart": found.restart,
        }
        if self.options.target is not None:
            columns |= {"target": targets, "target_reached": found.score == float("inf")}
        return columns


def build(options: PGDOptions, context: ThreatContext) -> PGD:
    """The attack.

    Raises:
        HarnessError: a budget larger than the image space, or a target that is not a class.
    """
    size = math.prod(context.data.shape)
    diameter = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[options.norm]
    if options.eps > diameter:
        shape = "x".join(map(str, context.data.shape))
        raise HarnessError(
            f"pgd: eps {options.eps} is more than the {options.norm} diameter {diameter:.4g} of {shape} images in [0, 1]"
            + in_255ths(options.eps)
        )
    classes = context.data.num_classes
    if isinstance(options.target, int) and options.target >= classes:
        raise HarnessError(f"pgd: target {options.target} is not a class: the data have classes 0 to {classes - 1}")
    return PGD(options)
