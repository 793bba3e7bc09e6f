"""The samples of a batch under attack, and what is known of each: the bookkeeping shared by iterative attacks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from harness.randomness import Draws
    from harness.threats import Batch
    from harness_attacks.balls import Ball

    Index = Tensor | slice | Sequence[int]


@dataclass
class Attacked:
    """Samples under attack. Indexes and masks like a tensor, so that those which fell can leave.

    Attributes:
        rows: int64 (n,), the samples' rows in the batch.
        labels, targets: int64 (n,); a target is -1 where any wrong class will do.
        best: (n, C, H, W), the strongest image so far: the highest `rank`, and among those the highest `score`.
        rank: int8 (n,): 0 while the label stands, 1 misclassified, 2 classified as the target.
        score: float64 (n,), the loss at `best`.
        loss_first, loss_last: float64 (n,), the loss at the first and the last image of the latest restart.
        gradient_steps: int64 (n,), gradients spent, all restarts together; of these
        zero_gradient_steps were zero in every entry and nonfinite_gradient_steps had an infinite or NaN entry.
        restart, success_step: int64 (n,), when the sample was first misclassified: the restart, and the gradient steps
            taken in it; -1 if it never was.
    """

    rows: Tensor
    labels: Tensor
    targets: Tensor
    draws: Draws
    ball: Ball
    best: Tensor
    rank: Tensor
    score: Tensor
    loss_first: Tensor
    loss_last: Tensor
    gradient_steps: Tensor
    zero_gradient_steps: Tensor
    nonfinite_gradient_steps: Tensor
    restart: Tensor
    success_step: Tensor

    @classmethod
    def of(cls, batch: Batch, ball: Ball, targets: Tensor) -> Attacked:
        """A whole batch before the attack: `best` is the clean image."""
        import torch

        n = len(batch.ids)
        count = torch.zeros(n, dtype=torch.int64, device=batch.x.device)
        unknown = torch.full_like(count, float("nan"), dtype=torch.float64)
        return cls(
            rows=torch.arange(n, device=batch.x.device),
            labels=batch.y,
            targets=targets,
            draws=batch.draws,
            ball=ball,
            best=batch.x.clone(),
            rank=count.to(torch.int8),
            score=torch.full_like(unknown, float("-inf")),
            loss_first=unknown,
            loss_last=unknown.clone(),
            gradient_steps=count,
            zero_gradient_steps=count.clone(),
            nonfinite_gradient_steps=count.clone(),
            restart=count - 1,
            success_step=count - 1,
        )

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def __getitem__(self, index: Index) -> Attacked:
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def put(self, part: Attacked) -> None:
        """Write back what is known of some of these samples, where `self` is the whole batch."""
        for name in _FOUND:
            getattr(self, name)[part.rows] = getattr(part, name)

    def better(self, rank: Tensor, loss: Tensor) -> Tensor:
        """bool (n,), whose image with this `rank` and `loss` is stronger than the best so far."""
        return (rank > self.rank) | ((rank == self.rank) & (loss > self.score))

    def keep(self, x: Tensor, rank: Tensor, loss: Tensor, better: Tensor | None) -> None:
        """Make `x` (n, C, H, W) the best image of the samples where `better` holds; of all, without a mask."""
        import torch

        if better is None:
            self.best.copy_(x)
            self.rank, self.score = rank, loss
            return
        torch.where(better[:, None, None, None], x, self.best, out=self.best)
        torch.where(better, rank, self.rank, out=self.rank)
        torch.where(better, loss, self.score, out=self.score)

    def mark_success(self, wrong: Tensor, restart: int, step: int) -> None:
        """Note when the samples where `wrong` holds were first misclassified."""
        first = wrong & (self.success_step < 0)
        self.success_step.masked_fill_(first, step)
        self.restart.masked_fill_(first, restart)

    def checked(self, gradient: Tensor) -> Tensor:
        """Count a gradient (n, C, H, W) for each sample; zero where a sample's is not finite.

        The tensor itself is left as it is: it may be an expanded view, or memory that the model keeps.
        """
        from harness_attacks.balls import peaks

        peak = peaks(gradient)
        broken = ~peak.isfinite()
        self.gradient_steps += 1
        self.zero_gradient_steps += peak == 0
        self.nonfinite_gradient_steps += broken
        # Asking first is cheaper on a CPU; on a GPU it would make the host wait.
        if gradient.is_cuda or bool(broken.any()):
            return gradient.masked_fill(broken[:, None, None, None], 0.0)
        return gradient


_FOUND = tuple(f.name for f in fields(Attacked) if f.name not in ("rows", "labels", "targets", "draws", "ball"))
