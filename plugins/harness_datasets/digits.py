"""scikit-learn's handwritten digits, the data set that needs no file."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from harness.datasets import DatasetContext, Ints
from harness.errors import MissingDataError
from harness.options import Options, option
from harness_datasets.rows import checked, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 17  # counts 0 to 16 of inked pixels in a 4x4 block
_SIDE = 8


class DigitsOptions(Options):
    split: Literal["train", "test"] = option("test", help="which part: every fifth sample of each class is test")
    size: int = option(_SIDE, help="side of the images, upsampled by nearest neighbour", unit="pixels", ge=_SIDE)


class Digits:
    """1,797 images of 8x8 pixels, grey levels 0 to 16 (Alpaydin and Kaynak 1998).

    The split is a fixed rule, no random draw: of each class, in the order of the file, the samples number 2, 7, 12, ...
    (counted from 0) are test: 359 test, 1,438 train. Upsampling is by nearest neighbour, so that pixels keep to the 17
    grey levels that bits/dim is counted with.
    """

    levels = LEVELS
    class_names = tuple("0123456789")

    def __init__(self, options: DigitsOptions) -> None:
        pixels, labels = load()
        chosen = np.flatnonzero(_is_test(labels) == (options.split == "test"))
        self.shape = (1, options.size, options.size)
        self._pixels, self._labels = pixels[chosen], labels[chosen]
        self._size = options.size

    def labels(self) -> Ints:
        return self._labels

    def images(self, index: Ints) -> Tensor:
        return to_tensor(self._read, index, self.shape, LEVELS)

    def digest(self) -> str:
        state = hashlib.sha256(f"digits {self._size}".encode())
        state.update(self._pixels.tobytes())
        state.update(self._labels.tobytes())
        return state.hexdigest()

    def _read(self, index: Ints) -> NDArray[np.uint8]:
        small = self._pixels[checked(index, self._labels.size, "dataset 'digits'")]
        nearest = (2 * np.arange(self._size) + 1) * _SIDE // (2 * self._size)  # pixel centres, in integers
        return small[:, nearest[:, np.newaxis], nearest]


def build(options: DigitsOptions, context: DatasetContext) -> Digits:  # noqa: ARG001
    """The factory of `digits`."""
    return Digits(options)


def load() -> tuple[NDArray[np.uint8], Ints]:
    """All images uint8 (1797, 8, 8), values 0 to 16, and labels int64 (1797,), in scikit-learn's order.

    Reads the file that scikit-learn ships, because importing `sklearn.datasets` takes almost two seconds.
    """
    path = _shipped_file()
    if path is not None:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
        return table[:, :-1].astype(np.uint8).reshape(-1, _SIDE, _SIDE), table[:, -1].copy()
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDataError("dataset 'digits': needs scikit-learn, which ships it: install scikit-learn") from error
    data = load_digits()
    return data.images.astype(np.uint8), data.target.astype(np.int64)


def _shipped_file() -> Path | None:
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    return None


def _is_test(labels: Ints) -> NDArray[np.bool_]:
    out = np.zeros(labels.size, dtype=bool)
    for label in np.unique(labels):
        out[np.flatnonzero(labels == label)[2::5]] = True
    return out
