"""Data sets: images with labels, read lazily by index, and the slice of one that a suite asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError, did_you_mean

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

    `classes` keeps only the samples of these classes (names or indices). `label_map` turns classes of the data set into
    classes of the model: {"data set's class": target}. Targets are all indices of the model's outputs, and then every
    class that is kept needs one; or all names, which rename classes in place and merge those given the same name.
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
        if labels.size and (labels.min() < 0 or labels.max() >= len(dataset.class_names)):
            bad = int(np.flatnonzero((labels < 0) | (labels >= len(dataset.class_names)))[0])
            raise HarnessError(
                f"dataset '{name}': sample {bad} has label {labels[bad]}, but the classes are 0 to"
                f" {len(dataset.class_names) - 1}"
            )
        ids = np.arange(labels.size, dtype=np.int64)
        kept = list(range(len(dataset.class_names)))
        if spec.classes is not None:
            kept = _class_indices(name, dataset.class_names, spec.classes)
            ids = ids[np.isin(labels, kept)]
        mapping, names = _label_mapping(name, dataset.class_names, spec.label_map, kept)
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


def _label_mapping(
    name: str, names: tuple[str, ...], label_map: Mapping[str, str | int], kept: list[int]
) -> tuple[Ints, tuple[str, ...]]:
    """The new label of each class (-1 for one that is not kept and has none), and the new class names."""
    if not label_map:
        return np.arange(len(names), dtype=np.int64), names
    unknown = sorted(set(label_map) - set(names))
    if unknown:
        raise HarnessError(
            f"dataset '{name}': label_map: '{unknown[0]}' is not a class of it{did_you_mean(unknown[0], names)}"
        )
    if all(isinstance(target, str) for target in label_map.values()):
        renamed = [str(label_map.get(class_name, class_name)) for class_name in names]
        merged = tuple(dict.fromkeys(renamed))
        return np.array([merged.index(class_name) for class_name in renamed], dtype=np.int64), merged
    if not all(isinstance(target, int) for target in label_map.values()):
        raise HarnessError(f"dataset '{name}': label_map: give names for all classes or indices for all, not both")
    missing = [names[label] for label in kept if names[label] not in label_map]
    if missing:
        raise HarnessError(
            f"dataset '{name}': label_map gives no index for class '{missing[0]}'"
            f" ({len(missing)} missing); add it, or leave the class out with the key classes"
        )
    mapping = np.array([label_map.get(class_name, -1) for class_name in names], dtype=np.int64)
    if min(int(target) for target in label_map.values()) < 0:
        raise HarnessError(f"dataset '{name}': label_map: class indices start at 0")
    by_index = {int(target): class_name for class_name, target in label_map.items()}
    return mapping, tuple(by_index.get(i, str(i)) for i in range(int(mapping.max()) + 1))


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
    # Raw Philox words, because NumPy may change what Generator.permutation makes of them.
    order = np.argsort(np.random.Philox(spec.subset_seed).random_raw(ids.size), kind="stable")
    quantile = np.empty(ids.size)
    for label in np.unique(labels[ids]):
        members = order[labels[ids[order]] == label]
        quantile[members] = (np.arange(members.size) + 0.5) / members.size
    rank = np.empty(ids.size, dtype=np.int64)
    rank[order] = np.arange(ids.size)
    chosen = np.lexsort((rank, quantile))[: spec.limit]
    return np.sort(ids[chosen])
