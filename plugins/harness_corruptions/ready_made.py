"""Corrupted test sets that others made and published as files: CIFAR-10-C, ImageNet-C, MNIST-C and their like."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from harness.datasets import DatasetFacts, Ints
from harness.errors import HarnessError, MissingDataError, did_you_mean
from harness.options import Options, option
from harness.threats import Batch, Budget, Columns, ThreatContext
from harness_corruptions.catalogue import GROUPS, SEVERITIES
from harness_corruptions.rows import joined, rows_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView

Pixels = NDArray[np.uint8]
_IMAGES = {".jpeg", ".jpg", ".png"}
_SPREAD = 64
_CLEAN = "identity"
"""The folder of MNIST-C that holds the clean images, no corruption."""
_MNIST_C = (
    *("shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate", "brightness"),
    *("translate", "stripe", "fog", "spatter", "dotted_line", "zigzag", "canny_edges"),
)
"""Its 15 corruptions (Mu & Gilmer 2019, section 3)."""


class ReadyMadeOptions(Options):
    """Options of `ready-made-corruptions`."""

    folder: str = option(
        help="the set's folder: CIFAR-10-C (CORRUPTION.npy, labels.npy), MNIST-C (CORRUPTION/test_images.npy) or"
        " ImageNet-C (CORRUPTION/SEVERITY/CLASS/*.JPEG); relative to the suite file"
    )
    corruptions: tuple[str, ...] | None = option(None, help="which of its corruptions; by default all that are there")
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] | None = option(
        None, help="which severities, 1 to 5; by default all (MNIST-C has one, called 1)"
    )

    @field_validator("corruptions", "severities")
    @classmethod
    def _once_each(cls, given: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if given is not None and not given:
            raise ValueError("the list is empty: leave the option out for all of them")
        twice = next((one for one in given or () if (given or ()).count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is listed twice")
        return given


@dataclass(frozen=True)
class ReadyMadeSet:
    """One corruption at one severity.

    Attributes:
        where: the file or folder, for errors.
        labels: int64 (N,), of image 0, 1, ....
        read: gives the images of an index, uint8 (B, H, W, C) or (B, H, W).
    """

    corruption: str
    severity: int
    where: Path
    labels: Ints
    read: Callable[[Ints], Pixels]


@dataclass(frozen=True)
class Found:
    """What a folder holds: the sets asked for, and what the digest of the rows must know of (see `BuiltThreat`)."""

    table: str
    sets: tuple[ReadyMadeSet, ...]
    files: tuple[Path, ...] = ()
    inputs: tuple[str, ...] = ()


class ReadyMadeCorruptions:
    """A model on a corrupted test set read from files, and on the clean images of the suite's data set.

    Image i of a file stands for sample i of the data set: the labels are compared, so that a set made of other images
    is refused rather than scored.

    Columns, for every sample one row with corruption "none" and severity 0, its clean image, and one for every set:
        those of `harness_corruptions.rows.rows_of`.
        table: which benchmark's layout the files have: "cifar10-c", "imagenet-c" or "mnist-c".
        left_out: which of the 15 standard corruptions, or of the 15 of MNIST-C, the folder does not hold; "" where
            none, or where the suite lists corruptions. A mean over corruptions is mCE only where this is empty.
    """

    budget: Budget | None = None

    def __init__(self, found: Found, left_out: str, levels: int) -> None:
        self.sets = found.sets
        self.levels = levels
        self.table = found.table
        self.left_out = left_out
        self.files = found.files
        self.inputs = list(found.inputs)

    def run(self, model: ModelView, batch: Batch) -> Columns:
        ids = batch.ids.cpu().numpy()
        parts = [rows_of(model, batch, batch.x, "none", 0, self.levels)]
        labels = batch.y.cpu().numpy()
        for one in self.sets:
            _check_labels(one, ids, labels)
            images = _images(one, ids, batch.x)
            parts.append(rows_of(model, batch, images, one.corruption, one.severity, self.levels))
        return joined(parts, table=self.table, left_out=self.left_out)


def build(options: ReadyMadeOptions, context: ThreatContext) -> ReadyMadeCorruptions:
    """The threat.

    Raises:
        MissingDataError: the folder, or a file of it that is needed, is not there.
        HarnessError: the folder is laid out in none of the ways known, a file is damaged, or a corruption or severity
            is asked for that it does not hold.
    """
    folder = context.folder / Path(options.folder).expanduser()
    if not folder.is_dir():
        raise MissingDataError(f"{folder} does not exist; the option folder names that of the corrupted set")
    found = _found(folder, options, context.data)
    whole: tuple[str, ...] = _MNIST_C if found.table == "mnist-c" else tuple(GROUPS)
    held = {one.corruption for one in found.sets}
    names = ", ".join(name for name in whole if name not in held) if options.corruptions is None else ""
    return ReadyMadeCorruptions(found, f"not in {folder.name}: {names}" if names else "", context.data.levels)


def _found(folder: Path, options: ReadyMadeOptions, data: DatasetFacts) -> Found:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if any((path / "test_images.npy").exists() for path in inside):
        return _mnist_c(folder, options)
    if any((path / str(severity)).is_dir() for path in inside for severity in SEVERITIES):
        return _class_folders(folder, options, data)
    if any(path.suffix == ".npy" for path in inside):
        return _cifar_c(folder, options)
    raise HarnessError(
        f"{folder}: holds neither CORRUPTION.npy with labels.npy (CIFAR-10-C), nor CORRUPTION/test_images.npy"
        " (MNIST-C), nor CORRUPTION/SEVERITY/CLASS folders of images (ImageNet-C)"
    )


def _cifar_c(folder: Path, options: ReadyMadeOptions) -> Found:
    """All severities of a corruption in one array, one after the other, with one label for each image."""
    every = _array(folder / "labels.npy", (1,))
    there = [path.stem for path in sorted(folder.glob("*.npy")) if path.stem != "labels"]
    paths = {name: folder / f"{name}.npy" for name in _chosen(folder, options, there, "{}.npy")}
    sets = []
    for name, path in paths.items():
        images = _array(path, (3, 4))
        if len(images) != len(every) or len(images) % len(SEVERITIES):
            raise HarnessError(
                f"{path}: has {len(images)} images, labels.npy has {len(every)} labels; both must have as many, and as"
                " many of each of the five severities"
            )
        n = len(images) // len(SEVERITIES)
        for severity in options.severities or SEVERITIES:
            part = slice((severity - 1) * n, severity * n)
            sets.append(ReadyMadeSet(name, severity, path, every[part].astype(np.int64), images[part].__getitem__))
    return Found("cifar10-c", tuple(sets), (folder / "labels.npy", *paths.values()))


def _mnist_c(folder: Path, options: ReadyMadeOptions) -> Found:
    """A folder for each corruption, all of one severity; beside them one of the clean images."""
    if options.severities not in (None, (1,)):
        raise HarnessError(f"{folder}: has one severity, called 1; leave out the option severities")
    there = [path.parent.name for path in sorted(folder.glob("*/test_images.npy"))]
    if _CLEAN in (options.corruptions or ()):
        raise HarnessError(
            f"{folder / _CLEAN}: holds the clean images, which the rows hold anyway, as corruption 'none'; leave it out"
        )
    there = [name for name in there if name != _CLEAN]
    sets, files = [], []
    for name in _chosen(folder, options, there, "{}/test_images.npy"):
        path = folder / name / "test_images.npy"
        images, labels = _array(path, (3, 4)), _array(path.with_name("test_labels.npy"), (1,))
        if len(images) != len(labels):
            raise HarnessError(f"{path}: has {len(images)} images, test_labels.npy has {len(labels)} labels")
        sets.append(ReadyMadeSet(name, 1, path, labels.astype(np.int64), images.__getitem__))
        files += [path, path.with_name("test_labels.npy")]
    return Found("mnist-c", tuple(sets), tuple(files))


def _class_folders(folder: Path, options: ReadyMadeOptions, data: DatasetFacts) -> Found:
    """Files of images; image i is the i-th in the order of class folders and names, as for dataset `imagefolder`."""
    there = [path.name for path in sorted(folder.iterdir()) if any((path / str(s)).is_dir() for s in SEVERITIES)]
    sets, inputs = [], []
    for name in _chosen(folder, options, there, "{}"):
        severities = options.severities or tuple(s for s in SEVERITIES if (folder / name / str(s)).is_dir())
        for severity in severities:
            root = folder / name / str(severity)
            if not root.is_dir():
                raise MissingDataError(f"{root} does not exist; severity {severity} of {name} is asked for")
            paths, labels = _listed(root, data)
            sets.append(ReadyMadeSet(name, severity, root, labels, _Decoder(paths, data.shape)))
            inputs.append(_fingerprint(root, paths))
    return Found("imagenet-c", tuple(sets), (), tuple(inputs))


def _chosen(folder: Path, options: ReadyMadeOptions, there: list[str], file: str) -> list[str]:
    """The corruptions asked for, all that are there by default; each is in `file`, a format of its name."""
    if not there:
        raise MissingDataError(f"{folder / file.format('CORRUPTION')} does not exist for any corruption")
    for name in options.corruptions or ():
        if name not in there:
            raise MissingDataError(
                f"{folder / file.format(name)} does not exist; the set holds {', '.join(there)}"
                f"{did_you_mean(name, there)}"
            )
    return list(options.corruptions or there)


def _array(path: Path, dimensions: tuple[int, ...]) -> NDArray[Any]:
    """An array of whole numbers, mapped into memory; images (3 or 4 dimensions) must have 8 bits."""
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; the set is not complete without it")
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise HarnessError(f"{path}: is truncated or no .npy file ({error}); fetch it again") from error
    wanted = "uint8 images (N, H, W, C)" if 4 in dimensions else "whole numbers (N,)"
    if found.ndim not in dimensions or not (found.dtype == np.uint8 or (1 in dimensions and found.dtype.kind in "iu")):
        raise HarnessError(f"{path}: holds {found.dtype} {found.shape}, not {wanted}")
    return found


def _listed(root: Path, data: DatasetFacts) -> tuple[list[Path], Ints]:
    """The images below a folder of class folders, with the labels that the data set gives to these classes.

    A folder with the name of a class of the data set is that class; where there is one without, the folders are the
    classes in the order of their names.
    """
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    by_name = set(classes) <= set(data.class_names)
    if by_name and all(name.isdigit() for name in data.class_names):  # as `imagefolder` orders numbers
        classes.sort(key=data.class_names.index)
    paths, labels = [], []
    for place, name in enumerate(classes):
        found = sorted(path for path in (root / name).iterdir() if path.suffix.lower() in _IMAGES)
        paths += found
        labels += [data.class_names.index(name) if by_name else place] * len(found)
    if not paths:
        raise MissingDataError(f"{root}: holds no images in class folders")
    return paths, np.array(labels, dtype=np.int64)


def _fingerprint(root: Path, paths: list[Path]) -> str:
    """Digest of every image's name, size and time of change, and of the bytes of up to 64, spread evenly.

    Not of all bytes: a whole ImageNet-C holds 3.75 million files.
    """
    facts = ((path.relative_to(root).as_posix(), path.stat()) for path in paths)
    state = hashlib.sha256("\n".join(f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in facts).encode())
    for place in np.unique(np.linspace(0, len(paths) - 1, _SPREAD).astype(int)):
        state.update(paths[place].read_bytes())
    return state.hexdigest()


@dataclass(frozen=True)
class _Decoder:
    """Reads image files, each of the size (C, H, W)."""

    paths: list[Path]
    shape: tuple[int, int, int]

    def __call__(self, index: Ints) -> Pixels:
        return np.stack([self._decoded(self.paths[i]) for i in index])

    def _decoded(self, path: Path) -> Pixels:
        from PIL import Image

        channels, height, width = self.shape
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
        except FileNotFoundError as error:
            raise MissingDataError(f"{path} does not exist any more") from error
        except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, ... on damaged files
            raise HarnessError(f"{path}: damaged image ({' '.join(str(error).split())}); fetch it again") from error
        if pixels.shape[:2] != (height, width):
            raise HarnessError(
                f"{path}: is {pixels.shape[0]}x{pixels.shape[1]}, the data set's images are {height}x{width}; give it"
                " the set's size (ImageNet-C: resize = 256, crop = 224)"
            )
        return pixels


def _images(one: ReadyMadeSet, ids: Ints, clean: Tensor) -> Tensor:
    """The images of these ids, float32 like the clean ones (B, C, H, W)."""
    import torch

    pixels = np.asarray(one.read(ids))
    pixels = pixels[..., np.newaxis] if pixels.ndim == 3 else pixels
    _, channels, height, width = clean.shape
    if pixels.shape[1:] != (height, width, channels):
        raise HarnessError(
            f"{one.where}: holds images of (H, W, C) = {pixels.shape[1:]}, the data set's are"
            f" {(height, width, channels)}: it is not the same test set"
        )
    return torch.from_numpy(pixels).to(clean.device).permute(0, 3, 1, 2).to(clean.dtype).div(255).contiguous()


def _check_labels(one: ReadyMadeSet, ids: Ints, y: Ints) -> None:
    if ids.max() >= len(one.labels):
        raise HarnessError(
            f"{one.where}: has {len(one.labels)} images, the data set a sample {ids.max()}: it is not the same test set"
        )
    wrong = np.flatnonzero(one.labels[ids] != y)
    if wrong.size:
        first = ids[wrong[0]]
        raise HarnessError(
            f"{one.where}: image {first} has label {one.labels[first]}, the data set's sample {first} has"
            f" {y[wrong[0]]}: it is not the same test set, or not in the same order ({wrong.size} of {len(ids)} differ)"
        )
