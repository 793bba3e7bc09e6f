"""Class means in one plane, for a decision space that can be drawn whole (paper C.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from harness.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from harness_ib_inn.means import ClassMeans
    from harness_ib_inn.model import IBINN


def into_plane(means: ClassMeans) -> None:
    """Move the class means to the nearest points of the plane that fits them best; in place.

    Done after every step of training it constrains them to a plane, which may itself turn. The low-rank part of the
    means becomes zero: the plane lies among the mean-pooled features.
    """
    with torch.no_grad():
        pooled = means.pooled.double()
        origin = pooled.mean(dim=0)
        _, _, directions = torch.linalg.svd(pooled - origin, full_matrices=False)
        basis = directions[:2]
        means.pooled.copy_(origin + (pooled - origin) @ basis.T @ basis)
        means.weights.zero_()


def keep_classes(model: IBINN, wanted: Sequence[str]) -> None:
    """Reduce a model from a checkpoint to some of its classes, in the order given.

    Raises:
        ModelError: the model has no class of one of these names, or they are fewer than three.
    """
    if len(wanted) < 3:
        raise ModelError(f"plane=true needs at least three classes, the data have {len(wanted)}")
    if tuple(wanted) == model.class_names or (not model.class_names and len(wanted) == model.num_classes):
        return
    unknown = [name for name in wanted if name not in model.class_names]
    if unknown:
        near = did_you_mean(unknown[0], model.class_names)
        raise ModelError(f"model '{model.name}': its checkpoint has no class '{unknown[0]}'{near}")
    rows = [model.class_names.index(name) for name in wanted]
    model.class_means.keep(rows)
    model.log_prior = model.log_prior[rows].log_softmax(dim=0)
    model.num_classes, model.class_names = len(rows), tuple(wanted)
