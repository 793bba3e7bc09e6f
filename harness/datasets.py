"""Data sets: images with labels, read lazily by index, and the slice of one that a suite asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]


class Dataset(Protocol):
    """A fixed, indexable set of labelled images. An image's index is its sample id and never changes.

    Attributes:
        class_names: one name per class, in label order.
        shape: (C, H, W) of every image.
        levels: number of grey levels the pixel values can take (256 for 8-bit images).
    """

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    levels: int

    def labels(self) -> Ints:
        """int64 (N,), cheap: decodes no image."""
        ...

    def images(self, index: Ints) -> Tensor:
        """float32 (B, C, H, W) in [0, 1], decoded from disk now; memory does not grow with the data set."""
        ...

    def digest(self) -> str:
        """Hash of everything that decides the images and labels (file contents, options)."""
        ...


@dataclass(frozen=True)
class DatasetContext:
    """What the host gives a dataset factory: the folder under which data lie, if one was given."""

    root: Path | None = None


@dataclass(frozen=True)
class DatasetFacts:
    """What a model or threat may know of the data it will see."""

    name: str
    shape: tuple[int, int, int]
    levels: int
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class SliceSpec:
    """Which samples of a data set: the keys of a suite's dataset table that the host itself understands.

    `classes` keeps only the samples of these classes (names or indices). `label_map` renames classes of the data set to
    classes of the model: {"data set's class": "model's class name or index"}.
    """

    limit: int | None = None
    subset: str = "first"  # "first" or "stratified"
    subset_seed: int = 0
    classes: tuple[str | int, ...] | None = None
    label_map: Mapping[str, str | int] = field(default_factory=dict)


class DatasetSlice:
    """The samples of a data set that a cell uses, with labels as the model numbers them."""

    def __init__(self, name: str, dataset: Dataset, spec: SliceSpec | None = None) -> None:
        spec = spec or SliceSpec()
        self.name = name
        self.dataset = dataset
        self.spec = spec
        labels = np.asarray(dataset.labels(), dtype=np.int64)
        mapping, names = _label_mapping(dataset.class_names, spec.label_map)
        if labels.size and (labels.min() < 0 or labels.max() >= len(dataset.class_names)):
            bad = int(np.flatnonzero((labels < 0) | (labels >= len(dataset.class_names)))[0])
            raise HarnessError(
                f"dataset '{name}': sample {bad} has label {labels[bad]}, but the classes are 0 to"
                f" {len(dataset.class_names) - 1}"
            )
        ids = np.arange(labels.size, dtype=np.int64)
        if spec.classes is not None:
            ids = ids[np.isin(labels, _class_indices(name, dataset.class_names, spec.classes))]
        self.ids: Ints = _subset(ids, labels, spec)
        self._labels: Ints = mapping[labels]
        self.facts = DatasetFacts(name, dataset.shape, dataset.levels, names)

    def __len__(self) -> int:
        return int(self.ids.size)

    def labels(self, ids: Ints | None = None) -> Ints:
        """int64 labels of the given sample ids (of the whole slice by default)."""
        return self._labels[self.ids if ids is None else ids]

    def load(self, ids: Ints) -> tuple[Tensor, Tensor]:
        """Images float32 (B, C, H, W) in [0, 1] and labels int64 (B,) of the given sample ids.

        Raises:
            HarnessError: the data set returned images of another shape, type or range than it declares.
        """
        import torch

        x = self.dataset.images(ids)
        wanted = (len(ids), *self.facts.shape)
        if tuple(x.shape) != wanted or x.dtype != torch.float32:
            raise HarnessError(f"dataset '{self.name}' returned {x.dtype} {tuple(x.shape)}, not float32 {wanted}")
        if x.numel() and not (x.min() >= 0 and x.max() <= 1):
            raise HarnessError(
                f"dataset '{self.name}' returned values outside [0, 1] (or NaN) for samples {ids[:3]}..."
            )
        return x, torch.from_numpy(self._labels[ids])

    def digest(self) -> str:
        """Hash of the data set and of the choice of samples."""
        parts = [self.dataset.digest(), repr(self.facts.class_names)]
        state = hashlib.sha256("\n".join(parts).encode())
        state.update(self.ids.tobytes())
        state.update(self._labels[self.ids].tobytes())
        return state.hexdigest()


def _label_mapping(names: tuple[str, ...], label_map: Mapping[str, str | int]) -> tuple[Ints, tuple[str, ...]]:
    if not label_map:
        return np.arange(len(names), dtype=np.int64), names
    unknown = sorted(set(label_map) - set(names))
    if unknown:
        raise HarnessError(f"label_map: '{unknown[0]}' is not a class of the data set")
    targets = [label_map.get(name, name) for name in names]
    if all(isinstance(t, int) for t in targets):
        indices = np.array(targets, dtype=np.int64)
        if indices.min() < 0:
            raise HarnessError("label_map: class indices start at 0")
        by_index = {int(i): name for name, i in zip(names, indices, strict=True)}
        return indices, tuple(by_index.get(i, str(i)) for i in range(int(indices.max()) + 1))
    merged = tuple(dict.fromkeys(str(t) for t in targets))
    return np.array([merged.index(str(t)) for t in targets], dtype=np.int64), merged


def _class_indices(name: str, names: tuple[str, ...], wanted: tuple[str | int, ...]) -> list[int]:
    out = []
    for item in wanted:
        if isinstance(item, int) and 0 <= item < len(names):
            out.append(item)
        elif isinstance(item, str) and item in names:
            out.append(names.index(item))
        else:
            raise HarnessError(f"dataset '{name}': classes: {item!r} is not a class; it has {len(names)}: {names[:12]}")
    return out


def _subset(ids: Ints, labels: Ints, spec: SliceSpec) -> Ints:
    """The first `limit` ids, or a stratified choice of them: shares of the classes as in the whole, ids in order."""
    if spec.limit is None or spec.limit >= ids.size:
        return ids
    if spec.subset == "first":
        return ids[: spec.limit]
    # A seeded shuffle inside each class; taking every class's k-th sample at quantile (k + 1/2) / n keeps the shares.
    generator = np.random.Generator(np.random.Philox(spec.subset_seed))
    order = generator.permutation(ids.size)
    quantile = np.empty(ids.size)
    for label in np.unique(labels[ids]):
        members = order[labels[ids[order]] == label]
        quantile[members] = (np.arange(members.size) + 0.5) / members.size
    rank = np.empty(ids.size, dtype=np.int64)
    rank[order] = np.arange(ids.size)
    chosen = np.lexsort((rank, quantile))[: spec.limit]
    return np.sort(ids[chosen])
