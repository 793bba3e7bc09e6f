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
    """How far an attack may move an image: the `norm` of the difference, over all its entries, is at most `eps`."""

    norm: Norm
    eps: float


@dataclass(frozen=True)
class ThreatContext:
    """What the host gives a threat factory.

    Attributes:
        data: facts of the data set (shape, classes, grey levels).
        open_dataset: opens another data set by its table, ``{"name": "mnist", "split": "test"}``.
        folder: folder of the suite file; relative paths in options start there.
    """

    data: DatasetFacts
    open_dataset: Callable[[Mapping[str, Any]], DatasetSlice]
    folder: Path


@dataclass(frozen=True)
class Batch:
    """The samples a threat works on.

    Attributes:
        x: float32 (B, C, H, W) in [0, 1].
        y: int64 (B,).
        ids: int64 (B,), sample ids.
        draws: the samples' random streams, keyed by seed and threat, not by model, eps or steps.
        clean_logits: (B, K) the host's evaluation of `x`, where the model is a classifier.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    draws: Draws
    clean_logits: Tensor | None = None

    @property
    def clean_correct(self) -> Tensor:
        """bool (B,), which samples the model classifies rightly before anything is done to them."""
        if self.clean_logits is None:
            raise ValueError("clean_correct needs a classifier; the threat must require one")
        return self.clean_logits.argmax(dim=1) == self.y


Columns = Mapping[str, Any]
"""Column name -> tensor, array or list, one entry per row.

Without a column ``sample_id`` there must be one row per sample, in the batch's order, and the host adds ``sample_id``,
``label`` and, for a classifier, ``clean_prediction`` and ``clean_correct``. With it (several rows a sample, or samples
without a label) the threat's columns stand as they are. A column ``adversarial`` (B, C, H, W) makes the rows those of
an attack: the host checks range and budget, evaluates the images afresh and adds ``adversarial_prediction``,
``success`` (clean prediction right, adversarial one wrong) and the norms ``linf``, ``l2``, ``l1``, ``l0`` of the
perturbation. The host always adds ``forwards`` and ``backwards``, the model evaluations the threat spent on the row's
sample.
"""


class Threat(Protocol):
    """A threat: samples in, rows out. `budget` is what the host holds an attack to; None for anything else."""

    budget: Budget | None

    def run(self, model: ModelView, batch: Batch) -> Columns:
        """Evaluate one batch. Rows must not depend on which samples share the batch."""
        ...
