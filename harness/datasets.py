"""Data sets: images with labels, read lazily by index, and the slice of one that a suite asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from harness.errors import HarnessError
from harness.label_map import Ints, Target, map_classes
from harness.readout import Readout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Dataset", "DatasetContext", "DatasetFacts", "DatasetSlice", "Ints", "SliceSpec"]


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
    """What a model or threat may know of the data it will see.

    `readout`: how the host reads a model's outputs as these classes, where they are not its own: whoever is given a
    `harness.models.ModelView` sees the classes of the data.
    """

    name: str
    shape: tuple[int, int, int]
    levels: int
    class_names: tuple[str, ...]
    readout: Readout | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class SliceSpec:
    """Which samples of a data set: the keys of a suite's dataset table that the host itself understands.

    `classes` keeps only the samples of these classes (names or indices). `label_map` turns classes of the data set into
    classes of the model: {"data set's class": target}. Targets are all indices of the model's outputs, and then every
    class that is kept needs one, or several, of which any is right, or () to be left out; or all names, which rename
    classes in place and merge those given the same name. `restrict`: the model chooses among the classes kept alone.
    With it, or where a class has several indices, the model's outputs are read as the classes of the data.
    """

    limit: int | None = None
    subset: str = "first"  # "first" or "stratified"
    subset_seed: int = 0
    classes: tuple[str | int, ...] | None = None
    label_map: Mapping[str, Target] | str = field(default_factory=dict)  # text: the file that says so
    restrict: bool = False


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
        assert not isinstance(spec.label_map, str), "`open_dataset` reads the file"
        found = map_classes(name, dataset.class_names, spec.label_map, kept, restrict=spec.restrict)
        if spec.classes is not None or spec.label_map:
            kept = [label for label in kept if found.new[label] >= 0]
            ids = ids[np.isin(labels, kept)]
        self.ids: Ints = _subset(ids, labels, spec)
        self._labels: Ints = found.new[labels]
        self.facts = DatasetFacts(name, dataset.shape, dataset.levels, found.names, found.readout)

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
        parts += [repr(self.facts.readout)] if self.facts.readout else []
        state = hashlib.sha256("\n".join(parts).encode())
        state.update(self.ids.tobytes())
        state.update(self._labels[self.ids].tobytes())
        return state.hexdigest()


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
