"""Out-of-distribution tests by the log-likelihood (appendix A.1), against that of the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.errors import ModelError
from harness.typicality import Typicality

KEPT = 2001
"""Log-likelihoods kept of a training set: all of a smaller one, else as many quantiles, the extremes among them."""


@dataclass(frozen=True)
class TrainingScores:
    """Log-likelihoods of the training images, as the finished model gives them.

    Attributes:
        mean: of all training images, nats.
        ordered: float64 (n,), ascending; quantiles where there were many, see `KEPT`.
    """

    mean: float
    ordered: Tensor

    @classmethod
    def of(cls, log_prob: Tensor) -> TrainingScores:
        """From log-likelihoods (n,) in nats, n at least 1."""
        ordered = log_prob.detach().double().cpu().sort().values
        kept = min(KEPT, ordered.numel())
        places = np.linspace(0, ordered.numel() - 1, kept).round().astype(np.int64)
        return cls(float(ordered.mean()), ordered[torch.from_numpy(places)])

    def tensor(self) -> Tensor:
        """The mean, then the rest: as a checkpoint keeps them."""
        return torch.cat([torch.tensor([self.mean], dtype=torch.float64), self.ordered])

    @classmethod
    def from_tensor(cls, kept: Tensor) -> TrainingScores:
        """What `tensor` gave."""
        return cls(float(kept[0]), kept[1:].double())


def score(
    log_prob: Tensor,
    test: Literal["one-tailed", "typicality", "two-tailed"],
    training: TrainingScores | None,
    name: str,
) -> Tensor:
    """(B,) how far log-likelihoods (B,) are from those of the training images; higher is further.

    "one-tailed": -log p. "typicality": the distance from the training mean, nats. "two-tailed": the quantile test, as
    `harness.typicality.Typicality.two_tailed` says it, with the training distribution.

    Raises:
        ModelError: there are no training scores, and the test needs them.
    """
    if test == "one-tailed":
        return -log_prob
    if training is None:
        raise ModelError(
            f"model '{name}': detector {test} compares with the log-likelihoods of training images, and this model has"
            ' none; use a checkpoint written by `harness fit ib-inn`, or detector = "one-tailed"'
        )
    if test == "typicality":
        return (log_prob - training.mean).abs()
    return Typicality(float(training.ordered.median()), training.ordered).two_tailed(log_prob)
