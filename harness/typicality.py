"""How typical a log-likelihood is of held-out images, as one-tailed and two-tailed detection scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Typicality:
    """Detection by a quantile test (Mackowiak et al. 2021, appendix A.1): higher scores are less typical.

    Attributes:
        median: of the log-likelihoods, nats.
        ordered: float64 (n,), held-out log-likelihoods in ascending order; None where only the median is known.
    """

    median: float
    ordered: Tensor | None = None

    @classmethod
    def of(cls, log_probs: Any) -> Typicality:
        """From log-likelihoods of held-out images (n,), n at least 2."""
        import numpy as np
        import torch

        ordered = np.sort(np.asarray(log_probs, dtype=np.float64))
        return cls(float(np.median(ordered)), torch.from_numpy(ordered))

    def one_tailed(self, log_prob: Tensor) -> Tensor:
        """-log p: only unlikely images are rejected."""
        return -log_prob

    def two_tailed(self, log_prob: Tensor) -> Tensor:
        """Images that are too likely are rejected as well.

        ``-min(F, 1 - F)`` with the held-out distribution function F, interpolated between the images; beyond the range
        of the held-out images, where that is constant, it grows with the distance (in units of the range), so that no
        two images tie. Without the distribution: the distance from the median, nats.
        """
        import torch

        if self.ordered is None:
            return (log_prob - self.median).abs()
        ordered = self.ordered.to(log_prob.device)
        n = len(ordered)
        above = torch.searchsorted(ordered, log_prob).clamp(1, n - 1)
        low, high = ordered[above - 1], ordered[above]
        inside = log_prob.clamp(ordered[0], ordered[-1])
        part = ((inside - low) / (high - low).clamp_min(1e-300)).nan_to_num(1.0).clamp(0.0, 1.0)
        share = (above - 1 + part + 0.5) / n
        beyond = (log_prob - inside).abs() / (ordered[-1] - ordered[0]).clamp_min(1e-300)
        return beyond - torch.minimum(share, 1 - share)
