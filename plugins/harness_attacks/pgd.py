"""Projected gradient descent, the attack of Madry et al. 2018 (arXiv 1706.06083), section 2.1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_attacks.attacked import Findings, Standing, randomness
from harness_attacks.ball_options import check_diameter
from harness_attacks.balls import balls_around
from harness_attacks.evasion import Evasion
from harness_attacks.losses import likeliest_wrong, refuse_few_classes, sharpened
from harness_attacks.objective import Objective, Point
from harness_attacks.options import PGDOptions

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView


class PGD:
    """x <- project(x + step_size * steepest ascent of the loss), from a random point of the ball.

    Only samples that the model classifies rightly are attacked; the others keep their clean image. The image returned
    is the strongest met, the random start and the last step included: one that does all that is asked, if there is one
    (classified as the target, or misclassified and accepted by the detector); else the one with the largest margin of
    a wrong class over the label. With `early_stop` a sample leaves the batch when the goal is reached: any wrong class,
    or the target where there is one, and acceptance where the detector is evaded. (Whether the attack succeeded, the
    host decides from the image.)

    For a model with randomness every call is given a draw of its own and each gradient is the mean over `eot` of them.
    No sample leaves early, and the last image of a restart is the one that counts, of several restarts' that with the
    largest mean margin: the best of all steps would be the luckiest in its draws, and one lucky draw among many proves
    nothing. (Measured on the digits CNN with noise of 3 on its logits, l-inf 0.08, 20 steps: the last image leaves
    39.4, 38.9, 38.3 % standing with 1, 4, 16 draws, the best of all steps 48.9, 42.8, 40.0 %.)

    Columns, one row a sample:
        adversarial: (B, C, H, W).
        loss: text, what was increased, and of which answer of the model.
        logit_scale: what the logits were multiplied by first (see `losses.sharpened`); 1 for ordinary classifiers.
        stochastic: bool, whether the model is random; eot: draws averaged for each gradient, 1 if it is not.
        steps: gradient steps planned for each restart.
        gradient_steps: gradients spent, all restarts together; 0 for a sample that was not attacked.
        zero_gradient_steps, nonfinite_gradient_steps: how many of them were zero, or had an infinite or NaN entry
            (the image then stays where it is for that step).
        loss_first, loss_last: the loss at the first and last image of the sample's latest restart, NaN if it was not
            attacked. For "cross-entropy" the log-odds against the label (of which cross-entropy is softplus, without
            its rounding), for "margin" the best other logit minus the label's, for "dlr" that ratio; with a target the
            log-odds, lead or ratio of the target; less `evade_weight` times the detector's excess where it is evaded.
        success_step, restart: the gradient steps taken when the sample was first misclassified (and accepted by the
            detector, where it is evaded), and the restart in which that was, from 0; -1 if it never was. With `targets`
            there is a restart for each, likeliest first, before the next start.
        target, target_reached: with a target only. A sample whose label is the target is not attacked.
        evade_threshold, evaded: where the detector is evaded, the highest score it accepts, and whether the image
            returned was misclassified and accepted.
    """

    def __init__(self, options: PGDOptions) -> None:
        self.options = options
        self.eps = float(options.eps)
        self.sizes = step_sizes(options)
        self.budget: Budget | None = Budget(options.norm, self.eps)

    def run(self, model: ModelView, batch: Batch) -> Columns:
        return _Run(self, model, batch).columns()


class _Run:
    """One batch under attack."""

    def __init__(self, attack: PGD, model: ModelView, batch: Batch) -> None:
        if batch.clean_logits is None:
            raise ValueError("pgd needs a classifier")
        self.attack, self.options = attack, attack.options
        self.batch = batch
        self.stochastic = model.stochastic
        self.source = model.logits_from
        options = self.options
        evade = options.evade
        self.evasion = None if evade == "none" else Evasion(model, evade, options.evade_weight, options.evade_fpr)
        self.objective = Objective(
            model,
            options.loss,
            towards_targets=options.target is not None or options.targets is not None,
            reach_targets=options.target is not None,
            eot=options.eot,
            evasion=self.evasion,
        )
        self.targets = self._choose_targets(batch, batch.clean_logits)
        self.scale = sharpened(batch.clean_logits) if options.loss == "cross-entropy" else None
        self.found = Findings.before(batch.x)

    def columns(self) -> Columns:
        """Attack, and tell."""
        batch, found, attack = self.batch, self.found, self.attack
        # The ball of radius 0 holds the clean image alone, and nothing is to be found there.
        rows = (batch.clean_correct & (self.targets[:, 0] != batch.y) & (attack.eps > 0)).nonzero()[:, 0]
        ball = balls_around(batch.x, self.options.norm, attack.eps)
        standing = Standing(
            rows=rows,
            labels=batch.y[rows],
            targets=self.targets[rows, 0],
            scale=None if self.scale is None else self.scale[rows],
            draws=batch.draws[rows],
            ball=ball[rows],
            score=found.score[rows],
            loss_first=found.loss_first[rows],
        )
        for restart in range(self.options.restarts * self.targets.shape[1]):
            if len(standing):
                standing.targets = self.targets[standing.rows, restart % self.targets.shape[1]]
                standing = self._restart(standing, restart)
        return self._told()

    def _restart(self, standing: Standing, restart: int) -> Standing:
        """One run from a fresh start. Returns the samples that still stand."""
        options, found = self.options, self.found
        steps = options.steps
        x = self.batch.x.index_select(0, standing.rows)
        if options.random_start:
            x = standing.ball.start(x, standing.draws.stream("restart", restart))
        for step in range(steps + 1):
            spent = restart * steps + step
            last = step == steps
            point = self.objective.at(x, standing, spent + restart, differentiable=not last)
            if step == 0:
                standing.loss_first = point.values()
            fallen = self._look(standing, x, point, restart, step)
            if last or (fallen is not None and bool(fallen.all())):
                found.finish(standing, slice(None), point.values(), spent)
                return standing if fallen is None else standing.only((~fallen).nonzero()[:, 0])
            gradient = point.gradient()
            if fallen is not None:
                found.finish(standing, fallen.nonzero()[:, 0], point.values(), spent)
                left = (~fallen).nonzero()[:, 0]
                standing, x, gradient = standing.only(left), x.index_select(0, left), gradient.index_select(0, left)
            standing.ball.step_(x, found.checked(gradient, standing.rows), self.attack.sizes[step])
        raise AssertionError("the last step returns")

    def _look(self, standing: Standing, x: Tensor, point: Point, restart: int, step: int) -> Tensor | None:
        """Keep what is better than before. Returns a mask of the samples that leave, or None where none does."""
        import torch

        # A tie or NaN is no success: argmax may well decide a tie for the label.
        score, wrong = point.margin, point.margin > 0
        goal = wrong
        if self.evasion is not None and point.excess is not None:
            score = self.evasion.strength(point.margin, point.excess)
            goal = wrong = wrong & (point.excess <= 0)
        if point.towards is not None:
            goal = wrong & (point.towards > 0)
            score = score.masked_fill(goal, float("inf"))
        better = score > standing.score
        # The one time in a step that the host waits for the device.
        any_wrong, all_better = torch.stack([wrong.any(), better.all()]).tolist()
        if not self.stochastic or step == self.options.steps:
            self.found.keep_better(standing, x, score, None if all_better else better)
        if not any_wrong:
            return None
        self.found.mark_success(standing.rows[wrong], restart, step)
        if not self.options.early_stop or self.stochastic:
            return None
        return goal if goal is wrong or bool(goal.any()) else None

    def _choose_targets(self, batch: Batch, clean_logits: Tensor) -> Tensor:
        """int64 (B, T): the classes to head for in turn; -1 for any."""
        target, several = self.options.target, self.options.targets
        if several is not None:
            count = clean_logits.shape[1] - 1 if several == "all" else several
            return likeliest_wrong(clean_logits, batch.y, count)
        if target is None or isinstance(target, int):
            return batch.y.new_full((len(batch.y), 1), -1 if target is None else target)
        if target == "least-likely":
            return clean_logits.argmin(dim=1, keepdim=True)
        other = batch.draws.integers("target", 0, (1,), clean_logits.shape[1] - 1)
        return other + (other >= batch.y[:, None])

    def _told(self) -> Columns:
        found, targets, options = self.found, self.targets[:, 0], self.options
        loss = f"{options.loss} on {self.source}"
        columns: dict[str, Any] = {
            "adversarial": found.best,
            "loss": [loss if self.evasion is None else f"{loss}, {options.evade} on ood_score"] * len(targets),
            "logit_scale": found.score.new_ones(len(targets)) if self.scale is None else self.scale[:, 0],
            **randomness(self.objective.model, targets, self.objective.eot),
            "steps": targets.new_full(targets.shape, options.steps),
            **found.counts(),
            "loss_first": found.loss_first,
            "loss_last": found.loss_last,
            "success_step": found.success_step,
            "restart": found.restart,
        }
        if options.target is not None:
            columns |= {"target": targets, "target_reached": found.score == float("inf")}
        if self.evasion is not None:
            columns |= {
                "evade_threshold": found.score.new_full(targets.shape, self.evasion.threshold),
                "evaded": found.score > self.evasion.BOTH,
            }
        return columns


def step_sizes(options: PGDOptions) -> list[float]:
    """The length of each step.

    A cosine starts at eps unless told otherwise: of 2.5 eps / 40 to eps that was the strongest on the embedded networks
    (robust accuracy of the adversarially trained one at l2 1.0: 47 to 20 %, constant steps of 2.5 eps / 40 leave 29 %).
    """
    steps, eps, cosine = options.steps, float(options.eps), options.schedule == "cosine"
    first = (eps if cosine else 2.5 * eps / steps) if options.step_size is None else float(options.step_size)
    return [first * (1 + math.cos(math.pi * step / steps)) / 2 if cosine else first for step in range(steps)]


def build(options: PGDOptions, context: ThreatContext) -> PGD:
    """The attack.

    Raises:
        HarnessError: a budget larger than the image space, a target that is not a class, too few classes for the loss.
    """
    check_diameter("pgd", options.norm, options.eps, context.data)
    classes = context.data.num_classes
    if isinstance(options.target, int) and options.target >= classes:
        raise HarnessError(f"pgd: target {options.target} is not a class: the data have classes 0 to {classes - 1}")
    if isinstance(options.targets, int) and options.targets >= classes:
        raise HarnessError(
            f'pgd: {options.targets} targets, but of {classes} classes {classes - 1} are wrong: set targets = "all"'
        )
    refuse_few_classes(options.loss, classes, targeted=options.target is not None or options.targets is not None)
    return PGD(options)
