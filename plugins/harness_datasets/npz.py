"""NumPy .npz files: arrays `x` and `y`, or encoded images `jpeg` with `offsets`, and `y`.

Members that were stored (np.savez) are read by offset straight from the zip; compressed ones (np.savez_compressed) are
unpacked once into the cache. Either way memory does not grow with the number of samples, beyond the labels.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from harness.datasets import Dataset, DatasetContext, Ints
from harness.errors import HarnessError, did_you_mean
from harness.options import Options, option
from harness_datasets import cache
from harness_datasets.location import resolve
from harness_datasets.rows import RowFile, check_labels, checked, read_spans, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError, struct.error)


class NpzOptions(Options):
    path: str = option(help="the .npz file; a relative path starts at the data root")
    class_names: tuple[str, ...] | str | None = option(
        None, help="names of the classes: a list, or a file (JSON list, or one name a line); default: 0, 1, ..."
    )
    levels: int = option(256, help="number of grey levels; integer pixels run from 0 to levels - 1", ge=2, le=256)


@dataclass(frozen=True)
class _Member:
    """One array of the file, not read yet."""

    info: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    header_bytes: int


class NpzArrays:
    """Images in an array `x`: uint8 (N, H, W) or (N, H, W, C), or floats of the same shapes in [0, 1]."""

    def __init__(self, path: Path, options: NpzOptions, context: DatasetContext) -> None:
        members = _members(path)
        x = members["x"]
        if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
            raise HarnessError(f"{path}: x has type {x.dtype}; save it as uint8, or as floats in [0, 1]")
        if len(x.shape) not in (3, 4) or (len(x.shape) == 4 and not 1 <= x.shape[3] <= 4) or 0 in x.shape:
            raise HarnessError(
                f"{path}: x has shape {x.shape}; it must be (N, H, W) or (N, H, W, C) with C from 1 to 4"
            )
        self.class_names, self._labels = _labels(path, members["y"], x.shape[0], options, context)
        self.levels = options.levels
        self.shape = (x.shape[3] if len(x.shape) == 4 else 1, x.shape[1], x.shape[2])
        self._rows = _row_file(path, x)
        self._path = path

    def labels(self) -> Ints:
        return self._labels

    def images(self, index: Ints) -> Tensor:
        return to_tensor(self._read, index, self.shape, self.levels)

    def digest(self) -> str:
        return _digest(self._path, self)

    def _read(self, index: Ints) -> NDArray[Any]:
        pixels = self._rows.read(index)
        top = 1 if np.issubdtype(pixels.dtype, np.floating) else self.levels - 1
        if not (pixels.min() >= 0 and pixels.max() <= top):
            inside = ((pixels >= 0) & (pixels <= top)).all(axis=tuple(range(1, pixels.ndim)))
            mend = "save x as uint8 or divide it by its range" if top == 1 else f"the option levels is {self.levels}"
            raise HarnessError(
                f"{self._path}: sample {index[~inside][0]} has pixels outside [0, {top}] (or NaN); {mend}"
            )
        return pixels


class NpzEncoded:
    """Images as encoded bytes: image i is ``jpeg[offsets[i]:offsets[i + 1]]``, in any format Pillow reads.

    All have the size of the first; they are grey if the first is, and colour (RGB) otherwise.
    """

    levels = 256

    def __init__(self, path: Path, options: NpzOptions, context: DatasetContext) -> None:
        if options.levels != self.levels:
            raise HarnessError(f"{path}: holds encoded images, whose grey levels are 256: drop the option levels")
        members = _members(path)
        jpeg = members["jpeg"]
        if jpeg.dtype != np.uint8 or len(jpeg.shape) != 1:
            raise HarnessError(f"{path}: jpeg is {jpeg.dtype} {jpeg.shape}; it must be uint8 bytes in one dimension")
        offsets = _read_array(path, members["offsets"])
        if not np.issubdtype(offsets.dtype, np.integer) or offsets.ndim != 1 or offsets.size < 2:
            raise HarnessError(f"{path}: offsets is {offsets.dtype} {offsets.shape}; it must be integers (N + 1,)")
        self._offsets = offsets.astype(np.int64)
        steps = np.diff(self._offsets)
        if self._offsets[0] < 0 or steps.min() < 0 or self._offsets[-1] > jpeg.shape[0]:
            raise HarnessError(f"{path}: offsets must rise from 0 to at most {jpeg.shape[0]}, the length of jpeg")
        self.class_names, self._labels = _labels(path, members["y"], self._offsets.size - 1, options, context)
        self._bytes = _row_file(path, jpeg)
        self._path = path
        self._channels: int | None = None
        self._channels, height, width = _chw(self._decode(0))
        self.shape = (self._channels, height, width)

    def labels(self) -> Ints:
        return self._labels

    def images(self, index: Ints) -> Tensor:
        return to_tensor(self._read, index, self.shape, self.levels)

    def digest(self) -> str:
        return _digest(self._path, self)

    def _read(self, index: Ints) -> NDArray[np.uint8]:
        index = checked(index, self._labels.size, self._path)
        images = [self._decode(sample) for sample in index.tolist()]
        for sample, image in zip(index.tolist(), images, strict=True):
            if _chw(image) != self.shape:
                raise HarnessError(f"{self._path}: image {sample} is {_chw(image)}, the first is {self.shape}")
        return np.stack(images)

    def _decode(self, sample: int) -> NDArray[np.uint8]:
        from harness_datasets.decoding import open_image, pixels

        start, end = int(self._offsets[sample]), int(self._offsets[sample + 1])
        (data,) = read_spans(self._bytes.path, self._path, [(self._bytes.offset + start, end - start)])
        return pixels(open_image(io.BytesIO(data), f"{self._path}: image {sample}", self._channels))


def build(options: NpzOptions, context: DatasetContext) -> Dataset:
    """The factory of `npz`.

    Raises:
        MissingDataError: no such file.
        HarnessError: not an npz file, damaged, with objects (pickles) in it, or arrays of the wrong kind.
    """
    path = resolve("npz", options.path, context)
    return NpzEncoded(path, options, context) if "jpeg" in _members(path) else NpzArrays(path, options, context)


def _members(path: Path) -> dict[str, _Member]:
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as file:
                        dtype, shape, fortran = _header(file)
                        out[info.filename.removesuffix(".npy")] = _Member(info, dtype, shape, file.tell())
                    if dtype.hasobject:
                        raise HarnessError(
                            f"{path}: {info.filename} holds Python objects (a pickle), which could run code when read;"
                            " save plain arrays"
                        )
                    if fortran and len(shape) > 1:
                        raise HarnessError(
                            f"{path}: {info.filename} is in Fortran order; save np.ascontiguousarray of it"
                        )
    except _BROKEN as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror or error}") from error
    wanted = ("jpeg", "offsets", "y") if "jpeg" in out else ("x", "y")
    for name in wanted:
        if name not in out:
            raise HarnessError(f"{path}: has no array '{name}', only {sorted(out)}{did_you_mean(name, out)}")
    return out


def _header(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[arg-type]
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)  # type: ignore[arg-type]
    else:
        raise ValueError(f"npy format version {version} is not known")
    return dtype, shape, fortran


def _row_file(path: Path, member: _Member) -> RowFile:
    """The member's rows along its first axis, in the zip itself or in an unpacked copy of the member."""
    data_bytes = member.info.file_size - member.header_bytes
    count, shape = member.shape[0], member.shape[1:]
    if data_bytes != int(np.prod(member.shape, dtype=np.int64)) * member.dtype.itemsize:
        raise HarnessError(f"{path}: {member.info.filename} is damaged: its size does not fit its shape {member.shape}")
    if member.info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(member.info.header_offset + 26)
            name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))  # of the local header, not the directory's
        start = member.info.header_offset + 30 + name_bytes + extra_bytes
        return RowFile(path, start + member.header_bytes, count, member.dtype, shape, path)
    key = ("npz member", cache.fingerprint(path).sha256, member.info.filename)
    copy = cache.unpacked(path, key, partial(_unpack, path, member.info.filename))
    return RowFile(copy, member.header_bytes, count, member.dtype, shape, path)


