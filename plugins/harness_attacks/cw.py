"""Carlini & Wagner 2017 (arXiv 1608.04644), section VI.A, with the detection term of Mackowiak et al. 2021, eq. 35."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import HarnessError, ThreatError
from harness.judge import norm_of
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness.typicality import Typicality
from harness_attacks.attacked import randomness
from harness_attacks.clean import certainty
from harness_attacks.cw_options import CWOptions
from harness_attacks.cw_search import Adam, Box, WeightSearch
from harness_attacks.losses import Loss, margin_against, margin_of
from harness_attacks.smallest import CONFIRMING_DRAWS, Kept, clearance, confirmed, settle

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws

_ANSWERS = 10  # draws over which a random model's answer for the returned images is averaged
_IMPROVES = 1e-6  # relative: less is rounding


class Together(NamedTuple):
    """Logits and log-likelihood of one evaluation, to be differentiated by one backward pass.

    Attributes:
        answers: (n, K + 1), on the graph of `x`.
        weights: (n, K), derivative of the goal with respect to the logits.
    """

    answers: Tensor
    x: Tensor
    weights: Tensor


class Asked(NamedTuple):
    """What a model says of n images; of a random model the means over `eot` draws.

    Attributes:
        wrong: float64 (n,), the largest logit of another class minus the label's.
        goal: float64 (n,), what the attack makes negative: by how much the target loses, or the label wins.
        clear: float64 (n,), by how much either must be over 0 to be believed (see `clearance`).
        goal_gradient: (n, C, H, W), of `goal`; None where `together` has it.
        log_prob: float64 (n,) nats, and its gradient; None without a detection term.
        together: both gradients, not yet taken: of a model without randomness, which is asked once.
    """

    wrong: Tensor
    goal: Tensor
    clear: Tensor
    goal_gradient: Tensor | None
    log_prob: Tensor | None = None
    log_prob_gradient: Tensor | None = None
    together: Together | None = None

    def plus(self, other: Asked) -> Asked:
        return Asked(*(None if a is None or b is None else a + b for a, b in zip(self[:-1], other[:-1], strict=True)))  # type: ignore[arg-type]

    def over(self, count: int) -> Asked:
        return self if count == 1 else Asked(*(None if a is None else a / count for a in self[:-1]))  # type: ignore[arg-type]


@dataclass
class Runs:
    """The samples under attack, each at its own step of its own run (n of them).

    Attributes:
        rows: int64 (n,), their rows in the batch.
        scale: float64 (n,), what a margin is divided by.
        least: float64 (n,), the smallest objective of this run, and `stale`, the steps since it was found.
        reached: bool (n,), whether the goal was reached in this run.
    """

    rows: Tensor
    labels: Tensor
    targets: Tensor
    draws: Draws
    x0: Tensor
    scale: Tensor
    adam: Adam
    search: WeightSearch
    least: Tensor
    stale: Tensor
    reached: Tensor

    def only(self, index: Tensor) -> Runs:
        """Those at `index` (int64)."""
        kept: dict[str, Any] = {name: getattr(self, name).index_select(0, index) for name in _TENSORS}
        return Runs(**kept, draws=self.draws[index], adam=self.adam.only(index), search=self.search.only(index))

    def restart(self, done: Tensor) -> None:
        """Begin again at the clean image where `done` (n,) holds, at another weight."""
        self.search.next_(done, self.reached)
        self.adam.restart_(done)
        self.least.masked_fill_(done, float("inf"))
        self.stale.masked_fill_(done, 0)
        self.reached &= ~done


_TENSORS = ("rows", "labels", "targets", "x0", "scale", "least", "stale", "reached")


class CW:
    """Minimises ``distance + c * max(margin, -kappa) + d * (median log p - log p)^2`` over w, x = (tanh(w) + 1) / 2.

    `margin` is by how much the label still wins over every other class, or every other class over the target. It is
    formed in float64 from differences of logits and divided by the sample's clean margin (`normalise`), so neither the
    scale of the logits nor anything added to all of them matters. Every sample has its own c, its own binary search
    over it (geometric: times or over 10 until bracketed), its own Adam and its own end, whatever its neighbours do.

    Only samples that the model classifies rightly (and whose label is not the target) are attacked. Kept is the image
    of the smallest distance, the detection term included, that reaches the goal: misclassified, as the target where
    there is one, by `kappa`. Else one that is misclassified at all; else the clean image, which the host books with an
    infinite norm. With kappa = inf the objective itself decides among the images that reach the target.

    Pixels at 0 and 1 have no finite w. By default w ends where tanh reaches 1 / 1.1, stretched so that 0 and 1 are
    reached there exactly. Under ``paper = "ib-inn"``, which has the plain tanh, the walk starts with pixels pulled in
    to half a grey level of 255 from the ends.

    Under the preset a model's `class_log_prob` stands for its logits where it has one. Margins and kappa are then in
    `units`; a plain classifier's logits are taken as they are. The median is that of held-out images, or given.

    A model with randomness: as in `MinimalNorm`, an image must fool on 8 of 10 fresh draws to be kept, and on 16 of 20
    further ones in the end.

    Columns, one row a sample, beside those of the host:
        adversarial: (B, C, H, W).
        steps: gradient steps planned for each value of c; gradient_steps, zero_gradient_steps,
            nonfinite_gradient_steps: spent in all, and how many had a zero or not finite gradient of the margin (of
            the whole objective, where one evaluation of a class density gives the margin and the detection term).
        goal_reached: bool, by the attack's own reckoning: the target where there is one, by kappa where that is finite.
        target: the class, -1 for any.
        c: the weight that gave the image, NaN where none did.
        l2_per_pixel: l2 norm over the square root of the number of entries, the paper's "perturbation".
        confidence, entropy: of the softmax at the returned image; entropy in nats.
        clean_log_prob, adversarial_log_prob (nats), clean_one_tailed_score, adversarial_one_tailed_score: for a model
            with a density; clean_two_tailed_score, adversarial_two_tailed_score: where the median is known too
            (`Typicality`). Higher is more out-of-distribution.
    """

    def __init__(self, options: CWOptions) -> None:
        self.options = options
        self.budget: Budget | None = Budget("l2", float("inf"))
        self.box = Box.plain() if options.paper else Box.stretched()

    def run(self, model: ModelView, batch: Batch) -> Columns:
        if self.options.detection and "Density" not in model.capabilities:
            raise ThreatError("the detection term needs a model with a density (log_prob); set detection = 0")
        typicality = self._typicality(model)
        kept, weights = Kept.before(batch.x), batch.x.new_full((len(batch.y),), float("nan")).double()
        targets = self._targets(batch)
        rows = (batch.clean_correct & (targets != batch.y)).nonzero()[:, 0]
        number = 0
        if len(rows):
            runs = self._begin(model, batch, targets, rows)
            while len(runs.rows):
                runs = self._step(model, runs, number, kept, weights, typicality)
                number += self.options.eot + CONFIRMING_DRAWS
        if model.stochastic:
            settle(model, batch.x, batch.y, batch.draws, kept, self._most_draws)
        return self._columns(model, batch, kept, weights, targets, typicality)

    @property
    def _most_draws(self) -> int:
        steps = self.options.steps * max(self.options.search_steps, 1)
        return steps * (self.options.eot + CONFIRMING_DRAWS)

    def _begin(self, model: ModelView, batch: Batch, targets: Tensor, rows: Tensor) -> Runs:
        import torch

        options = self.options
        x0 = batch.x[rows]
        inf = torch.full((len(rows),), float("inf"), dtype=torch.float64, device=x0.device)
        assert batch.clean_logits is not None
        return Runs(
            rows,
            batch.y[rows],
            targets[rows],
            batch.draws[rows],
            x0,
            self._scale(model, batch.clean_logits[rows], batch.y[rows], targets[rows], x0[0].numel()),
            Adam.start(self.box, x0, options.learning_rate),
            WeightSearch.start(len(rows), options.c, max(options.search_steps, 1), x0.device),
            least=inf,
            stale=torch.zeros_like(batch.y[rows]),
            reached=torch.zeros(len(rows), dtype=torch.bool, device=x0.device),
        )

    def _scale(self, model: ModelView, logits: Tensor, labels: Tensor, targets: Tensor, entries: int) -> Tensor:
        """float64 (n,): the unit of each sample's margins."""
        if self.options.normalise:
            clean = _goal(logits, labels, targets).margin
            # A clean image at the very boundary has no margin; then what it takes to be clear of it.
            return clean.maximum(clearance(logits)).clamp_min(1e-300)
        per_dim = self._by_likelihood(model) and self.options.units == "nats-per-dim"
        return logits.new_full((len(labels),), entries if per_dim else 1.0).double()

    def _by_likelihood(self, model: ModelView) -> bool:
        return self.options.paper is not None and "ClassDensity" in model.capabilities

    def _step(
        self, model: ModelView, runs: Runs, number: int, kept: Kept, weights: Tensor, typicality: Typicality | None
    ) -> Runs:
        """One evaluation of every sample and, where its run goes on, one step. Returns those that have not ended."""
        import torch

        options = self.options
        x = runs.adam.image()
        asked = self._asked(model, x, runs, number)
        level = self._level(asked, runs, options.kappa)
        size = norm_of(x - runs.x0, "l2")
        distance = size if options.distance == "l2" else size.square()
        excess, slope = self._detection(asked, typicality, x[0].numel())
        aim = torch.maximum(-asked.clear / runs.scale, asked.goal / runs.scale)
        if options.kappa:
            aim = (asked.goal / runs.scale).clamp_min(-options.kappa)
        objective = distance + runs.search.weight * aim + excess
        cost = objective if math.isinf(options.kappa) else distance + excess
        level = self._keep(model, x, runs, level, cost, number + options.eot, kept, weights)
        runs.reached |= level == 2
        improved = ~(objective >= runs.least * (1 - _IMPROVES * runs.least.sign()))
        runs.stale = torch.where(improved, 0, runs.stale + 1)
        runs.least = torch.where(improved, objective, runs.least)
        active = asked.goal / runs.scale > -max(options.kappa, 0.0) if options.kappa else asked.goal > -asked.clear
        gradient = _gradient(model, asked, kept, runs, runs.search.weight / runs.scale * active, slope)
        factor = 1 / size.clamp_min(1e-12) if options.distance == "l2" else torch.full_like(size, 2.0)
        gradient += (x - runs.x0) * factor.to(x.dtype)[:, None, None, None]
        runs.adam.step_(gradient)
        done = runs.adam.taken >= options.steps
        if options.patience is not None:
            done |= runs.stale >= options.patience
        return self._ended(runs, done)

    def _ended(self, runs: Runs, done: Tensor) -> Runs:
        if not bool(done.any()):
            return runs
        runs.restart(done)
        left = runs.search.left > 0
        return runs if bool(left.all()) else runs.only(left.nonzero()[:, 0])

    def _asked(self, model: ModelView, x: Tensor, runs: Runs, first: int) -> Asked:
        count = self.options.eot if model.stochastic else 1
        asked = self._asked_once(model, x, runs, first)
        # Summed one after the other: memory does not grow with the number of draws.
        for number in range(first + 1, first + count):
            asked = asked.plus(self._asked_once(model, x, runs, number))
        return asked.over(count)

    def _asked_once(self, model: ModelView, x: Tensor, runs: Runs, number: int) -> Asked:
        import torch

        x = x.detach().requires_grad_()
        draws = runs.draws.numbered(number) if model.stochastic else runs.draws
        if self.options.detection and self._by_likelihood(model) and not model.stochastic:
            with torch.enable_grad():
                logits, log_prob = model.class_log_prob_and_log_prob(x, draws)
                answers = torch.cat([logits, log_prob[:, None]], dim=1)
            goal = _goal(logits, runs.labels, runs.targets)
            wrong, clear = margin_of(logits, runs.labels), clearance(logits)
            together = Together(answers, x, goal.weights)
            return Asked(wrong, goal.margin, clear, None, log_prob.detach().double(), together=together)
        with torch.enable_grad():
            logits = (model.class_log_prob if self._by_likelihood(model) else model.logits)(x, draws)
        goal = _goal(logits, runs.labels, runs.targets)
        wrong = margin_of(logits, runs.labels)
        gradient = model.input_gradient(logits, x, goal.weights)
        if not self.options.detection:
            return Asked(wrong, goal.margin, clearance(logits), gradient)
        with torch.enable_grad():
            log_prob = model.log_prob(x, draws)
        push = model.input_gradient(log_prob, x)
        return Asked(wrong, goal.margin, clearance(logits), gradient, log_prob.detach().double(), push)

    def _level(self, asked: Asked, runs: Runs, kappa: float) -> Tensor:
        """int64 (n,): 2 where the goal is reached, 1 where the image is misclassified at all, 0 else."""
        import torch

        needed = asked.clear if math.isinf(kappa) else torch.maximum(asked.clear, kappa * runs.scale)
        wrong = asked.wrong > asked.clear
        # Of a part in 10^9 less than kappa: at its optimum the margin is kappa, give or take rounding.
        return wrong.long() + (wrong & (-asked.goal >= needed * (1 - 1e-9)))

    def _keep(
        self,
        model: ModelView,
        x: Tensor,
        runs: Runs,
        level: Tensor,
        cost: Tensor,
        number: int,
        kept: Kept,
        weights: Tensor,
    ) -> Tensor:
        """Keep what is better than before. Returns the levels as far as they are now known."""
        index = kept.improves(runs.rows, level, cost).nonzero()[:, 0]
        if len(index) and model.stochastic:
            sure = confirmed(model, x[index], runs.labels[index], runs.draws[index], number)
            level = level.index_fill(0, index[~sure], 0)
            index = index[sure]
        if len(index):
            rows = runs.rows[index]
            kept.keep(rows, x[index], level[index], cost[index])
            weights[rows] = runs.search.weight[index]
        return level

    def _detection(
        self, asked: Asked, typicality: Typicality | None, entries: int
    ) -> tuple[Tensor | float, Tensor | None]:
        """The detection term (n,), and its derivative with respect to the log-likelihood."""
        if asked.log_prob is None or typicality is None:
            return 0.0, None
        unit = entries if self.options.units == "nats-per-dim" else 1
        short = (typicality.median - asked.log_prob) / unit
        return self.options.detection * short.square(), -2 * self.options.detection / unit * short

    def _typicality(self, model: ModelView) -> Typicality | None:
        if self.options.median_log_prob is not None:
            return Typicality(self.options.median_log_prob)
        if not self.options.uses_held_out or "Density" not in model.capabilities:
            return None
        return Typicality.of(model.reference["log_prob"])

    def _targets(self, batch: Batch) -> Tensor:
        """int64 (B,): the class to reach, -1 for any."""
        target = self.options.target
        if target == "any":
            return batch.y.new_full(batch.y.shape, -1)
        if isinstance(target, int):
            return batch.y.new_full(batch.y.shape, target)
        assert batch.clean_logits is not None
        if target == "least-likely":
            return batch.clean_logits.argmin(dim=1)
        other = batch.draws.integers("target", 0, (), batch.clean_logits.shape[1] - 1)
        return other + (other >= batch.y)

    def _columns(
        self,
        model: ModelView,
        batch: Batch,
        kept: Kept,
        weights: Tensor,
        targets: Tensor,
        typicality: Typicality | None,
    ) -> Columns:
        import torch

        with torch.no_grad():
            logits = _answer(model, kept.images, batch.draws, self._most_draws)
        sure = certainty(logits, batch.y)
        columns: dict[str, Any] = {
            "adversarial": kept.images,
            **randomness(model, batch.y, self.options.eot),
            "steps": batch.y.new_full(batch.y.shape, self.options.steps),
            **kept.counts(),
            "goal_reached": kept.level == 2,
            "target": targets,
            "c": weights.where(kept.level > 0, float("nan")),
            "l2_per_pixel": norm_of(kept.images - batch.x, "l2") / math.sqrt(batch.x[0].numel()),
            "confidence": sure["confidence"],
            "entropy": sure["entropy"],
        }
        if "Density" in model.capabilities:
            for name, images in (("clean", batch.x), ("adversarial", kept.images)):
                with torch.no_grad():
                    log_prob = model.log_prob(images, batch.draws).double()
                columns[f"{name}_log_prob"] = log_prob
                columns[f"{name}_one_tailed_score"] = -log_prob
                if typicality is not None:
                    columns[f"{name}_two_tailed_score"] = typicality.two_tailed(log_prob)
        return columns


