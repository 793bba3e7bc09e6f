"""A folder of images with one subfolder per class, as ImageNet and its shifted sets come."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from harness.datasets import DatasetContext, Ints
from harness.errors import HarnessError
from harness.options import Options, option
from harness_datasets import cache
from harness_datasets.decoding import open_image, pixels
from harness_datasets.location import resolve
from harness_datasets.rows import checked, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

_Side = Annotated[int, Field(ge=1)]
_Size = _Side | tuple[_Side, _Side]


class ImageFolderOptions(Options):
    path: str = option(help="the folder with one subfolder per class; a relative path starts at the data root")
    folders: Literal["names", "indices"] | None = option(
        None,
        help='what the subfolders are called: "names": classes are in the order of the names; "indices": each is the'
        " number of its class, from 0, as in ImageNet-V2",
    )
    resize: _Size | None = option(
        None, help="shorter side, or [height, width] exactly; bilinear with antialiasing", unit="pixels"
    )
    crop: _Size | None = option(None, help="side or [height, width] of the centre to keep, after resize", unit="pixels")
    channels: Literal[1, 3] = option(3, help="3: colour, 1: grey (every image is converted)")


class ImageFolder:
    """Images of any format Pillow reads, decoded when asked for.

    Classes are the subfolders in the order of their names (by code point, whatever the locale), or those that their
    names number; an image's id is its place in the order of classes and relative paths. Hidden files and those without
    an image's suffix are left out. Resize and crop round as torchvision's do: the usual ImageNet evaluation is
    ``resize = 256, crop = 224``.
    """

    levels = 256

    def __init__(self, folder: Path, options: ImageFolderOptions) -> None:
        self._folder, self._options = folder, options
        self.class_names, self._names, self._labels = _list(folder, options.folders)
        height, width = self._size()
        self.shape = (options.channels, height, width)

    def labels(self) -> Ints:
        return self._labels

    def images(self, index: Ints) -> Tensor:
        return to_tensor(self._read, index, self.shape, self.levels)

    def digest(self) -> str:
        """Over every file's bytes and relative path, and the options; remembered until a size or time changes."""
        stats = [(self._folder / name).stat() for name in self._names]
        listing = "\n".join(
            f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in zip(self._names, stats, strict=True)
        )
        known = {"path": str(self._folder.absolute()), "listing": hashlib.sha256(listing.encode()).hexdigest()}
        content = cache.remembered(known, lambda: {"sha256": _content(self._folder, self._names)})
        options = self._options.model_dump(mode="json", exclude={"path", "folders"})  # class names tell that
        facts = {"content": content["sha256"], "classes": self.class_names, "options": options}
        return cache.combined_digest({"dataset": "imagefolder", **facts})

    def _read(self, index: Ints) -> NDArray[np.uint8]:
        _, height, width = self.shape
        index = checked(index, len(self._names), self._folder)
        images = [self._decode(sample) for sample in index.tolist()]
        for sample, image in zip(index.tolist(), images, strict=True):
            if image.shape[:2] != (height, width):
                raise HarnessError(
                    f"{self._folder / self._names[sample]}: is {image.shape[0]}x{image.shape[1]}, but"
                    f" {self._names[0]} is {height}x{width}; set crop, or resize = [height, width]"
                )
        return np.stack(images)

    def _size(self) -> tuple[int, int]:
        """(H, W) of every image: what the options say, else the size of the first."""
        crop, resize = self._options.crop, self._options.resize
        if crop is not None:
            return crop if isinstance(crop, tuple) else (crop, crop)
        if isinstance(resize, tuple):
            return resize
        height, width, _ = self._decode(0).shape
        return height, width

    def _decode(self, sample: int) -> NDArray[np.uint8]:
        path = self._folder / self._names[sample]
        image = open_image(path, str(path), self._options.channels)
        if self._options.resize is not None:
            image = _resize(image, self._options.resize)
        if self._options.crop is not None:
            image = _crop(image, self._options.crop, path)
        return pixels(image)


def build(options: ImageFolderOptions, context: DatasetContext) -> ImageFolder:
    """The factory of `imagefolder`.

    Raises:
        MissingDataError: no such folder.
        HarnessError: no class folders or images in it, or a damaged first image.
    """
    folder = resolve("imagefolder", options.path, context)
    if not folder.is_dir():
        raise HarnessError(f"{folder}: is no folder; the option path names a folder with one subfolder per class")
    return ImageFolder(folder, options)


def _list(folder: Path, called: str | None) -> tuple[tuple[str, ...], list[str], Ints]:
    """Class names, relative paths (posix) of all images, and their labels."""
    Image.init()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    classes = _classes(folder, found, called)
    names: list[str] = []
    labels: list[int] = []
    for name, label in classes.items():
        images = sorted(_images_under(folder / name, suffixes))
        names += [f"{name}/{path}" for path in images]
        labels += [label] * len(images)
    if not names:
        where = f"its subfolders ({', '.join(found[:3])}, ...) hold no images" if found else "it has no subfolders"
        raise HarnessError(f"{folder}: {where}; it must have one subfolder of images per class")
    called_so = {label: name for name, label in classes.items()}
    return tuple(called_so.get(label, str(label)) for label in range(max(called_so) + 1)), names, np.array(labels)


def _classes(folder: Path, names: list[str], called: str | None) -> dict[str, int]:
    """The label of each subfolder, ascending.

    Raises:
        HarnessError: the names are not what the option says; or they are numbers, nobody says whether of classes, and
            the order of names is another one.
    """
    in_order = {name: place for place, name in enumerate(names)}
    if called == "names" or (called is None and not all(_is_number(name) for name in names)):
        return in_order
    wrong = [name for name in names if not _is_number(name)]
    if wrong:
        raise HarnessError(
            f"{folder}: subfolder '{wrong[0]}' is no number, as folders = \"indices\" says; leave it out"
        )
    numbered = {name: int(name) for name in sorted(names, key=int)}
    if called is None:
        if list(numbered) == names:
            return in_order
        raise HarnessError(
            f"{folder}: its subfolders are numbers ({', '.join(names[:3])}, ...), whose order as text is another: set"
            ' folders = "indices" where they are the numbers of the classes, else folders = "names"'
        )
    if len(set(numbered.values())) < len(names):
        raise HarnessError(f"{folder}: two subfolders have the same number; each must be the index of its class")
    return numbered


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _images_under(folder: Path, suffixes: set[str]) -> list[str]:
    out = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(parent).relative_to(folder).as_posix()
        prefix = "" if base == "." else f"{base}/"
        out += [
            prefix + name
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes  # noqa: PTH122
        ]
    return out


def _resize(image: Image.Image, size: _Size) -> Image.Image:
    if isinstance(size, tuple):
        height, width = size
    else:
        short, long = sorted(image.size)
        other = int(size * long / short)
        width, height = (size, other) if image.width <= image.height else (other, size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _crop(image: Image.Image, size: _Size, path: Path) -> Image.Image:
    height, width = size if isinstance(size, tuple) else (size, size)
    if image.width < width or image.height < height:
        raise HarnessError(
            f"{path}: is {image.height}x{image.width} after resize, smaller than the crop {height}x{width}; set resize"
        )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _content(folder: Path, names: list[str]) -> str:
    state = hashlib.sha256()
    for name in names:
        state.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return state.hexdigest()
