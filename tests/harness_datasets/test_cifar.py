"""CIFAR-10 and CIFAR-100 from small archives and folders in the official forms, and pickles that would run code."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_datasets import cifar, class_names
from harness_datasets.cifar import CifarOptions, build_cifar10, build_cifar100

from harness.datasets import DatasetContext, DatasetSlice
from harness.errors import MissingDataError

Refusal = Callable[..., str]
SMALL = CifarOptions(checksum=False)
ROWS = 4  # images in each file


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (ROWS, 3072), dtype=np.uint8)


def batch(seed: int, classes: int) -> dict[bytes, Any]:
    labels = [(seed * ROWS + i * 7) % classes for i in range(ROWS)]
    if classes == 10:
        return {b"batch_label": b"testing", b"labels": labels, b"data": pixels(seed), b"filenames": [b"a.png"] * ROWS}
    return {b"fine_labels": labels, b"coarse_labels": [0] * ROWS, b"data": pixels(seed), b"filenames": [b"a"] * ROWS}


def binary(content: dict[bytes, Any]) -> bytes:
    rows = []
    for i, image in enumerate(content[b"data"]):
        coarse = bytes([content[b"coarse_labels"][i]]) if b"coarse_labels" in content else b""
        rows.append(coarse + bytes([content.get(b"labels", content.get(b"fine_labels"))[i]]) + image.tobytes())
    return b"".join(rows)


def contents(classes: int, form: str) -> tuple[str, dict[str, bytes]]:
    """Folder name and files of one official form, with the train files numbered from 1 and the test file last."""
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    batches = [batch(seed, classes) for seed in range(len(names))]
    if form == "python":
        folder = "cifar-10-batches-py" if classes == 10 else "cifar-100-python"
        return folder, {n: pickle.dumps(b, protocol=2) for n, b in zip(names, batches, strict=True)}
    folder = "cifar-10-batches-bin" if classes == 10 else "cifar-100-binary"
    return folder, {f"{n}.bin": binary(b) for n, b in zip(names, batches, strict=True)}


def write(place: Path, classes: int, form: str, *, packed: bool, **replace: bytes) -> Path:
    folder, files = contents(classes, form)
    files = {**files, **replace}
    place.mkdir(exist_ok=True)
    if not packed:
        (place / folder).mkdir()
        for name, blob in files.items():
            (place / folder / name).write_bytes(blob)
        return place / folder
    archive = place / f"cifar-{classes}-{form}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, blob in sorted(files.items(), reverse=True):  # the official archive is in no useful order either
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return archive


BUILD = {10: build_cifar10, 100: build_cifar100}


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_official_forms(
    root: DatasetContext, tmp_path: Path, classes: int, form: str, packed: bool, nested: bool
) -> None:
    write(tmp_path / f"cifar{classes}" if nested else tmp_path, classes, form, packed=packed)
    files = 5 if classes == 10 else 1
    for split, seeds in (("train", range(files)), ("test", [files])):
        data = BUILD[classes](CifarOptions(split=split, checksum=False), root)
        assert (data.shape, data.levels, len(data.class_names)) == ((3, 32, 32), 256, classes)
        key = b"labels" if classes == 10 else b"fine_labels"
        assert data.labels().tolist() == [y for seed in seeds for y in batch(seed, classes)[key]]
        expected = np.concatenate([pixels(seed) for seed in seeds]).reshape(-1, 3, 32, 32)
        order = np.random.default_rng(0).permutation(len(expected))
        np.testing.assert_array_equal((data.images(order) * 255).round().numpy(), expected[order])
        DatasetSlice("cifar", data).load(np.arange(len(expected)))


def test_names() -> None:
    assert class_names.CIFAR10[6] == "frog"
    assert len(set(class_names.CIFAR100)) == 100
    assert list(class_names.CIFAR100) == sorted(class_names.CIFAR100)
    assert (class_names.CIFAR100[0], class_names.CIFAR100[49], class_names.CIFAR100[99]) == (
        "apple",
        "mountain",
        "worm",
    )


def test_rewritten_once(root: DatasetContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 10, "python", packed=True)
    first = build_cifar10(SMALL, root)
    monkeypatch.setattr(cifar, "_rewrite", lambda *_: pytest.fail("unpacked again"))
    again = build_cifar10(SMALL, root)
    assert torch.equal(first.images(np.arange(ROWS)), again.images(np.arange(ROWS)))


def test_python_3_pickles(root: DatasetContext, tmp_path: Path) -> None:
    """Re-saved batches: other protocols, text keys, labels as an array."""
    for protocol in (2, 3, 4):
        saved = {"data": pixels(9), "labels": np.arange(ROWS)}
        place = tmp_path / str(protocol)
        write(place, 10, "python", packed=False, test_batch=pickle.dumps(saved, protocol=protocol))
        data = build_cifar10(SMALL, DatasetContext(place))
        assert data.labels().tolist() == list(range(ROWS))
        np.testing.assert_array_equal((data.images(np.arange(ROWS)) * 255).round().numpy().reshape(ROWS, -1), pixels(9))


class Runs:
    """A pickle of this calls `function` when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {marker}",), f"{os.system.__module__}.system"),
        (eval, ("open({marker!r}, 'w')",), "__builtin__.eval"),
        (getattr, ("x", "upper"), "__builtin__.getattr"),
        (np.load, ("{marker}",), "numpy.load"),
        (np.fromfile, ("{marker}",), "numpy"),  # lives next to what is allowed
    ],
)
def test_a_pickle_with_code_in_it(
    root: DatasetContext,
    tmp_path: Path,
    packed: bool,
    function: Callable[..., Any],
    arguments: tuple[str, ...],
    named: str,
    refusal: Refusal,
) -> None:
    marker = tmp_path / "the_code_ran"
    bomb = Runs(function, *(a.format(marker=str(marker)) for a in arguments))
    blob = pickle.dumps({b"data": pixels(0), b"labels": [0] * ROWS, b"more": bomb}, protocol=2)
    source = write(tmp_path, 10, "python", packed=packed, test_batch=blob)
    text = refusal(build_cifar10, CifarOptions(), root)
    assert str(source) in text
    assert "test_batch" in text
    assert f"asks for {named}" in text
    assert not marker.exists()


