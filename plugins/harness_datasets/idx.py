"""MNIST and the sets that copy its format: four gzipped idx files.

Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, a type code, the number of dimensions, then the dimensions as
big-endian 32-bit integers). A gzip stream cannot be entered in the middle, so the images are unpacked once into the
cache and read from there by offset.
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from harness.datasets import DatasetContext, Ints
from harness.errors import HarnessError
from harness.options import Options, option
from harness_datasets import cache, class_names
from harness_datasets.location import resolve
from harness_datasets.rows import RowFile, check_labels, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

_UINT8 = 0x08
_MD5 = {  # as published with the data sets
    "mnist/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "mnist/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "mnist/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "mnist/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "fashion_mnist/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "fashion_mnist/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


class IdxOptions(Options):
    split: Literal["train", "test"] = option("test", help="which of the two official parts")
    checksum: bool = option(True, help="refuse files whose md5 is not that of the official ones")


class Idx:
    """Grey 8-bit images and labels from a pair of idx .gz files."""

    levels = 256

    def __init__(self, images: Path, labels: Path, names: tuple[str, ...]) -> None:
        self.class_names = names
        self._files = (images, labels)
        self._rows = _open(images, dimensions=3)
        label_rows = _open(labels, dimensions=1)
        if label_rows.count != self._rows.count:
            raise HarnessError(f"{labels}: has {label_rows.count} labels for the {self._rows.count} images of {images}")
        self._labels = check_labels(label_rows.read(np.arange(label_rows.count)), len(names), labels)
        height, width = self._rows.shape
        self.shape = (1, height, width)

    def labels(self) -> Ints:
        return self._labels

    def images(self, index: Ints) -> Tensor:
        return to_tensor(self._rows.read, index, self.shape, self.levels)

    def digest(self) -> str:
        return cache.combined_digest({"dataset": "idx", "files": [cache.fingerprint(f).sha256 for f in self._files]})


def build_mnist(options: IdxOptions, context: DatasetContext) -> Idx:
    """The factory of `mnist` (LeCun et al. 1998): 60,000 training and 10,000 test digits, 28x28."""
    return _build("mnist", "mnist", class_names.MNIST, options, context)


def build_fashion_mnist(options: IdxOptions, context: DatasetContext) -> Idx:
    """The factory of `fashion-mnist` (Xiao et al. 2017): 60,000 training and 10,000 test pictures of clothes, 28x28."""
    return _build("fashion-mnist", "fashion_mnist", class_names.FASHION_MNIST, options, context)


def _build(name: str, folder: str, names: tuple[str, ...], options: IdxOptions, context: DatasetContext) -> Idx:
    prefix = "train" if options.split == "train" else "t10k"
    relative = [f"{folder}/{prefix}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
    images, labels = (resolve(name, path, context) for path in relative)
    dataset = Idx(images, labels, names)  # first, since "truncated" says more than a wrong checksum
    if options.checksum:
        for file, path in zip((images, labels), relative, strict=True):
            check_md5(file, _MD5[path])
    return dataset


def check_md5(file: Path, official: str) -> None:
    """Refuse a file whose md5 is not the official one.

    Raises:
        HarnessError: naming the file, both sums and the option that allows it.
    """
    found = cache.fingerprint(file).md5
    if found != official:
        raise HarnessError(
            f"{file}: is not the official file (md5 {found}, official {official}); fetch it again, or set"
            " checksum = false to use it as it is"
        )


def _open(path: Path, dimensions: int) -> RowFile:
    """The rows of an idx file of bytes, along its first dimension, in an unpacked copy."""
    copy = cache.unpacked(path, ("gunzip", cache.fingerprint(path).sha256), partial(_gunzip, path))
    header_bytes = 4 + 4 * dimensions
    with copy.open("rb") as file:
        header = file.read(header_bytes)
    magic = bytes([0, 0, _UINT8, dimensions])
    if header[:4] != magic or len(header) != header_bytes:
        raise HarnessError(
            f"{path}: starts with {header[:4].hex() or 'nothing'}, an idx file of {dimensions}-dimensional bytes with"
            f" {magic.hex()}; fetch it again"
        )
    count, *shape = (int(n) for n in np.frombuffer(header, ">u4", offset=4))
    found, needed = copy.stat().st_size - header_bytes, count * int(np.prod(shape, dtype=np.int64))
    if found != needed or not needed:
        raise HarnessError(f"{path}: holds {found:,} bytes of data where its header says {needed:,}; fetch it again")
    return RowFile(copy, header_bytes, count, np.dtype(np.uint8), tuple(shape), path)


def _gunzip(path: Path, out: BinaryIO) -> None:
    try:
        with gzip.open(path, "rb") as file:
            shutil.copyfileobj(file, out, cache.CHUNK)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise HarnessError(f"{path}: is truncated or no gzip file ({error}); fetch it again") from error
