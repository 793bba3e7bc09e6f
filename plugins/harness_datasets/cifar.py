"""CIFAR-10 and CIFAR-100 in the official forms: python and binary versions, packed or extracted.

Format: https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009). Whatever the form, a split is rewritten once into
the cache as all pixels followed by all labels, and read from there by offset.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from harness.datasets import DatasetContext, Ints
from harness.errors import HarnessError, MissingDataError
from harness.options import Options, option
from harness_datasets import cache, class_names
from harness_datasets.idx import check_md5
from harness_datasets.location import first_existing
from harness_datasets.pickles import load_arrays
from harness_datasets.rows import RowFile, check_labels, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


class CifarOptions(Options):
    split: Literal["train", "test"] = option("test", help="which of the two official parts")
    checksum: bool = option(True, help="refuse files whose md5 is not that of the official ones")


@dataclass(frozen=True)
class _Form:
    """One official form of a set. `files` maps a split to its files and their md5 (empty where none is published)."""

    folder: str
    archive: str
    archive_md5: str
    label_bytes: int  # labels before each image of the binary version, 0 for the python version
    files: dict[str, dict[str, str]]


_CIFAR10_FORMS = (
    _Form(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        0,
        {
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
    ),
    _Form(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        1,
        {"train": {f"data_batch_{i}.bin": "" for i in range(1, 6)}, "test": {"test_batch.bin": ""}},
    ),
)

_CIFAR100_FORMS = (
    _Form(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        0,
        {
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
    ),
    _Form(
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        2,  # coarse, then fine
        {"train": {"train.bin": ""}, "test": {"test.bin": ""}},
    ),
)


class Cifar:
    """32x32 colour images; the labels of CIFAR-100 are the 100 fine ones."""

    levels = 256
    shape = _SHAPE

    def __init__(self, source: Path, form: _Form, split: str, names: tuple[str, ...]) -> None:
        self.class_names = names
        self._files = _sources(source, form, split)
        hashes = [cache.fingerprint(file).sha256 for file in self._files]
        key = ("cifar pixels, labels", form.folder, split, *hashes)
        copy = cache.unpacked(source, key, partial(_rewrite, source, form, split, len(names)))
        count = copy.stat().st_size // (_PIXELS + 1)
        self._rows = RowFile(copy, 0, count, np.dtype(np.uint8), _SHAPE, source)
        labels = RowFile(copy, count * _PIXELS, count, np.dtype(np.uint8), (), source)
        self._labels = check_labels(labels.read(np.arange(count)), len(names), source)
        self._digest = cache.combined_digest({"dataset": form.folder, "split": split, "files": hashes})

    def labels(self) -> Ints:
        return self._labels

    def images(self, index: Ints) -> Tensor:
        return to_tensor(lambda piece: np.moveaxis(self._rows.read(piece), 1, -1), index, self.shape, self.levels)

    def digest(self) -> str:
        return self._digest


def build_cifar10(options: CifarOptions, context: DatasetContext) -> Cifar:
    """The factory of `cifar10`: 50,000 training and 10,000 test images."""
    return _build("cifar10", _CIFAR10_FORMS, class_names.CIFAR10, options, context)


def build_cifar100(options: CifarOptions, context: DatasetContext) -> Cifar:
    """The factory of `cifar100`: 50,000 training and 10,000 test images."""
    return _build("cifar100", _CIFAR100_FORMS, class_names.CIFAR100, options, context)


def _build(
    name: str, forms: tuple[_Form, ...], names: tuple[str, ...], options: CifarOptions, context: DatasetContext
) -> Cifar:
    places = {
        f"{prefix}{place}": form
        for form in forms
        for place in (form.folder, form.archive)
        for prefix in ("", f"{name}/")
    }
    source = first_existing(name, tuple(places), context)
    form = next(form for form in forms if source.name in {form.folder, form.archive})
    dataset = Cifar(source, form, options.split, names)  # first: what is wrong in a file says more than its checksum
    if options.checksum:
        sums = form.files[options.split].values() if source.is_dir() else [form.archive_md5]
        for file, official in zip(_sources(source, form, options.split), sums, strict=True):
            if official:
                check_md5(file, official)
    return dataset


def _sources(source: Path, form: _Form, split: str) -> list[Path]:
    """The files that are read: the archive, or the extracted files of the split."""
    if not source.is_dir():
        return [source]
    files = [source / name for name in form.files[split]]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise MissingDataError(f"{missing[0]}: does not exist; extract {form.archive} again")
    return files


def _rewrite(source: Path, form: _Form, split: str, classes: int, out: BinaryIO) -> None:
    """Write all pixels of the split, uint8 (N, 3, 32, 32), then all labels, uint8 (N,)."""
    labels = []
    for name, blob in _blobs(source, form, split):
        pixels, batch_labels = (
            _parse_binary(blob, name, form.label_bytes) if form.label_bytes else _parse_pickle(blob, name)
        )
        check_labels(batch_labels, classes, Path(name))
        out.write(np.ascontiguousarray(pixels).data)
        labels.append(batch_labels.astype(np.uint8))
    out.write(np.concatenate(labels).data)


def _blobs(source: Path, form: _Form, split: str) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for file in _sources(source, form, split):
            yield str(file), file.read_bytes()
        return
    try:
        with tarfile.open(source, "r:gz") as archive:
            for name in form.files[split]:
                member = archive.extractfile(f"{form.folder}/{name}")
                if member is None:
                    raise KeyError(f"{form.folder}/{name} is no file")
                yield f"{source}: {name}", member.read()
    except KeyError as error:
        raise HarnessError(f"{source}: {error.args[0]}; fetch it again") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise HarnessError(f"{source}: is truncated or no .tar.gz file ({error}); fetch it again") from error


def _parse_binary(blob: bytes, name: str, label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    row = label_bytes + _PIXELS
    if not blob or len(blob) % row:
        raise HarnessError(f"{name}: is truncated: {len(blob):,} bytes are no multiple of {row}; fetch it again")
    rows = np.frombuffer(blob, np.uint8).reshape(-1, row)
    return rows[:, label_bytes:], rows[:, label_bytes - 1]


def _parse_pickle(blob: bytes, name: str) -> tuple[NDArray[np.uint8], Ints]:
    batch = load_arrays(io.BytesIO(blob), name)
    pairs = batch.items() if isinstance(batch, dict) else ()
    fields = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in pairs}
    pixels = fields.get("data")
    labels = np.asarray(fields.get("fine_labels", fields.get("labels", [])))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
        raise HarnessError(f"{name}: is no CIFAR batch: it must hold data, uint8 (N, {_PIXELS}), and N labels")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1 or not labels.size:
        raise HarnessError(f"{name}: is no CIFAR batch: its labels are {labels.dtype} {labels.shape}")
    return pixels, labels.astype(np.int64)
