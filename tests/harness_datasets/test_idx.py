"""MNIST and Fashion-MNIST: small files in the official format, damaged ones, and the real ones where they are."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harness_datasets import idx
from harness_datasets.idx import IdxOptions, build_fashion_mnist, build_mnist

from harness.datasets import DatasetContext, DatasetSlice
from harness.errors import MissingDataError

SMALL = IdxOptions(checksum=False)
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
Refusal = Callable[..., str]


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.integers(0, 256, (25, 28, 28)), np.arange(25) % 10


@pytest.fixture
def folder(tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for prefix in ("t10k", "train"):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(arrays[0]), mtime=0))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(arrays[1]), mtime=0))
    return folder


def test_reads_what_was_written(root: DatasetContext, folder: Path, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    data = build_mnist(SMALL, root)
    assert (data.shape, data.levels, data.class_names) == ((1, 28, 28), 256, tuple("0123456789"))
    assert data.labels().tolist() == arrays[1].tolist()
    order = np.array([24, 3, 4, 5, 3, 0])
    x = data.images(order)
    assert x.dtype == torch.float32
    np.testing.assert_array_equal((x[:, 0] * 255).round().numpy(), arrays[0][order])
    assert data.images(np.array([], dtype=np.int64)).shape == (0, 1, 28, 28)
    DatasetSlice("mnist", data).load(np.arange(25))


def test_unpacked_once(root: DatasetContext, folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build_mnist(SMALL, root)
    monkeypatch.setattr(idx, "_gunzip", lambda *_: pytest.fail("unpacked again"))
    again = build_mnist(SMALL, root)
    assert torch.equal(again.images(np.arange(25)), before.images(np.arange(25)))
    assert len(list((cache_folder / "unpacked").iterdir())) == 2


def test_splits_are_different_files(root: DatasetContext, folder: Path, refusal: Refusal) -> None:
    (folder / IMAGES).unlink()
    assert build_mnist(IdxOptions(split="train", checksum=False), root).labels().size == 25
    text = refusal(build_mnist, SMALL, root, kind=MissingDataError)
    assert str(folder / IMAGES) in text
    assert "--data-root" in text
    assert "HARNESS_DATA" in text


def test_without_a_data_root(refusal: Refusal) -> None:
    text = refusal(build_fashion_mnist, SMALL, DatasetContext(None), kind=MissingDataError)
    assert "fashion_mnist/t10k-images-idx3-ubyte.gz" in text
    assert "--data-root" in text


def test_checksum_is_that_of_the_official_files(root: DatasetContext, folder: Path, refusal: Refusal) -> None:
    text = refusal(build_mnist, IdxOptions(), root)
    assert str(folder / IMAGES) in text
    assert "9fb629c4189551a2d022fa330f9573f3" in text
    assert "checksum = false" in text


@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize("keep", [0, 1, 5, 15, -1, -9])
def test_truncated_gz(
    root: DatasetContext, folder: Path, cache_folder: Path, name: str, keep: int, refusal: Refusal
) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:keep])
    text = refusal(build_mnist, IdxOptions(), root)
    assert str(folder / name) in text
    assert "fetch it again" in text
    assert not list(cache_folder.glob("unpacked/.*")), "a half-written file was left in the cache"


def test_flipped_bits_are_noticed(root: DatasetContext, folder: Path, refusal: Refusal) -> None:
    damaged = bytearray((folder / IMAGES).read_bytes())
    damaged[2000] ^= 0xFF
    (folder / IMAGES).write_bytes(damaged)
    assert str(folder / IMAGES) in refusal(build_mnist, SMALL, root)


def zipped(data: bytes) -> bytes:
    """Without the time, so that the ids of tests do not change with it."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no gzip at all, sorry", "no gzip file"),
        (zipped(b"GIF89a" + bytes(100)), "starts with 47494638"),
        (zipped(b""), "starts with nothing"),
        (zipped(idx_bytes(np.zeros(25))), "starts with 00000801"),
        (zipped(struct.pack(">BBBB3I", 0, 0, 13, 3, 25, 28, 28)), "starts with 00000d03"),
        (
            zipped(idx_bytes(np.zeros((25, 28, 28)))[:-5]),
            "holds 19,595 bytes of data where its header",
        ),
        (zipped(idx_bytes(np.zeros((25, 28, 28))) + b"x"), "holds 19,601 bytes"),
        (zipped(idx_bytes(np.zeros((0, 28, 28)))), "holds 0 bytes"),
    ],
)
def test_wrong_image_files(root: DatasetContext, folder: Path, content: bytes, text: str, refusal: Refusal) -> None:
    (folder / IMAGES).write_bytes(content)
    message = refusal(build_mnist, SMALL, root)
    assert text in message
    assert str(folder / IMAGES) in message


def test_labels_out_of_range_and_too_few(root: DatasetContext, folder: Path, refusal: Refusal) -> None:
    (folder / LABELS).write_bytes(gzip.compress(idx_bytes(np.array([0, 1, 10] + [0] * 22))))
    assert "sample 2 has label 10, but the 10 classes are 0 to 9" in refusal(build_mnist, SMALL, root)
    (folder / LABELS).write_bytes(gzip.compress(idx_bytes(np.zeros(24))))
    assert "24 labels for the 25 images" in refusal(build_mnist, SMALL, root)


def test_index_out_of_range(root: DatasetContext, folder: Path, refusal: Refusal) -> None:
    data = build_mnist(SMALL, root)
    assert "has samples 0 to 24, not 25" in refusal(data.images, np.array([0, 25]))
    assert "not -1" in refusal(data.images, np.array([-1]))


def test_digest_follows_the_content_not_the_place(
    root: DatasetContext, folder: Path, tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]
) -> None:
    digest = build_mnist(SMALL, root).digest()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    folder.rename(moved / "mnist")
    assert build_mnist(SMALL, DatasetContext(moved)).digest() == digest
    changed = (arrays[1] + 1) % 10
    (moved / "mnist" / LABELS).write_bytes(gzip.compress(idx_bytes(changed)))
    assert build_mnist(SMALL, DatasetContext(moved)).digest() != digest


@pytest.mark.parametrize(("split", "count"), [("train", 60000), ("test", 10000)])
@pytest.mark.parametrize("build", [build_mnist, build_fashion_mnist])
def test_the_real_files(real: DatasetContext, build: Callable[..., idx.Idx], split: str, count: int) -> None:
    data = build(IdxOptions(split=split), real)
    assert data.shape == (1, 28, 28)
    counts = np.bincount(data.labels(), minlength=10)
    assert counts.sum() == count
    if build is build_fashion_mnist:
        assert (counts == count // 10).all()
        mean, names = 0.2860, data.class_names[9]
        assert names == "Ankle boot"
    else:
        mean = 0.1307
    picked = np.random.default_rng(0).choice(count, 2000, replace=False)
    assert data.images(picked).mean().item() == pytest.approx(mean, abs=0.01)


def test_first_real_digits(real: DatasetContext) -> None:
    assert build_mnist(IdxOptions(split="train"), real).labels()[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
