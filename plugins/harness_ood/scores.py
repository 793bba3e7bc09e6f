"""Stand-in until branch i4-scores: the model's own score only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.randomness import Draws

ScoreName = Literal["own", "max-softmax", "log-likelihood"]


def score_all(view: ModelView, x: Tensor, draws: Draws, names: Sequence[str]) -> dict[str, Tensor]:
    import torch

    with torch.no_grad():
        return {
            name: (-view.log_prob(x, draws) if name == "log-likelihood" else view.ood_score(x, draws)).double()
            for name in names
        }


def needs_reference(names: Iterable[str]) -> bool:
    return not set(names) <= {"own", "max-softmax", "log-likelihood"}
