"""Likelihood ratio against a background model, from the rows of two cells: no threat is ever given two models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.base import CellRows, Estimate, Rows, Summary, undefined
from harness.metrics.detection import AUROC
from harness.metrics.options import BackgroundOptions

_SCORE = "log-likelihood"


@dataclass(frozen=True)
class LikelihoodRatio:
    """AUROC of the score log p_background(x) - log p(x) (Ren et al. 2019, eq. 5), per set and as their mean.

    Of each model that was scored by "log-likelihood" on the same sets as the background model; nothing where the suite
    names no background.
    """

    background: str

    def summarise(self, cells: Sequence[CellRows], level: float) -> Sequence[Summary]:
        if not self.background:
            return ()
        scored = [cell for cell in cells if (np.asarray(cell.rows["score"]).astype(str) == _SCORE).any()]
        return [found for cell in scored if cell.model != self.background for found in self._of(cell, scored, level)]

    def _of(self, cell: CellRows, scored: Sequence[CellRows], level: float) -> Iterator[Summary]:
        same = [c for c in scored if (c.threat, c.dataset) == (cell.threat, cell.dataset)]
        partner = next((c for c in same if c.model == self.background), None)
        if partner is None:
            reason = f"no model '{self.background}' was scored by {_SCORE} on these sets"
            yield Summary(cell.model, (cell.id,), undefined(0, reason))
            return
        several = len({(c.threat, c.dataset) for c in scored}) > 1
        model = f"{cell.model} under {cell.threat} on {cell.dataset}" if several else cell.model
        for variant, estimate in ratio_estimates(cell.rows, partner.rows, level).items():
            subject = f"{model}, {variant}" if variant else model
            yield Summary(subject, (cell.id, partner.id), estimate)


def ratio_estimates(rows: Rows, background: Rows, level: float) -> dict[str, Estimate]:
    """AUROC by set of the difference of two models' scores, over the images that both saw."""
    own, other = _by_image(rows), _by_image(background)
    shared = [image for image in own if image in other]
    ratio = {
        "sample_id": np.array([sample for sample, _ in shared]),
        "set": np.array([name for _, name in shared], dtype=object),
        "ood_score": np.array([own[image] - other[image] for image in shared]),
    }
    return dict(AUROC.estimate(ratio, level)) if shared else {"": undefined(0, "the two models share no image")}


def _by_image(rows: Rows) -> dict[tuple[Any, str], float]:
    chosen: NDArray[np.bool_] = np.asarray(rows["score"]).astype(str) == _SCORE
    ids, sets = np.asarray(rows["sample_id"])[chosen].tolist(), np.asarray(rows["set"]).astype(str)[chosen].tolist()
    scores = np.asarray(rows["ood_score"], dtype=float)[chosen].tolist()
    return dict(zip(zip(ids, sets, strict=True), scores, strict=True))


def likelihood_ratio_auroc(options: BackgroundOptions) -> LikelihoodRatio:
    return LikelihoodRatio(options.background)