def test_codecs_other_than_latin1_are_refused(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    import codecs

    blob = pickle.dumps(Runs(codecs.encode, "text", "rot13"), protocol=2)
    write(tmp_path, 10, "python", packed=False, test_batch=blob)
    assert "bytes encoded as" in refusal(build_cifar10, SMALL, root)


GOOD = pickle.dumps(batch(0, 10), protocol=2)


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (b"", "is truncated or no pickle"),
        (GOOD[:200], "is truncated or no pickle"),
        (GOOD[:-2], "is truncated or no pickle"),
        (b"\x80\x02this is none", "is truncated or no pickle"),
        (pickle.dumps([1, 2]), "is no CIFAR batch"),
        (pickle.dumps({b"data": pixels(0)}), "is no CIFAR batch"),
        (pickle.dumps({b"data": pixels(0)[:, :100], b"labels": [0] * ROWS}), "is no CIFAR batch"),
        (pickle.dumps({b"data": pixels(0).astype(float), b"labels": [0] * ROWS}), "is no CIFAR batch"),
        (pickle.dumps({b"data": pixels(0), b"labels": ["cat"] * ROWS}), "is no CIFAR batch: its labels are"),
        (pickle.dumps({b"data": pixels(0), b"labels": [0, 1, 10, 2]}), "sample 2 has label 10, but the 10 classes"),
        (pickle.dumps({b"data": pixels(0), b"labels": [0, -1, 1, 2]}), "sample 1 has label -1"),
    ],
)
def test_wrong_batches(
    root: DatasetContext, tmp_path: Path, cache_folder: Path, blob: bytes, text: str, refusal: Refusal
) -> None:
    folder = write(tmp_path, 10, "python", packed=False, test_batch=blob)
    message = refusal(build_cifar10, SMALL, root)
    assert text in message
    assert str(folder / "test_batch") in message
    assert not list(cache_folder.glob("unpacked/*")), "a half-written file was left in the cache"


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("cut", [0, -1, 3000])
def test_truncated_binary(root: DatasetContext, tmp_path: Path, classes: int, cut: int, refusal: Refusal) -> None:
    name = "test_batch.bin" if classes == 10 else "test.bin"
    blob = contents(classes, "binary")[1][name][:cut]
    folder = write(tmp_path, classes, "binary", packed=False, **{name: blob})
    text = refusal(BUILD[classes], SMALL, root)
    assert f"{folder / name}: is truncated" in text


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1, -9])
def test_truncated_archive(root: DatasetContext, tmp_path: Path, keep: float, refusal: Refusal) -> None:
    archive = write(tmp_path, 10, "python", packed=True)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else int(keep)])
    text = refusal(build_cifar10, CifarOptions(), root)
    assert str(archive) in text
    assert "fetch it again" in text


def test_archive_without_the_batch(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz"):
        pass
    text = refusal(build_cifar10, SMALL, root)
    assert "cifar-10-python.tar.gz" in text
    assert "cifar-10-batches-py/test_batch" in text


@pytest.mark.parametrize("packed", [False, True])
def test_checksums(root: DatasetContext, tmp_path: Path, packed: bool, refusal: Refusal) -> None:
    source = write(tmp_path, 10, "python", packed=packed)
    text = refusal(build_cifar10, CifarOptions(), root)
    official = "c58f30108f718f92721af3b95e74349a" if packed else "40351d587109b95175f43aff81a1287e"
    assert official in text
    assert str(source) in text
    assert "checksum = false" in text


def test_missing(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    text = refusal(build_cifar100, SMALL, root, kind=MissingDataError)
    for part in ("cifar-100-python.tar.gz", "cifar100/cifar-100-binary", str(tmp_path), "--data-root", "HARNESS_DATA"):
        assert part in text
    folder = write(tmp_path, 10, "python", packed=False)
    (folder / "data_batch_3").unlink()
    train = CifarOptions(split="train", checksum=False)
    assert f"{folder / 'data_batch_3'}: does not exist" in refusal(build_cifar10, train, root, kind=MissingDataError)


def test_digest_tells_splits_and_contents_apart(root: DatasetContext, tmp_path: Path) -> None:
    folder = write(tmp_path, 10, "python", packed=False)
    test = build_cifar10(SMALL, root).digest()
    assert build_cifar10(CifarOptions(split="train", checksum=False), root).digest() != test
    assert build_cifar10(SMALL, root).digest() == test
    (folder / "test_batch").write_bytes(pickle.dumps(batch(77, 10), protocol=2))
    assert build_cifar10(SMALL, root).digest() != test
