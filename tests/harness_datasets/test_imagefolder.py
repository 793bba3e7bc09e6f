"""Folders of images: order, modes, resize and crop, damaged files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_datasets.imagefolder import ImageFolderOptions, build
from PIL import Image
from pydantic import ValidationError

from harness.datasets import DatasetContext, DatasetSlice
from harness.errors import MissingDataError

Refusal = Callable[..., str]


def options(**fields: Any) -> ImageFolderOptions:
    return ImageFolderOptions(path="set", **fields)


def ramp(height: int = 8, width: int = 8) -> np.ndarray:
    return (np.arange(height * width) * 255 // (height * width - 1)).astype(np.uint8).reshape(height, width)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with two images each, 8x8, saved in four formats."""
    folder = tmp_path / "set"
    for name in ("dog/b.png", "dog/a.bmp", "cat/deep/c.jpg", "cat/Z.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp()).convert("RGB").save(folder / name)
    return folder


def test_order_classes_and_what_is_left_out(root: DatasetContext, folder: Path) -> None:
    (folder / "README.txt").write_text("no class")
    (folder / "dog" / "notes.txt").write_text("no image")
    (folder / "dog" / ".hidden.png").write_text("no image")
    (folder / ".git").mkdir()
    (folder / "ant").mkdir()
    data = build(options(), root)
    assert data.class_names == ("ant", "cat", "dog")
    assert data._names == ["cat/Z.webp", "cat/deep/c.jpg", "dog/a.bmp", "dog/b.png"]
    assert data.labels().tolist() == [1, 1, 2, 2]
    assert (data.shape, data.levels) == ((3, 8, 8), 256)
    x, _ = DatasetSlice("imagefolder", data).load(np.array([3, 2]))
    assert torch.equal(x[0], x[1])
    np.testing.assert_array_equal((x[0, 1] * 255).round().numpy(), ramp())


def modes() -> dict[str, tuple[str, Image.Image]]:
    grey, colour = Image.fromarray(ramp()), Image.fromarray(np.stack([ramp(), ramp().T, ramp()[::-1]], -1))
    alpha = colour.copy()
    alpha.putalpha(Image.fromarray(ramp()[:, ::-1].copy()))
    wide = Image.fromarray(ramp().astype(np.uint16) * 257)
    return {
        "grey": ("png", grey),
        "colour": ("png", colour),
        "alpha": ("png", alpha),
        "palette": ("png", colour.quantize(64)),
        "sixteen": ("png", wide),
        "sixteen_tiff": ("tiff", wide),
        "bilevel": ("png", grey.point(lambda v: 255 * (v > 99)).convert("1")),
        "cmyk": ("tiff", colour.convert("CMYK")),
        "grey_alpha": ("png", grey.convert("LA")),
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", modes())
def test_modes(root: DatasetContext, tmp_path: Path, mode: str, channels: int) -> None:
    suffix, image = modes()[mode]
    (tmp_path / "set" / "a").mkdir(parents=True)
    image.save(tmp_path / "set" / "a" / f"x.{suffix}")
    x = build(options(channels=channels), root).images(np.array([0]))
    assert x.shape == (1, channels, 8, 8)
    shown = Image.fromarray(ramp()) if mode.startswith("sixteen") else image
    reference = np.asarray(shown.convert("RGB" if channels == 3 else "L"), np.float32).reshape(8, 8, -1)
    np.testing.assert_allclose((x[0] * 255).numpy(), reference.transpose(2, 0, 1), atol=1e-4)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_images_have_no_known_range(
    root: DatasetContext, tmp_path: Path, kind: type[np.generic], refusal: Refusal
) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    Image.fromarray(ramp().astype(kind)).save(tmp_path / "set" / "a" / "x.tiff")
    assert "32-bit pixels of unknown range" in refusal(build, options(), root)


def write_sizes(folder: Path, *sizes: tuple[int, int]) -> None:
    (folder / "a").mkdir(parents=True)
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(ramp(height, width)).save(folder / "a" / f"{i}.png")


def test_resize_of_the_shorter_side_and_crop(root: DatasetContext, tmp_path: Path) -> None:
    write_sizes(tmp_path / "set", (40, 60), (60, 40), (32, 32))
    data = build(options(resize=16, crop=12, channels=1), root)
    x = data.images(np.arange(3))
    assert x.shape == (3, 1, 12, 12)
    expected = Image.fromarray(ramp(40, 60)).resize((24, 16), Image.Resampling.BILINEAR).crop((6, 2, 18, 14))
    np.testing.assert_array_equal((x[0, 0] * 255).round().numpy(), np.asarray(expected))
    expected = Image.fromarray(ramp(60, 40)).resize((16, 24), Image.Resampling.BILINEAR).crop((2, 6, 14, 18))
    np.testing.assert_array_equal((x[1, 0] * 255).round().numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"resize": (20, 30)}, (20, 30)),
        ({"resize": (20, 30), "crop": (10, 12)}, (10, 12)),
        ({"resize": 20, "crop": (20, 12)}, (20, 12)),
        ({"crop": 9}, (9, 9)),
    ],
)
def test_sizes(root: DatasetContext, tmp_path: Path, fields: Any, shape: tuple[int, int]) -> None:
    write_sizes(tmp_path / "set", (40, 60), (60, 40))
    data = build(options(**fields), root)
    assert data.shape == (3, *shape)
    assert data.images(np.arange(2)).shape == (2, 3, *shape)