def _gradient(model: ModelView, asked: Asked, kept: Kept, runs: Runs, pull: Tensor, slope: Tensor | None) -> Tensor:
    """(n, C, H, W): `pull` (n,) times the gradient of the goal, and `slope` (n,) times that of the log-likelihood."""
    import torch

    if asked.together is not None and slope is not None:
        answers, x, weights = asked.together
        both = torch.cat([pull[:, None] * weights, slope[:, None]], dim=1).to(answers.dtype)
        return kept.checked(model.input_gradient(answers, x, both), runs.rows)
    assert asked.goal_gradient is not None
    gradient = kept.checked(asked.goal_gradient, runs.rows)
    gradient = gradient * pull.to(gradient.dtype)[:, None, None, None]
    if slope is not None and asked.log_prob_gradient is not None:
        push = asked.log_prob_gradient * slope.to(gradient.dtype)[:, None, None, None]
        gradient += push.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # or Adam would never forget it
    return gradient


def _goal(logits: Tensor, labels: Tensor, targets: Tensor) -> Loss:
    """What the attack makes negative, with its derivative: the label's margin, or what the target lacks."""
    import torch

    aimed = targets >= 0
    towards = margin_against(logits, torch.where(aimed, targets, labels))
    sign = torch.where(aimed, 1.0, -1.0)
    margin = towards.margin * sign
    return Loss(towards.weights * sign[:, None].to(towards.weights.dtype), margin, lambda: margin)


def _answer(model: ModelView, images: Tensor, draws: Draws, first: int) -> Tensor:
    """(B, K) logits; of a random model the log-softmax, averaged over ten draws."""
    if not model.stochastic:
        return model.logits(images, draws)
    answers = [model.logits(images, draws.numbered(first + n)).double().log_softmax(dim=1) for n in range(_ANSWERS)]
    return _mean(answers)


def _mean(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


def build(options: CWOptions, context: ThreatContext) -> CW:
    """The attack.

    Raises:
        HarnessError: a target that is not a class.
    """
    classes = context.data.num_classes
    if isinstance(options.target, int) and options.target >= classes:
        raise HarnessError(f"cw: target {options.target} is not a class: the data have classes 0 to {classes - 1}")
    return CW(options)