def _unpack(path: Path, name: str, out: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            shutil.copyfileobj(file, out, cache.CHUNK)
    except _BROKEN as error:
        raise _damaged(path, error) from error


def _read_array(path: Path, member: _Member) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member.info) as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)  # type: ignore[arg-type]
            return array
    except _BROKEN as error:
        raise _damaged(path, error) from error


def _labels(
    path: Path, member: _Member, count: int, options: NpzOptions, context: DatasetContext
) -> tuple[tuple[str, ...], Ints]:
    if not np.issubdtype(member.dtype, np.integer) or member.shape != (count,):
        raise HarnessError(f"{path}: y is {member.dtype} {member.shape}; it must be {count} integers, one per image")
    labels = _read_array(path, member)
    names = _class_names(options.class_names, context)
    if names is None:
        names = tuple(str(label) for label in range(int(labels.max()) + 1))
    return names, check_labels(labels, len(names), path)


def _class_names(given: tuple[str, ...] | str | None, context: DatasetContext) -> tuple[str, ...] | None:
    if given is None or isinstance(given, tuple):
        return given
    path = resolve("npz", given, context)
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if path.suffix == ".json" else text.split("\n")
    except (OSError, ValueError) as error:
        raise HarnessError(f"{path}: cannot be read as class names: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise HarnessError(f"{path}: class names must be a JSON list of strings")
    kept = tuple(name.strip() for name in names if name.strip())
    if not kept:
        raise HarnessError(f"{path}: holds no class names")
    return kept


def _chw(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    height, width, channels = image.shape
    return channels, height, width


def _digest(path: Path, dataset: NpzArrays | NpzEncoded) -> str:
    facts = {"file": cache.fingerprint(path).sha256, "classes": dataset.class_names, "levels": dataset.levels}
    return cache.combined_digest({"dataset": "npz", **facts})


def _damaged(path: Path, error: BaseException) -> HarnessError:
    text = " ".join(str(error).split()) or type(error).__name__
    return HarnessError(f"{path}: is truncated or no .npz file ({text}); fetch or save it again")
