"""The rows of corrupted images, whoever corrupted them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import ThreatError
from harness.judge import norm_of
from harness.models import bits_per_dim
from harness_corruptions.catalogue import GROUPS

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView
    from harness.threats import Batch


def rows_of(
    model: ModelView, batch: Batch, images: Tensor, corruption: str, severity: int, levels: int
) -> dict[str, Any]:
    """One row a sample: its corrupted image, or with severity 0 its clean one.

    Columns: `sample_id`, `label`, `corruption` ("none" for clean images), `severity`, `group` (one of mCE's four,
    "extra" or "none"), `changed_linf` and `changed_l2` (float64, norms of the change), what the host says of the image
    (see `harness.threats.Batch.judge`), and `bits_per_dim` of a density that is no surrogate.
    """
    import torch

    if batch.judge is None:
        raise ThreatError("corruptions need the host's judgement of images (Batch.judge)")
    n, change, answers = len(batch.ids), images - batch.x, batch.judge(images)
    if "log_prob" in answers and model.density_tag != "surrogate":
        answers["bits_per_dim"] = bits_per_dim(answers["log_prob"], images.shape[1:], levels)
    return {
        "sample_id": batch.ids,
        "label": batch.y,
        "corruption": [corruption if severity else "none"] * n,
        "severity": torch.full_like(batch.ids, severity),
        "group": [GROUPS.get(corruption, "extra") if severity else "none"] * n,
        "changed_linf": norm_of(change, "linf"),
        "changed_l2": norm_of(change, "l2"),
        **answers,
    }


def joined(parts: Sequence[Mapping[str, Any]], **same: str) -> dict[str, Any]:
    """The rows of several calls of `rows_of` below each other, with columns that are the `same` in all of them."""
    import torch

    columns = {
        name: torch.cat([part[name] for part in parts])
        if isinstance(first, torch.Tensor)
        else [value for part in parts for value in part[name]]
        for name, first in parts[0].items()
    }
    return {**columns, **{name: [value] * len(columns["severity"]) for name, value in same.items()}}
