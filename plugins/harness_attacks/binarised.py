"""The binarised-boundary test: can an attack solve a task that is known to have a solution?

Zimmermann et al. 2022, *Increasing Confidence in Adversarial Robustness Evaluations* (arXiv 2206.13991), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, ThreatError
from harness.models import ModelView
from harness.options import Options, option
from harness.threats import Batch, Budget, Columns, Threat, ThreatContext
from harness_attacks.balls import balls_around
from harness_attacks.noise import surface_points
from harness_attacks.under_test import attack_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness.randomness import Draws
    from harness.threats import Norm

INNER = 0.95  # radius of the ball whose points belong to the first class, in eps (the paper's eta)
DIRECTIONS = 16  # readouts tried for each sample; the one with the widest gap is taken
CLOSENESS = 0.95  # where the boundary lies between the best inner point and the adversarial image
FRESH_DRAWS = 10  # of a random model, for every verdict


class BinarisedOptions(Options):
    """Options of `binarised`."""

    attack: dict[str, Any] = option(help='the attack under test: {"plugin": "pgd", "norm": ..., "eps": ..., ...}')
    points: int = option(32, help="random points inside the ball, and as many on its surface, for each task", ge=2)


class Binarised:
    """Runs the attack under test on a task of two classes for each sample.

    The task is a linear readout of the model's logits. Its direction is the best of a few random ones, and its boundary
    runs just below the highest of `points` random points on the ball's surface, above all of as many points well
    inside. So an adversarial image is known, random search finds one in about `points` tries, and an attack that
    follows the gradient finds it at once: unless the gradient misleads. (The paper trains the readout by logistic
    regression; the best of random points needs no training and cannot fail to separate.)

    No task can be posed where the logits do not change over the ball.

    Columns, one row a sample that the model classifies rightly or not:
        task_posed: whether there was a task with a known solution.
        task_solved: whether the image that the attack returned, inside the budget, is on the far side.
        task_lead: float64, how far beyond the boundary that image is, in gaps between the highest point well inside
            and the known solution; negative if not beyond, NaN where no task was posed.
    """

    budget: Budget | None = None

    def __init__(self, attack: Threat, budget: Budget, points: int) -> None:
        self.attack = attack
        self.ball = budget
        self.points = points

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        with torch.no_grad():
            task = self._pose(model, batch)
            binary = BinaryView(model, task)
            clean = _logits(binary, batch.x, batch.draws)
            posed = task.posed & (clean[:, 1] < clean[:, 0])
        index = posed.nonzero()[:, 0]
        solved = torch.zeros_like(posed)
        lead = torch.full_like(task.gap, math.nan)
        if len(index):
            y = torch.zeros_like(index)
            given = Batch(batch.x[index], y, batch.ids[index], batch.draws[index], clean[index], y)
            images = torch.as_tensor(self.attack.run(binary, given)["adversarial"])
            with torch.no_grad():
                answers = _logits(binary, images, given.draws)
            lead[index] = (answers[:, 1] - answers[:, 0]) / task.gap[index]
            solved[index] = (lead[index] > 0) & self._inside(images, given.x)
        return {"task_posed": posed, "task_solved": solved, "task_lead": lead}

    def _pose(self, model: ModelView, batch: Batch) -> Task:
        """A task for each sample."""
        import torch

        norm: Norm = self.ball.norm
        small = balls_around(batch.x, norm, INNER * self.ball.eps)
        draws = batch.draws
        inner = [
            _logits(model, small.start(batch.x, draws.stream("inner", number)), draws) for number in range(self.points)
        ]
        outer = [
            _logits(model, surface_points(batch.x, norm, self.ball.eps, draws.stream("outer"), number), draws)
            for number in range(self.points)
        ]
        inside, outside = torch.stack(inner), torch.stack(outer)  # (points, B, K)
        spread = torch.cat([inside, outside]).std(dim=0)
        # Measured in the spread of the logits over the ball; a logit that never changes has no part.
        weight = torch.where(spread > 0, 1 / spread.clamp_min(1e-300), 0.0)
        directions = draws.normal("readout", 0, (DIRECTIONS, weight.shape[1]), torch.float64) * weight[:, None]
        highest = (inside[:, :, None] * directions).sum(dim=3).amax(dim=0)
        solution = (outside[:, :, None] * directions).sum(dim=3).amax(dim=0)  # (B, directions)
        best = (solution - highest).nan_to_num(nan=-math.inf).argmax(dim=1, keepdim=True)
        highest, solution = highest.gather(1, best)[:, 0], solution.gather(1, best)[:, 0]
        direction = directions[torch.arange(len(best), device=best.device), best[:, 0]]
        # A gap of a few float32 spacings of the logits is no boundary.
        fine = 1e-6 * (inside[0] * direction).abs().sum(dim=1)
        threshold = highest + CLOSENESS * (solution - highest)
        posed = torch.isfinite(solution) & (solution - highest > fine)
        return Task(direction, threshold, solution - highest, posed)

    def _inside(self, images: Tensor, x: Tensor) -> Tensor:
        import torch

        order = {"linf": float("inf"), "l2": 2, "l1": 1}[self.ball.norm]
        size = torch.linalg.vector_norm((images - x).double().flatten(1), ord=order, dim=1)
        in_box = (images.flatten(1) >= 0).all(dim=1) & (images.flatten(1) <= 1).all(dim=1)
        inside: Tensor = in_box & (size <= self.ball.eps * (1 + 1e-6) + 1e-6)
        return inside


@dataclass(frozen=True)
class Task:
    """Linear readouts: class 1 where ``direction . logits > threshold``; of n samples.

    Attributes:
        direction: float64 (n, K).
        threshold, gap: float64 (n,); the gap is between the highest point well inside and the known solution.
        posed: bool (n,), whether there is such a gap.
    """

    direction: Tensor
    threshold: Tensor
    gap: Tensor
    posed: Tensor


class BinaryView(ModelView):
    """A model as its batch's binary tasks: two logits, of which the second says on which side an image is."""

    def __init__(self, model: ModelView, task: Task) -> None:
        self._view = model
        self._task = task
        self._reference = None
        self._own = self.capabilities = frozenset({"Classifier"})
        self.stochastic = model.stochastic

    @property
    def num_classes(self) -> int:
        return 2

    @property
    def forwards(self) -> Tensor:
        return self._view.forwards

    @property
    def backwards(self) -> Tensor:
        return self._view.backwards

    def logits(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, 2), float64: 0, and how far beyond the boundary the image is."""
        import torch

        if draws is None:
            raise ThreatError("an attack under test must pass draws with every image")
        scores = self._view.logits(x, draws).double()
        beyond = (scores * self._task.direction[draws.slots]).sum(dim=1) - self._task.threshold[draws.slots]
        return torch.stack([torch.zeros_like(beyond), beyond], dim=1)


def _logits(model: ModelView, x: Tensor, draws: Draws) -> Tensor:
    """float64 (B, K), averaged over fresh draws of a random model."""
    if not model.stochastic:
        return model.logits(x, draws).double()
    fresh = (model.logits(x, draws.numbered(10**6 + number)).double() for number in range(FRESH_DRAWS))
    total: Tensor = sum(fresh, x.new_zeros(()))
    return total / FRESH_DRAWS


def build(options: BinarisedOptions, context: ThreatContext) -> Binarised:
    """The threat.

    Raises:
        HarnessError: one line: an attack that cannot be tested, or options that it refuses.
    """
    attack = attack_of(options.attack, context, "binarised")
    if attack.budget is None or math.isinf(attack.budget.eps):
        raise HarnessError("binarised: the attack has no budget, so there is no ball to put an adversarial image in")
    return Binarised(attack, attack.budget, options.points)
