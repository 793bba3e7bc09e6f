"""FAB, the fast adaptive boundary attack: small perturbations, found by projecting onto linearised decision boundaries.

Croce & Hein 2020, *Minimally distorted adversarial examples with a fast adaptive boundary attack* (arXiv 1907.02044),
algorithm 1; aimed at one class at a time as in AutoAttack (FAB-T, arXiv 2003.01690, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import field_validator

from harness.errors import HarnessError
from harness.options import Amount, Options, eps_in_range, option
from harness.threats import Batch, Budget, Columns, Norm, ThreatContext
from harness_attacks.attacked import Findings, randomness
from harness_attacks.ball_options import check_diameter
from harness_attacks.hyperplanes import to_hyperplane
from harness_attacks.losses import likeliest_wrong, margin_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws

_TO_ORIGINAL = 0.1  # alpha_max: the largest weight of the step from the clean image
_OVERSHOOT = 1.05  # eta
_BACKWARD = 0.9  # beta: how much of an adversarial perturbation is kept for the next step


class FABOptions(Options):
    """Options of `fab`."""

    norm: Norm = option("linf", help="norm of the perturbation, over all entries of an image")
    eps: Amount | None = option(
        None,
        help="a sample is done once its perturbation's norm is no more; none: the smallest norm is looked for",
        unit="[0, 1] pixel values",
    )
    steps: int = option(100, help="steps in each run", ge=1)
    restarts: int = option(
        1, help="runs towards each class: the first from the image, the others from random points", ge=1
    )
    targeted: bool = option(True, help="one class a run; if not, each step goes to the nearest of all boundaries")
    targets: int = option(9, help="how many wrong classes, the likeliest first (as far as there are)", ge=1)

    _eps_in_range = field_validator("eps")(eps_in_range)


@dataclass
class _Paths:
    """Samples on their runs.

    Attributes:
        rows: int64 (n,), rows in the batch.
        clean, x: (n, C, H, W).
        targets: int64 (n, T), the classes whose boundary the run looks for.
    """

    rows: Tensor
    clean: Tensor
    x: Tensor
    labels: Tensor
    targets: Tensor
    draws: Draws

    def only(self, index: Tensor) -> _Paths:
        """Those at `index` (int64)."""
        tensors = (self.rows, self.clean, self.x, self.labels, self.targets)
        rows, clean, x, labels, targets = (tensor.index_select(0, index) for tensor in tensors)
        return _Paths(rows, clean, x, labels, targets, self.draws[index])


class FAB:
    """From both the current image and the clean one to the linearised boundary; then a little further, and inwards.

    x' = (1 - a) (x + 1.05 d) + a (clean + 1.05 d_clean), where d and d_clean are the shortest ways to the boundary
    within the box and a = min(|d| / (|d| + |d_clean|), 0.1). An adversarial image that is the nearest so far is kept,
    and the next step starts at nine tenths of its perturbation.

    Only samples that the model classifies rightly are attacked; the others keep their clean image. With `eps` a sample
    leaves once an adversarial image lies within it, and one that stands returns its clean image. Without, the budget
    is infinite and the nearest adversarial image is returned, the clean one if there is none.

    For a model with randomness each call is given a draw of its own, and what it says once is believed; the host
    judges the image on fresh draws.

    Columns, one row a sample:
        adversarial: (B, C, H, W).
        steps: steps planned for each run.
        gradient_steps: steps made, all runs together (untargeted ones take a gradient for each class).
        zero_gradient_steps, nonfinite_gradient_steps: how many gradients were zero, or had an infinite or NaN entry.
        success_step, restart: the steps taken when the sample was first misclassified (within eps), and the run in
            which that was, from 0 (targets one after the other, `restarts` runs each); -1 if it never was.
    """

    def __init__(self, options: FABOptions) -> None:
        self.options = options
        self.eps = math.inf if options.eps is None else float(options.eps)
        self.budget: Budget | None = Budget(options.norm, self.eps)

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        found = Findings.before(batch.x)
        nearest = torch.full_like(found.score, math.inf)
        rows = (batch.clean_correct & (self.eps > 0)).nonzero()[:, 0]
        targets = likeliest_wrong(batch.clean_logits, batch.y, self.options.targets)
        groups = [targets[:, k : k + 1] for k in range(targets.shape[1])] if self.options.targeted else [targets]
        number = 0
        for group in groups:
            for restart in range(self.options.restarts):
                if len(rows):
                    rows = self._run(model, batch, rows, group[rows], (number, restart), found, nearest)
                number += 1
        return {
            "adversarial": found.best,
            **randomness(model, batch.y, 1),
            "steps": batch.y.new_full(batch.y.shape, self.options.steps),
            **found.counts(),
            "success_step": found.success_step,
            "restart": found.restart,
        }

    def _run(
        self,
        model: ModelView,
        batch: Batch,
        rows: Tensor,
        targets: Tensor,
        number: tuple[int, int],
        found: Findings,
        nearest: Tensor,
    ) -> Tensor:
        """One run. Returns the rows that still stand: all of them, if the smallest norm is looked for."""
        import torch

        clean, draws = batch.x[rows], batch.draws[rows]
        x = clean if number[1] == 0 else self._random_start(clean, nearest[rows], draws.stream("restart", number[0]))
        paths = _Paths(rows, clean, x, batch.y[rows], targets, draws)
        for step in range(self.options.steps):
            calls = 2 * (number[0] * self.options.steps + step)
            self._step(model, paths, calls, found)
            found.gradient_steps[paths.rows] += 1
            draws = paths.draws.numbered(calls + 1) if model.stochastic else paths.draws
            with torch.no_grad():
                wrong = margin_of(model.logits(paths.x, draws), paths.labels) > 0
            norms = _norms((paths.x - paths.clean).flatten(1), self.options.norm).double()
            nearer = wrong & (norms < nearest[paths.rows])
            if bool(nearer.any()):
                inside = nearer & (norms <= self.eps)
                found.best[paths.rows[inside]] = paths.x[inside]
                found.mark_success(paths.rows[inside], number[0], step + 1)
                nearest[paths.rows[nearer]] = norms[nearer]
                if self.eps < math.inf and bool(inside.any()):
                    left = (~inside).nonzero()[:, 0]
                    paths, wrong = paths.only(left), wrong[left]
                    if not len(left):
                        break
            paths.x = paths.clean.lerp(paths.x, _back(wrong, paths.x))
        return paths.rows

    def _random_start(self, clean: Tensor, nearest: Tensor, draws: Draws) -> Tensor:
        """Images half as far from the clean ones as eps, or as the nearest adversarial image, at random."""
        radius = nearest.clamp_max(self.eps)
        # A sample that nothing was found of yet, and no eps: as far as the box allows.
        radius = radius.clamp_max(float(_norms(clean.new_ones(1, clean[0].numel()), self.options.norm)))
        direction = draws.normal("start", 0, clean.shape[1:])
        if self.options.norm == "linf":
            direction = draws.uniform("start", 0, clean.shape[1:]).mul_(2).sub_(1)
        norms = _norms(direction.flatten(1), self.options.norm)
        scale = (0.5 * radius).to(clean.dtype) / norms
        return (clean + direction * scale[:, None, None, None]).clamp_(0.0, 1.0)

    def _step(self, model: ModelView, paths: _Paths, call: int, found: Findings) -> None:
        """Move the images towards the boundary."""
        import torch

        draws = paths.draws.numbered(call) if model.stochastic else paths.draws
        gap, normal = _nearest_boundary(model, paths, draws, self.options.norm, found)
        here, start = paths.x.flatten(1), paths.clean.flatten(1)
        # The boundary's linearisation is the plane gap + <normal, z - x> = 0.
        from_clean = gap + (normal * (start - here)).sum(dim=1)
        moves = to_hyperplane(
            torch.cat([here, start]), normal.repeat(2, 1), -torch.cat([gap, from_clean]), self.options.norm
        )
        move, clean_move = moves.chunk(2)
        way, clean_way = (_norms(part, self.options.norm).clamp_min_(1e-8) for part in (move, clean_move))
        share = (way / (way + clean_way)).clamp_max_(_TO_ORIGINAL)[:, None]
        ahead = here.add(move, alpha=_OVERSHOOT).lerp(start.add(clean_move, alpha=_OVERSHOOT), share)
        paths.x = ahead.clamp_(0.0, 1.0).reshape(paths.x.shape)


def _nearest_boundary(
    model: ModelView, paths: _Paths, draws: Draws, norm: Norm, found: Findings
) -> tuple[Tensor, Tensor]:
    """Of the boundaries with the targets the nearest by linearisation: its gap (n,) in logits and normal (n, D).

    The gap is the target's logit minus the label's, formed in float64 and scaled, as the normal is, by the size of the
    gradient, which changes no plane.
    """
    import torch

    x = paths.x.detach().requires_grad_()
    logits = model.logits(x, draws)
    exact = logits.detach().double()
    mine = exact.gather(1, paths.labels[:, None])
    gaps = exact.gather(1, paths.targets) - mine
    best: tuple[Tensor, Tensor, Tensor] | None = None
    count = paths.targets.shape[1]
    for place in range(count):
        target = paths.targets[:, place : place + 1]
        weights = torch.zeros_like(logits).scatter_(1, target, 1.0).scatter_(1, paths.labels[:, None], -1.0)
        if place < count - 1 and logits.requires_grad:  # several gradients of one evaluation
            (gradient,) = torch.autograd.grad(logits, x, weights, retain_graph=True)
        else:
            gradient = model.input_gradient(logits, x, weights)
        normal = found.checked(gradient, paths.rows).flatten(1)
        peak = normal.abs().amax(dim=1, keepdim=True)
        peak = peak.masked_fill(peak == 0, 1.0)
        normal, gap = normal / peak, (gaps[:, place] / peak[:, 0]).to(normal.dtype)
        distance = gap.abs() / _dual_norms(normal, norm).clamp_min_(1e-12)
        if best is None:
            best = distance, gap, normal
        else:
            nearer = distance < best[0]
            best = (
                torch.where(nearer, distance, best[0]),
                torch.where(nearer, gap, best[1]),
                torch.where(nearer[:, None], normal, best[2]),
            )
    if best is None:
        raise ValueError("fab needs at least one wrong class")
    return best[1], best[2]


def _back(wrong: Tensor, x: Tensor) -> Tensor:
    """How much of its perturbation a sample keeps, (n, 1, 1, 1): what is adversarial goes back a little."""
    return x.new_ones(()).sub(wrong.to(x.dtype), alpha=1 - _BACKWARD)[:, None, None, None]


def _norms(x: Tensor, norm: Norm) -> Tensor:
    """Norm of each row of `x` (n, D)."""
    if norm == "linf":
        return x.abs().amax(dim=1)
    return x.norm(dim=1) if norm == "l2" else x.abs().sum(dim=1)


def _dual_norms(x: Tensor, norm: Norm) -> Tensor:
    return _norms(x, {"linf": "l1", "l1": "linf", "l2": "l2"}[norm])  # type: ignore[arg-type]


def build(options: FABOptions, context: ThreatContext) -> FAB:
    """The attack.

    Raises:
        HarnessError: a budget larger than the image space.
    """
    if options.eps is not None:
        check_diameter("fab", options.norm, options.eps, context.data)
    if context.data.num_classes < 2:
        raise HarnessError("fab: the data have one class only: there is no boundary")
    return FAB(options)