def test_resize_alone_takes_the_shape_of_the_first(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    write_sizes(tmp_path / "set", (40, 60), (20, 30), (60, 40))
    data = build(options(resize=10), root)
    assert data.shape == (3, 10, 15)
    assert data.images(np.array([0, 1])).shape == (2, 3, 10, 15)
    text = refusal(data.images, np.array([2]))
    assert f"{tmp_path / 'set' / 'a' / '2.png'}: is 15x10, but a/0.png is 10x15; set crop" in text


def test_crop_larger_than_the_image(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    write_sizes(tmp_path / "set", (40, 60))
    text = refusal(build(options(crop=50), root).images, np.array([0]))
    assert "0.png: is 40x60 after resize, smaller than the crop 50x50; set resize" in text


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("keep", [0, 10, 0.6])
def test_damaged_images(root: DatasetContext, folder: Path, suffix: str, keep: float, refusal: Refusal) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = folder / "dog" / f"z.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else int(keep)])
    data = build(options(resize=(8, 8)), root)
    assert data.images(np.arange(4)).shape == (4, 3, 8, 8)
    text = refusal(data.images, np.array([0, 4]))
    assert str(path) in text
    assert "remove or replace it" in text


def test_not_an_image(root: DatasetContext, folder: Path, refusal: Refusal) -> None:
    (folder / "cat" / "A.png").write_text("hello")
    assert f"{folder / 'cat' / 'A.png'}: is not an image that Pillow can read" in refusal(build, options(), root)


def test_vanished_image(root: DatasetContext, folder: Path, refusal: Refusal) -> None:
    data = build(options(), root)
    (folder / "dog" / "b.png").unlink()
    assert str(folder / "dog" / "b.png") in refusal(data.images, np.array([3]))


def test_empty_and_missing_folders(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    assert str(tmp_path / "set") in refusal(build, options(), root, kind=MissingDataError)
    (tmp_path / "set").write_text("a file")
    assert "is no folder" in refusal(build, options(), root)
    (tmp_path / "set").unlink()
    (tmp_path / "set").mkdir()
    assert "it has no subfolders" in refusal(build, options(), root)
    (tmp_path / "set" / "cat").mkdir()
    assert "its subfolders (cat, ...) hold no images" in refusal(build, options(), root)


def test_digest(root: DatasetContext, folder: Path) -> None:
    digests = [build(options(**f), root).digest() for f in ({}, {"crop": 4}, {"resize": 4}, {"channels": 1})]
    assert len(set(digests)) == 4
    assert build(options(), root).digest() == digests[0]
    (folder / "dog" / "b.png").rename(folder / "cat" / "b.png")
    moved = build(options(), root).digest()
    assert moved not in digests
    (folder / "cat" / "b.png").write_bytes((folder / "dog" / "a.bmp").read_bytes())
    assert build(options(), root).digest() not in [*digests, moved]


def test_digest_is_remembered(root: DatasetContext, folder: Path) -> None:
    digest = build(options(), root).digest()
    path = folder / "dog" / "b.png"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))  # unread, because size and time say that nothing changed
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert build(options(), root).digest() == digest
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert build(options(), root).digest() != digest


@pytest.mark.parametrize("fields", [{"resize": 0}, {"crop": (3, 0)}, {"crop": (1, 2, 3)}, {"channels": 2}, {"size": 3}])
def test_wrong_options(fields: Any) -> None:
    with pytest.raises(ValidationError):
        options(**fields)


def numbered(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), int(name), np.uint8)).save(folder / name / "a.png")
    return folder


def test_folders_that_are_numbers_of_classes(root: DatasetContext, tmp_path: Path) -> None:
    """ImageNet-V2: sorted as text, "10" would be class 2."""
    numbered(tmp_path / "set", "0", "2", "10")
    data = build(options(folders="indices", channels=1), root)
    assert data.labels().tolist() == [0, 2, 10]
    assert data.class_names == tuple(map(str, range(11)))
    x = data.images(np.arange(3))
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [0, 2, 10]
    as_names = build(options(folders="names", channels=1), root)
    assert (as_names.labels().tolist(), as_names.class_names) == ([0, 1, 2], ("0", "10", "2"))
    assert data.digest() != as_names.digest()


def test_numbers_whose_order_is_unclear_are_asked_about(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    text = refusal(build, options(), DatasetContext(numbered(tmp_path / "a" / "set", "0", "2", "10").parent))
    assert "are numbers (0, 10, 2, ...)" in text
    assert 'set folders = "indices"' in text
    clear = numbered(tmp_path / "b" / "set", "3", "4", "7")  # one order, whatever they are
    assert build(options(), DatasetContext(clear.parent)).labels().tolist() == [0, 1, 2]
    (clear / "cat").mkdir()
    assert "subfolder 'cat' is no number" in refusal(build, options(folders="indices"), DatasetContext(clear.parent))
    twice = numbered(tmp_path / "c" / "set", "3", "03")
    assert "the same number" in refusal(build, options(folders="indices"), DatasetContext(twice.parent))
