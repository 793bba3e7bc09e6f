"""The clean reference: what a model says of the images as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.options import Options
from harness.threats import Batch, Budget, Columns, ThreatContext

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView


class CleanOptions(Options):
    """The clean reference has no options."""


class Clean:
    """One row a sample: `confidence`, `entropy`, `negative_log_likelihood` for a classifier, `log_prob` for a density.

    A plain classifier costs no evaluation beyond the host's own.
    """

    budget: Budget | None = None

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        columns: dict[str, Tensor] = {}
        if batch.clean_logits is not None:
            columns |= certainty(batch.clean_logits, batch.y)
        if "Density" in model.capabilities:
            with torch.no_grad():
                columns["log_prob"] = model.log_prob(batch.x, batch.draws).double()
        return columns


def certainty(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What a classifier's logits (B, K) say about how sure it is, float64 (B,) each.

    Returns:
        `confidence`, the largest softmax probability; `entropy` of the softmax, nats; `negative_log_likelihood` of the
        label, nats, exact also where the probability rounds to 0.
    """
    log_probs = logits.double().log_softmax(dim=1)
    return {
        "confidence": log_probs.amax(dim=1).exp(),
        # xlogy's convention 0 log 0 = 0: a probability that underflows contributes nothing, not NaN.
        "entropy": -(log_probs.exp() * log_probs.clamp_min(-1e30)).sum(dim=1),
        "negative_log_likelihood": -log_probs.gather(1, y[:, None])[:, 0],
    }


def build(options: CleanOptions, context: ThreatContext) -> Clean:  # noqa: ARG001 - a factory's signature
    return Clean()
