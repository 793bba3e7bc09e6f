"""What a threat is given, and what it returns: rows, one record per evaluated sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from harness.datasets import DatasetFacts, DatasetSlice
    from harness.models import ModelView
    from harness.randomness import Draws

Norm = Literal["linf", "l2", "l1"]


@dataclass(frozen=True)
class Budget:
    """How far an attack may move an image: the `norm` of the difference, over all its entries, is at most `eps`.

    With `eps` infinite the attack looks for the smallest perturbation: it is judged by how large that is.
    """

    norm: Norm
    eps: float


@dataclass(frozen=True)
class ThreatContext:
    """What the host gives a threat factory.

    Attributes:
        data: facts of the data set (shape, classes, grey levels).
        open_dataset: opens another data set by its table, ``{"name": "mnist", "split": "test"}``.
        folder: folder of the suite file; relative paths in options start there.
        open_own: opens the suite's data as its dataset table has them, whatever the threat's limit or `--limit`: for a
            threat that pairs a sample with others. None outside the engine.
    """

    data: DatasetFacts
    open_dataset: Callable[[Mapping[str, Any]], DatasetSlice]
    folder: Path
    open_own: Callable[[], DatasetSlice] | None = None


@dataclass(frozen=True)
class Batch:
    """The samples a threat works on.

    Attributes:
        x: float32 (B, C, H, W) in [0, 1].
        y: int64 (B,).
        ids: int64 (B,), sample ids.
        draws: the samples' random streams, keyed by seed and threat, not by model, eps or steps.
        clean_logits: (B, K) the host's evaluation of `x`, where the model is a classifier; of a random model the
            log-softmax, averaged over ten draws.
        clean_prediction: int64 (B,), the host's verdict; of a random model the class that most draws name.
        judge: what the host says of one image of each sample, (B, C, H, W) in the batch's order, for a threat that
            shifts images and is held to no budget; None for an attack, which must not see the host's draws. By the
            model's capabilities: `prediction` int64, `correct` bool, `confidence` (largest softmax probability) and
            `entropy` (of the softmax, nats); `ood_score`; `log_prob` (nats); float64 (B,) where nothing is said. A
            random model is asked as for any verdict; the evaluations are booked to the rows.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    draws: Draws
    clean_logits: Tensor | None = None
    clean_prediction: Tensor | None = None
    judge: Callable[[Tensor], dict[str, Tensor]] | None = None

    @property
    def clean_correct(self) -> Tensor:
        """bool (B,), which samples the model classifies rightly before anything is done to them."""
        if self.clean_logits is None:
            raise ValueError("clean_correct needs a classifier; the threat must require one")
        verdict = self.clean_logits.argmax(dim=1) if self.clean_prediction is None else self.clean_prediction
        return verdict == self.y


Columns = Mapping[str, Any]
"""Column name -> tensor, array or list, one entry per row.

Without a column ``sample_id`` there must be one row per sample, in the batch's order, and the host adds ``sample_id``,
``label`` and, for a classifier, ``clean_prediction`` and ``clean_correct``. With it (several rows a sample, or samples
without a label) the threat's columns stand as they are. A column ``adversarial`` (B, C, H, W) makes the rows those of
an attack: the host checks range and budget, evaluates the images afresh and adds ``adversarial_prediction``,
``success`` (clean prediction right, adversarial one wrong), ``success_rounded`` (still so in 8 bits) and the norms
``linf``, ``l2``, ``l1``, ``l0`` of the perturbation. Where the budget is infinite it adds ``found`` instead of success,
and ``minimal_norm``: the norm of an image that fools, infinite where there is none, 0 for a clean error. A model with
randomness is judged by the majority of ten draws; ``clean_correct_share``, ``adversarial_correct_share`` say how many
were right, ``clean_correct_mean`` and ``success_mean`` judge by the mean log-likelihood. ``predicted_among`` says of
how many classes a prediction is one, where the data's are not the model's (`DatasetFacts.readout`). For a model with a
detector of its own, or where held-out scores are at hand, ``clean_ood_score`` and ``adversarial_ood_score`` are added;
with those scores also ``ood_threshold`` (B, 3), at false-positive rates of 1, 5 and 10 %, ``evades_at_detector_fpr``
(B, 3), whether the image fools and is accepted, and ``robust_at_detector_fpr`` (B, 3), whether a classifier that may
reject withstands. The host always adds ``forwards`` and ``backwards``, the model evaluations the threat spent on the
row's sample.
"""


class Threat(Protocol):
    """A threat: samples in, rows out. `budget` is what the host holds an attack to; None for anything else.

    It may have attributes `files` and `inputs`, what its rows depend on beside the options, and `left_out`, what it
    cannot show here (see `harness.loading.BuiltThreat`).
    """

    budget: Budget | None

    def run(self, model: ModelView, batch: Batch) -> Columns:
        """Evaluate one batch. Rows must not depend on which samples share the batch."""
        ...
