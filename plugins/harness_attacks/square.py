"""Square Attack: random search with square-shaped changes, from a model's scores alone.

Andriushchenko, Croce, Flammarion & Hein 2020, *Square Attack: a query-efficient black-box adversarial attack via random
search* (arXiv 1912.00049), algorithms 1 to 3; in l1 Croce & Hein 2021 (arXiv 2103.01208), section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.options import option
from harness.threats import Batch, Budget, Columns, Norm, ThreatContext
from harness_attacks.attacked import Findings
from harness_attacks.ball_options import BallOptions, check_diameter
from harness_attacks.balls import LinfBall, balls_around
from harness_attacks.losses import margin_of
from harness_attacks.squares import Proposals, SparseProposals, StripeProposals

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws

_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many queries the squares' area is halved (the paper's schedule for 10,000 queries)."""


class SquareOptions(BallOptions):
    """Options of `square`."""

    queries: int = option(5000, help="how often the model is asked about each sample, in each restart", ge=1)
    area: float = option(0.8, help="share of the image that the first squares cover (p_init)", gt=0, le=1)
    restarts: int = option(1, help="runs from a fresh random start, for the samples still standing", ge=1)


@dataclass
class _Searches:
    """Samples in search.

    Attributes:
        rows: int64 (n,), rows in the batch.
        x: (n, C, H, W), the best images so far.
        loss: float64 (n,), the label's logit minus the best other, at `x`; negative where misclassified.
    """

    rows: Tensor
    labels: Tensor
    draws: Draws
    proposals: Proposals
    x: Tensor
    loss: Tensor

    def only(self, index: Tensor) -> _Searches:
        """Those at `index` (int64)."""
        rows, labels, x, loss = (t.index_select(0, index) for t in (self.rows, self.labels, self.x, self.loss))
        return _Searches(rows, labels, self.draws[index], self.proposals[index], x, loss)


class Square:
    """A random change of a square window at a time, kept if it lowers the margin of the label.

    Only samples that the model classifies rightly are attacked; the others keep their clean image. A sample leaves as
    soon as it is misclassified; one that stands returns the image of its smallest margin. Where each sample's squares
    lie is drawn from its own stream.

    For a model with randomness each query is given a draw of its own, and no sample leaves early.

    Columns, one row a sample:
        adversarial: (B, C, H, W).
        queries: how often the model was asked about the sample.
        loss_first, loss_last: the best other logit minus the label's, at the start and at the best image of the latest
            restart; NaN for a sample that was not attacked.
        success_step, restart: the query, from 0, at which the sample was misclassified, and the restart; -1 if it
            never was.
    """

    def __init__(self, options: SquareOptions) -> None:
        self.options = options
        self.eps = float(options.eps)
        self.budget: Budget | None = Budget(options.norm, self.eps)

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        found = Findings.before(batch.x)
        queries = torch.zeros_like(batch.y)
        rows = (batch.clean_correct & (self.eps > 0)).nonzero()[:, 0]
        with torch.no_grad():
            for restart in range(self.options.restarts):
                if len(rows):
                    rows = self._run(model, batch, rows, restart, found, queries)
        return {
            "adversarial": found.best,
            "queries": queries,
            "loss_first": found.loss_first,
            "loss_last": found.loss_last,
            "success_step": found.success_step,
            "restart": found.restart,
        }

    def _run(
        self, model: ModelView, batch: Batch, rows: Tensor, restart: int, found: Findings, queries: Tensor
    ) -> Tensor:
        """One restart. Returns the rows that still stand."""
        import torch

        draws = batch.draws[rows]
        own = draws.stream("restart", restart)
        proposals = proposals_around(batch.x[rows], self.options.norm, self.eps, own)
        x = proposals.start()
        searches = _Searches(rows, batch.y[rows], draws, proposals, x, torch.full_like(found.score[rows], torch.inf))
        for query in range(self.options.queries):
            if query:
                x = searches.proposals.next(searches.x, query - 1, side(query - 1, self.options.area, x.shape))
            draws = searches.draws
            if model.stochastic:
                draws = draws.numbered(restart * self.options.queries + query)
            loss = -margin_of(model.logits(x, draws), searches.labels)
            if query == 0:
                found.loss_first[rows] = -loss
            better = (loss < searches.loss) | (loss < 0)
            searches.loss = torch.where(better, loss, searches.loss)
            searches.x = torch.where(better[:, None, None, None], x, searches.x)
            if float(loss.min()) < 0:  # a tie is no success
                wrong = loss < 0
                found.mark_success(searches.rows[wrong], restart, query)
                if not model.stochastic:
                    _store(searches.only(wrong.nonzero()[:, 0]), query + 1, found, queries)
                    searches = searches.only((~wrong).nonzero()[:, 0])
                    if not len(searches.rows):
                        return searches.rows
        _store(searches, self.options.queries, found, queries)
        return searches.rows


def _store(searches: _Searches, asked: int, found: Findings, queries: Tensor) -> None:
    """Samples leave a restart after so many queries; their image is kept if it is the best of all restarts."""
    rows, score = searches.rows, -searches.loss
    queries[rows] += asked
    found.loss_last[rows] = score
    better = score > found.score[rows]
    found.best[rows[better]] = searches.x[better]
    found.score[rows[better]] = score[better]


def side(query: int, area: float, shape: tuple[int, ...]) -> int:
    """Side in pixels of the squares at a query, from 0: its area is `area` of the image, halved along the schedule."""
    height, width = shape[-2:]
    halvings = sum(query > bound for bound in _HALVED_AT)
    return min(max(round(math.sqrt(area * 0.5**halvings * height * width)), 1), height, width)


def proposals_around(x: Tensor, norm: Norm, eps: float, draws: Draws) -> Proposals:
    """What the search tries, in the balls of radius `eps` around `x`."""
    ball = balls_around(x, norm, eps)
    if isinstance(ball, LinfBall):
        return StripeProposals(ball, draws)
    return SparseProposals(x, 2 if norm == "l2" else 1, eps, draws)


def build(options: SquareOptions, context: ThreatContext) -> Square:
    """The attack.

    Raises:
        HarnessError: a budget larger than the image space.
    """
    check_diameter("square", options.norm, options.eps, context.data)
    return Square(options)
