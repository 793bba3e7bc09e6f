"""The samples under attack and what was found of each: the bookkeeping shared by iterative attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness_attacks.balls import peaks

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws
    from harness_attacks.balls import Ball


@dataclass
class Standing:
    """Samples that the attack is working on.

    Attributes:
        rows: int64 (n,), the samples' rows in the batch.
        labels, targets: int64 (n,); a target is -1 where any wrong class will do.
        scale: float64 (n, 1), what their logits are multiplied by first (see `losses.sharpened`); None for 1.
        score: float64 (n,), how strong the strongest image so far is (see `Findings`).
        loss_first: float64 (n,), the loss at the start of this restart.
    """

    rows: Tensor
    labels: Tensor
    targets: Tensor
    scale: Tensor | None
    draws: Draws
    ball: Ball
    score: Tensor
    loss_first: Tensor

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def only(self, index: Tensor) -> Standing:
        """Those at `index` (int64): the others have fallen."""
        # index_select takes a third of the time of indexing; these lines run whenever a sample falls.
        kept = {name: getattr(self, name).index_select(0, index) for name in _TENSORS}
        scale = None if self.scale is None else self.scale.index_select(0, index)
        return Standing(**kept, scale=scale, draws=self.draws[index], ball=self.ball[index])


_TENSORS = ("rows", "labels", "targets", "score", "loss_first")


def randomness(model: ModelView, like: Tensor, eot: int) -> dict[str, Tensor]:
    """The columns `stochastic` (bool) and `eot` (int64), both (B,), that the audit asks for."""
    return {
        "stochastic": like.new_full(like.shape, model.stochastic).bool(),
        "eot": like.new_full(like.shape, eot if model.stochastic else 1),
    }


@dataclass
class GradientCounts:
    """Gradients spent on each sample of a batch.

    Attributes:
        gradient_steps: int64 (B,), how many, all restarts together; of these
        zero_gradient_steps were zero in every entry and nonfinite_gradient_steps had an infinite or NaN entry.
    """

    gradient_steps: Tensor
    zero_gradient_steps: Tensor
    nonfinite_gradient_steps: Tensor

    @staticmethod
    def none(x: Tensor) -> dict[str, Tensor]:
        """No gradient was spent on the images `x`."""
        return {name: x.new_zeros(len(x)).long() for name in _COUNTS}

    def counts(self) -> dict[str, Tensor]:
        """The columns of these names."""
        return {name: getattr(self, name) for name in _COUNTS}

    def checked(self, gradient: Tensor, rows: Tensor) -> Tensor:
        """Count the gradients (n, C, H, W) that are zero or not finite, and zero the latter.

        The tensor itself is left as it is: it may be an expanded view, or memory that the model keeps.
        """
        peak = peaks(gradient)
        if not gradient.is_cuda:  # on a GPU asking would make the host wait
            lowest, highest = peak.aminmax()
            if lowest.item() > 0 and highest.item() < float("inf"):
                return gradient
        broken = ~peak.isfinite()
        self.zero_gradient_steps[rows] += peak == 0
        self.nonfinite_gradient_steps[rows] += broken
        return gradient.masked_fill(broken[:, None, None, None], 0.0)


_COUNTS = ("gradient_steps", "zero_gradient_steps", "nonfinite_gradient_steps")


@dataclass
class Findings(GradientCounts):
    """What was found of each sample of a batch, all (B,) except `best`.

    Attributes:
        best: (B, C, H, W), the strongest image met.
        score: float64, how strong it is: its margin, the largest logit of another class minus the label's; infinite
            once the target is reached; where a detector is evaded too, see `Evasion.strength`.
        loss_first, loss_last: float64, the loss at the first and the last image of the sample's latest restart.
        restart, success_step: int64, when the sample first fell: the restart, and the gradient steps
            taken in it; -1 if it never was.
    """

    best: Tensor
    score: Tensor
    loss_first: Tensor
    loss_last: Tensor
    restart: Tensor
    success_step: Tensor

    @classmethod
    def before(cls, x: Tensor) -> Findings:
        """Nothing is known yet: the strongest image is the clean one."""
        import torch

        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        unknown = torch.full_like(count, float("nan"), dtype=torch.float64)
        return cls(
            **cls.none(x),
            best=x.clone(),
            score=torch.full_like(unknown, float("-inf")),
            loss_first=unknown,
            loss_last=unknown.clone(),
            restart=count - 1,
            success_step=count - 1,
        )

    def keep_better(self, standing: Standing, x: Tensor, score: Tensor, better: Tensor | None) -> None:
        """Make `x` (n, C, H, W) the best image of the standing samples where `better` holds; of all, without a mask."""
        rows = standing.rows
        if better is None:
            standing.score = score
        else:
            index = better.nonzero()[:, 0]
            rows, x = rows[index], x[index]
            standing.score = score.where(better, standing.score)
        self.best.index_copy_(0, rows, x)

    def mark_success(self, rows: Tensor, restart: int, step: int) -> None:
        """Note when samples were misclassified, if for the first time."""
        first = rows[self.success_step[rows] < 0]
        self.success_step[first] = step
        self.restart[first] = restart

    def finish(self, standing: Standing, gone: Tensor | slice, loss: Tensor, gradient_steps: int) -> None:
        """The samples `gone` leave a restart, fallen or at its end, at `loss` and after so many gradients in all."""
        rows = standing.rows[gone]
        self.score[rows] = standing.score[gone]
        self.loss_first[rows] = standing.loss_first[gone]
        self.loss_last[rows] = loss[gone]
        self.gradient_steps[rows] = gradient_steps
