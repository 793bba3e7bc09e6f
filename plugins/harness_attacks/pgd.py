"""Projected gradient descent, the attack of Madry et al. 2018 (arXiv 1706.06083), section 2.1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_attacks.attacked import Attacked
from harness_attacks.balls import balls_around
from harness_attacks.losses import LOSSES
from harness_attacks.options import PGDOptions, in_255ths

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView


class PGD:
    """x <- project(x + step_size * steepest ascent of the loss), from a random point of the ball.

    Only samples that the model classifies rightly are attacked; the others keep their clean image. The image returned
    is the strongest met, the random start and the last step included: one classified as the target before any other
    misclassified one before one that is not, and among equals the one with the highest loss. With `early_stop` a
    sample leaves the batch when the goal is reached: any wrong class, or the target where there is one. (Whether the
    attack succeeded, the host decides from the image: misclassified as anything.)

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
        targets = self._targets(batch)
        samples = Attacked.of(batch, balls_around(batch.x, self.options.norm, self.eps), targets)
        # The ball of radius 0 holds the clean image alone, and nothing is to be found there.
        standing = samples[(batch.clean_correct & (targets != batch.y) & (self.eps > 0)).nonzero()[:, 0]]
        for restart in range(self.options.restarts):
            if len(standing):
                standing = self._restart(model, standing, restart, samples)
        samples.put(standing)
        return self._columns(samples)

    def _restart(self, model: ModelView, standing: Attacked, restart: int, samples: Attacked) -> Attacked:
        """One run from a fresh start. Samples that fall are put into `samples`; those still standing are returned."""
        import torch

        steps = self.options.steps
        x = self._start(standing, restart)
        for step in range(steps + 1):
            last = step == steps
            with torch.set_grad_enabled(not last):
                logits = model.logits(x.requires_grad_(not last), standing.draws.numbered(restart * (steps + 1) + step))
                loss = self._loss(logits, standing)
            with torch.no_grad():
                fallen = self._note(model, standing, x, logits, loss.detach(), restart, step)
            if fallen is not None and bool(fallen.all()):
                samples.put(standing)
                return standing[:0]
            gradient = None if last else model.input_gradient(loss, x)
            x = x.detach()
            if fallen is not None:
                samples.put(standing[fallen])
                left = (~fallen).nonzero()[:, 0]
                standing, x = standing[left], x[left]
                gradient = None if gradient is None else gradient[left]
            if gradient is not None:
                standing.ball.step_(x, standing.checked(gradient), self.step_size)
        return standing

    def _start(self, standing: Attacked, restart: int) -> Tensor:
        if self.options.random_start:
            return standing.ball.start(standing.draws.stream("restart", restart))
        return standing.ball.centre.clone()

    def _loss(self, logits: Tensor, standing: Attacked) -> Tensor:
        """(n,), what the attack increases."""
        score = LOSSES[self.options.loss]
        if self.options.target is None:
            return score(logits, standing.labels)
        return -score(logits, standing.targets)

    def _note(
        self, model: ModelView, standing: Attacked, x: Tensor, logits: Tensor, loss: Tensor, restart: int, step: int
    ) -> Tensor | None:
        """Book one evaluation. Returns a mask of the samples that leave, or None where none does."""
        import torch

        if step == 0:
            standing.loss_first = loss
        standing.loss_last = loss
        prediction = logits.argmax(dim=1)
        # argmax takes NaN for the largest; a model that answers NaN has not been fooled.
        wrong = (prediction != standing.labels) & ~loss.isnan()
        rank = wrong.to(torch.int8)
        if self.options.target is not None:
            rank += wrong & (prediction == standing.targets)
        better = standing.better(rank, loss)
        # The one time in a step that the host waits for the device.
        any_wrong, all_better = torch.stack([wrong.any(), better.all()]).tolist()
        if not model.stochastic or step == self.options.steps:
            standing.keep(x, rank, loss, None if all_better else better)
        if not any_wrong:
            return None
        standing.mark_success(wrong, restart, step)
        if not self.options.early_stop or model.stochastic:
            return None
        if self.options.target is None:
            return wrong
        reached = rank == 2
        return reached if bool(reached.any()) else None

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

    def _columns(self, samples: Attacked) -> Columns:
        columns: dict[str, Any] = {
            "adversarial": samples.best,
            "steps": samples.rows.new_full(samples.rows.shape, self.options.steps),
            "gradient_steps": samples.gradient_steps,
            "zero_gradient_steps": samples.zero_gradient_steps,
            "nonfinite_gradient_steps": samples.nonfinite_gradient_steps,
            "loss_first": samples.loss_first,
            "loss_last": samples.loss_last,
            "success_step": samples.success_step,
            "restart": samples.restart,
        }
        if self.options.target is not None:
            columns |= {"target": samples.targets, "target_reached": samples.rank == 2}
        return columns


def build(options: PGDOptions, context: ThreatContext) -> PGD:
    """The attack.

    Raises:
        HarnessError: a budget larger than the image space, or a target that is not a class.
    """
    diameter = math.sqrt(math.prod(context.data.shape))
    if options.norm == "l2" and options.eps > diameter:
        shape = "x".join(map(str, context.data.shape))
        raise HarnessError(
            f"pgd: eps {options.eps} is more than the l2 diameter {diameter:.4g} of {shape} images in [0, 1]"
            + in_255ths(options.eps)
        )
    classes = context.data.num_classes
    if isinstance(options.target, int) and options.target >= classes:
        raise HarnessError(f"pgd: target {options.target} is not a class: the data have classes 0 to {classes - 1}")
    return PGD(options)
