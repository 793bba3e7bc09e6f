"""The clean reference: what a model says of the images as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.models import CONFIDENCE_BINS, bits_per_dim, max_softmax, refuse_nan
from harness.options import Options
from harness.threats import Batch, Budget, Columns, ThreatContext

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView


class CleanOptions(Options):
    """The clean reference has no options."""


class Clean:
    """One row a sample, by what the model is.

    A classifier gives `confidence`, `entropy`, `negative_log_likelihood`, and `class_confidence_count`,
    `class_confidence_sum` (B, 29): how many classes have a probability in each of `harness.models.CONFIDENCE_BINS`, and
    the sum of those. A density gives `log_prob` (nats) and, unless it is a surrogate, `clean_bits_per_dim`; a detector
    (which every classifier is) `ood_score`. A plain classifier costs no evaluation beyond the host's own.
    """

    budget: Budget | None = None

    def __init__(self, levels: int = 256) -> None:
        self.levels = levels

    def run(self, model: ModelView, batch: Batch) -> Columns:
        import torch

        columns: dict[str, Tensor] = {}
        if batch.clean_logits is not None:
            columns |= certainty(batch.clean_logits, batch.y)
            columns |= class_confidence(batch.clean_logits)
            if model.ood_score_name == "max-softmax":
                columns["ood_score"] = max_softmax(batch.clean_logits)  # as `ModelView.ood_score`, without asking again
        with torch.no_grad():
            if model.ood_score_name == "own":
                columns["ood_score"] = model.ood_score(batch.x, batch.draws).double()
                refuse_nan(columns["ood_score"], batch.ids, "ood_score", "images")
            if "Density" in model.capabilities:
                columns["log_prob"] = model.log_prob(batch.x, batch.draws).double()
                if model.density_tag != "surrogate":
                    columns["clean_bits_per_dim"] = bits_per_dim(columns["log_prob"], batch.x.shape[1:], self.levels)
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


def class_confidence(logits: Tensor) -> dict[str, Tensor]:
    """The probabilities of all classes of a batch of logits (B, K), binned.

    Returns:
        `class_confidence_count` int64 and `class_confidence_sum` float64, (B, bins) each.
    """
    import torch

    probabilities = logits.double().softmax(dim=1)
    inner = torch.tensor(CONFIDENCE_BINS[1:-1], dtype=torch.float64, device=logits.device)
    place = torch.bucketize(probabilities, inner, right=True)
    shape = (len(logits), len(CONFIDENCE_BINS) - 1)
    count = torch.zeros(shape, dtype=torch.int64, device=logits.device)
    total = torch.zeros(shape, dtype=torch.float64, device=logits.device)
    return {
        "class_confidence_count": count.scatter_add_(1, place, torch.ones_like(place)),
        "class_confidence_sum": total.scatter_add_(1, place, probabilities),
    }


def build(options: CleanOptions, context: ThreatContext) -> Clean:  # noqa: ARG001 - a factory's signature
    return Clean(context.data.levels)
