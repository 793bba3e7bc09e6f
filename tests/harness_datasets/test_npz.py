"""The npz loader: stored and compressed members, encoded images, and every way such a file can be wrong."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_datasets import npz
from harness_datasets.npz import NpzOptions, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.datasets import DatasetContext, DatasetSlice
from harness.errors import MissingDataError

Refusal = Callable[..., str]
SAVE = pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
Y = np.arange(12) % 3


def options(path: str = "set.npz", **fields: Any) -> NpzOptions:
    return NpzOptions(path=path, **fields)


@SAVE
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_reads_uint8(
    root: DatasetContext, tmp_path: Path, pictures: np.ndarray, save: Any, channels: int | None
) -> None:
    x = pictures[..., 0] if channels is None else pictures[..., :channels]
    save(tmp_path / "set.npz", x=x, y=Y, note=np.arange(5))
    data = build(options(), root)
    assert data.shape == (channels or 1, 32, 32)
    assert data.class_names == ("0", "1", "2")
    assert data.labels().tolist() == Y.tolist()
    index = np.array([11, 0, 1, 2, 1])
    expected = x[index].reshape(5, 32, 32, -1).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.images(index).numpy(), expected.astype(np.float32) / np.float32(255))
    DatasetSlice("npz", data).load(np.arange(12))


@SAVE
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2"])
def test_reads_floats(root: DatasetContext, tmp_path: Path, pictures: np.ndarray, save: Any, dtype: str) -> None:
    x = (pictures / 255).astype(dtype)
    save(tmp_path / "set.npz", x=x, y=Y.astype(np.uint8))
    images = build(options(), root).images(np.arange(12))
    assert images.dtype == torch.float32
    np.testing.assert_array_equal(images.numpy(), x.astype(np.float32).transpose(0, 3, 1, 2))


def test_levels_set_the_scale(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    x = np.arange(17, dtype=np.uint8).reshape(1, 17, 1)
    np.savez(tmp_path / "set.npz", x=x, y=np.array([0]))
    data = build(options(levels=17), root)
    assert data.levels == 17
    assert data.images(np.array([0]))[0, 0, :, 0].tolist() == [k / 16 for k in range(17)]
    text = refusal(build(options(levels=16), root).images, np.array([0]))
    assert "sample 0 has pixels outside [0, 15]" in text


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan])
def test_floats_outside_the_range(root: DatasetContext, tmp_path: Path, bad: float, refusal: Refusal) -> None:
    x = np.zeros((4, 2, 2), np.float32)
    x[2, 1, 1] = bad
    np.savez(tmp_path / "set.npz", x=x, y=np.zeros(4, int))
    data = build(options(), root)
    assert data.images(np.array([0, 1, 3])).sum() == 0
    text = refusal(data.images, np.array([1, 2]))
    assert "sample 2 has pixels outside [0, 1] (or NaN)" in text
    assert str(tmp_path / "set.npz") in text


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.lists(st.integers(0, 11), max_size=30), compressed=st.booleans())
def test_any_order_of_any_samples(tmp_path: Path, pictures: np.ndarray, index: list[int], compressed: bool) -> None:
    (np.savez_compressed if compressed else np.savez)(tmp_path / "set.npz", x=pictures, y=Y)
    x = build(options(), DatasetContext(tmp_path)).images(np.array(index, dtype=np.int64))
    expected = pictures[index].transpose(0, 3, 1, 2) if index else np.empty((0, 3, 32, 32))
    np.testing.assert_array_equal((x * 255).round().numpy(), expected)


def test_stored_members_are_read_in_place(root: DatasetContext, tmp_path: Path, cache_folder: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.zeros((4, 2, 2), np.uint8), y=np.zeros(4, int))
    build(options(), root).images(np.arange(4))
    assert not (cache_folder / "unpacked").exists()


def test_compressed_members_are_unpacked_once(
    root: DatasetContext, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, pictures: np.ndarray
) -> None:
    np.savez_compressed(tmp_path / "set.npz", x=pictures, y=Y)
    first = build(options(), root)
    monkeypatch.setattr(npz, "_unpack", lambda *_: pytest.fail("unpacked again"))
    assert torch.equal(build(options(), root).images(np.arange(12)), first.images(np.arange(12)))
    assert len(list((cache_folder / "unpacked").iterdir())) == 1


def test_an_unpacked_copy_that_was_cut_is_reported(
    root: DatasetContext, tmp_path: Path, cache_folder: Path, pictures: np.ndarray, refusal: Refusal
) -> None:
    np.savez_compressed(tmp_path / "set.npz", x=pictures, y=Y)
    data = build(options(), root)
    (copy,) = (cache_folder / "unpacked").iterdir()
    copy.write_bytes(copy.read_bytes()[:-100])
    assert "truncated" in refusal(data.images, np.array([11]))
    text = refusal(build, options(), root)
    assert f"its copy {copy}; delete that" in text


def encode(image: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, quality=75)
    return out.getvalue()


def write_encoded(path: Path, blobs: list[bytes], save: Any = np.savez, **replace: Any) -> None:
    arrays: dict[str, Any] = {
        "jpeg": np.frombuffer(b"".join(blobs), np.uint8),
        "offsets": np.cumsum([0, *map(len, blobs)]),
        "y": np.arange(len(blobs)) % 3,
    }
    save(path, **{**arrays, **replace})


@SAVE
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("grey", [False, True])
def test_encoded_images(
    root: DatasetContext, tmp_path: Path, pictures: np.ndarray, save: Any, kind: str, grey: bool
) -> None:
    images = pictures[..., 0] if grey else pictures
    blobs = [encode(image, kind) for image in images]
    write_encoded(tmp_path / "set.npz", blobs, save)
    data = build(options(), root)
    colour = not grey or kind == "WEBP"  # WebP has no grey images
    assert data.shape == (3 if colour else 1, 32, 32)
    index = np.array([5, 0, 11])
    decoded = [np.asarray(Image.open(io.BytesIO(blobs[i])).convert("RGB" if colour else "L")) for i in index]
    expected = np.stack(decoded).reshape(3, 32, 32, -1).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal((data.images(index) * 255).round().numpy(), expected)


def test_encoded_images_of_other_sizes_or_damaged(
    root: DatasetContext, tmp_path: Path, pictures: np.ndarray, refusal: Refusal
) -> None:
    blobs = [encode(pictures[0], "PNG"), encode(pictures[1][:16], "PNG"), encode(pictures[2], "PNG")[:200], b"hello"]
    write_encoded(tmp_path / "set.npz", blobs)
    data = build(options(), root)
    assert "image 1 is (3, 16, 32), the first is (3, 32, 32)" in refusal(data.images, np.array([0, 1]))
    assert f"{tmp_path / 'set.npz'}: image 2: damaged image" in refusal(data.images, np.array([2]))
    assert "image 3: is not an image" in refusal(data.images, np.array([3]))


@pytest.mark.parametrize(
    ("replace", "text"),
    [
        ({"offsets": np.array([0, 5, 3])}, "offsets must rise"),
        ({"offsets": np.array([0, 10, 10**9])}, "offsets must rise"),
        ({"offsets": np.array([-1, 10, 20])}, "offsets must rise"),
        ({"offsets": np.array([0.0, 1.0, 2.0])}, "offsets is float64 (3,)"),
        ({"offsets": np.array([0])}, "offsets is int64 (1,)"),
        ({"jpeg": np.zeros((3, 3), np.uint8)}, "jpeg is uint8 (3, 3)"),
        ({"y": np.zeros(7, int)}, "y is int64 (7,); it must be 2 integers"),
    ],
)
def test_wrong_encoded_files(
    root: DatasetContext, tmp_path: Path, pictures: np.ndarray, replace: Any, text: str, refusal: Refusal
) -> None:
    write_encoded(tmp_path / "set.npz", [encode(image, "PNG") for image in pictures[:2]], **replace)
    assert text in refusal(build, options(), root)


def test_class_names(root: DatasetContext, tmp_path: Path, pictures: np.ndarray, refusal: Refusal) -> None:
    np.savez(tmp_path / "set.npz", x=pictures, y=Y)
    (tmp_path / "names.txt").write_text("cat\ndog\n great white shark \n")
    (tmp_path / "names.json").write_text(json.dumps(["cat", "dog", "great white shark"]))
    (tmp_path / "wrong.json").write_text(json.dumps({"cat": 0}))
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "empty.txt").write_text("\n")
    wanted = ("cat", "dog", "great white shark")
    for given_names in (wanted, "names.txt", "names.json", str(tmp_path / "names.json")):
        assert build(options(class_names=given_names), root).class_names == wanted
    text = refusal(build, options(class_names=("cat", "dog")), root)
    assert "set.npz: sample 2 has label 2, but the 2 classes are 0 to 1" in text
    assert "must be a JSON list" in refusal(build, options(class_names="wrong.json"), root)
    assert "broken.json: cannot be read as class names" in refusal(build, options(class_names="broken.json"), root)
    assert "holds no class names" in refusal(build, options(class_names="empty.txt"), root)
    assert "nowhere.txt does not exist" in refusal(
        build, options(class_names="nowhere.txt"), root, kind=MissingDataError
    )


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"y": Y}, "has no array 'x', only ['y']"),
        ({"x": np.zeros((12, 2, 2), np.uint8)}, "has no array 'y'"),
        ({"x": np.zeros((12, 2, 2), np.int64), "y": Y}, "x has type int64; save it as uint8"),
        ({"x": np.zeros((12, 4), np.uint8), "y": Y}, "x has shape (12, 4)"),
        ({"x": np.zeros((12, 3, 32, 32), np.uint8), "y": Y}, "it must be (N, H, W) or (N, H, W, C)"),
        ({"x": np.zeros((0, 2, 2), np.uint8), "y": Y[:0]}, "x has shape (0, 2, 2)"),
        ({"x": np.zeros((12, 2, 2), np.uint8), "y": Y[:3]}, "y is int64 (3,); it must be 12 integers"),
        ({"x": np.zeros((12, 2, 2), np.uint8), "y": Y / 2}, "y is float64"),
        ({"x": np.zeros((12, 2, 2), np.uint8), "y": Y - 1}, "sample 0 has label -1"),
        ({"x": np.asfortranarray(np.zeros((12, 2, 2), np.uint8)), "y": Y}, "Fortran order"),
    ],
)
def test_wrong_arrays(root: DatasetContext, tmp_path: Path, arrays: Any, text: str, refusal: Refusal) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    message = refusal(build, options(), root)
    assert text in message
    assert str(tmp_path / "set.npz") in message


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the pickle ran",))


@pytest.mark.parametrize("name", ["x", "y", "extra"])
def test_pickled_objects_are_refused_unread(
    root: DatasetContext, tmp_path: Path, pictures: np.ndarray, name: str, refusal: Refusal
) -> None:
    bomb = np.empty(1, object)
    bomb[0] = Bomb()
    np.savez(tmp_path / "set.npz", allow_pickle=True, **{"x": pictures, "y": Y, name: bomb})
    assert f"set.npz: {name}.npy holds Python objects (a pickle)" in refusal(build, options(), root)


@SAVE
@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, -1, -30])
def test_truncated(
    root: DatasetContext, tmp_path: Path, pictures: np.ndarray, save: Any, keep: float, refusal: Refusal
) -> None:
    path = tmp_path / "set.npz"
    save(path, x=pictures, y=Y)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else int(keep)])
    text = refusal(build, options(), root)
    assert f"{path}: is truncated or no .npz file" in text


def test_damaged_in_the_middle(
    root: DatasetContext, tmp_path: Path, pictures: np.ndarray, cache_folder: Path, refusal: Refusal
) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, x=pictures, y=Y)
    damaged = bytearray(path.read_bytes())
    damaged[5000:5010] = bytes(10)
    path.write_bytes(damaged)
    assert str(path) in refusal(build, options(), root)
    assert not list(cache_folder.glob("unpacked/*"))


def test_a_file_cut_while_in_use(root: DatasetContext, tmp_path: Path, pictures: np.ndarray, refusal: Refusal) -> None:
    np.savez(tmp_path / "set.npz", x=pictures, y=Y)
    data = build(options(), root)
    (tmp_path / "set.npz").write_bytes(b"")
    assert "set.npz: is truncated" in refusal(data.images, np.array([3]))
    (tmp_path / "set.npz").unlink()
    assert "set.npz: cannot be read" in refusal(data.images, np.array([3]))


def test_header_that_lies_about_the_shape(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (100, 2, 2)})
    labels = io.BytesIO()
    np.save(labels, np.zeros(100, int))
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(8))
        archive.writestr("y.npy", labels.getvalue())
    assert "x.npy is damaged: its size does not fit its shape (100, 2, 2)" in refusal(build, options(), root)


def test_zip_with_extra_fields(root: DatasetContext, tmp_path: Path, pictures: np.ndarray) -> None:
    """Other writers pad the local header, whose length then differs from that in the directory."""
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for name, array in (("x", pictures), ("y", Y)):
            buffer = io.BytesIO()
            np.save(buffer, array)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(buffer.getvalue())
    np.testing.assert_array_equal(
        (build(options(), root).images(np.arange(12)) * 255).round().numpy(), pictures.transpose(0, 3, 1, 2)
    )


def test_missing(root: DatasetContext, tmp_path: Path, refusal: Refusal) -> None:
    text = refusal(build, options("a/set.npz"), root, kind=MissingDataError)
    assert str(tmp_path / "a" / "set.npz") in text
    assert "--data-root" in text
    assert "HARNESS_DATA" in text
    assert "there is no data root" in refusal(build, options(), DatasetContext(None), kind=MissingDataError)


def test_absolute_path_needs_no_root(tmp_path: Path, pictures: np.ndarray) -> None:
    np.savez(tmp_path / "set.npz", x=pictures, y=Y)
    assert build(options(str(tmp_path / "set.npz")), DatasetContext(None)).labels().size == 12


def test_digest(root: DatasetContext, tmp_path: Path, pictures: np.ndarray) -> None:
    np.savez(tmp_path / "set.npz", x=pictures, y=Y)
    np.savez(tmp_path / "other.npz", x=pictures, y=(Y + 1) % 3)
    tables: list[dict[str, Any]] = [{}, {"class_names": ("a", "b", "c")}, {"path": "other.npz"}]
    digests = {build(options(**table), root).digest() for table in tables}
    assert len(digests) == 3
    (tmp_path / "copy.npz").write_bytes((tmp_path / "set.npz").read_bytes())
    assert build(options("copy.npz"), root).digest() in digests


@SAVE
def test_survives_pickling_into_a_worker(root: DatasetContext, tmp_path: Path, pictures: np.ndarray, save: Any) -> None:
    save(tmp_path / "set.npz", x=pictures, y=Y)
    data = build(options(), root)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.images(np.arange(12)), data.images(np.arange(12)))


def test_real_lossless_cifar10(real: DatasetContext) -> None:
    data = build(options("cifar10/cifar10_test1000_lossless.npz"), real)
    assert (data.shape, data.labels().size) == ((3, 32, 32), 1000)
    x = data.images(np.arange(1000))
    arrays = np.load(Path(str(real.root)) / "cifar10/cifar10_test1000_lossless.npz")
    np.testing.assert_array_equal((x * 255).round().numpy(), arrays["x"].transpose(0, 3, 1, 2))
    assert data.labels().tolist() == arrays["y"].tolist()


def test_real_jpeg_bytes(real: DatasetContext) -> None:
    data = build(options("cifar10/cifar10_test_jpegbytes.npz"), real)
    assert (data.shape, data.labels().size, len(data.class_names)) == ((3, 32, 32), 10000, 10)
    exact = build(options("cifar10/cifar10_test1000_lossless.npz"), real)
    assert data.labels()[:1000].tolist() == exact.labels().tolist()
    index = np.arange(0, 1000, 10)
    error = (data.images(index) - exact.images(index)).abs().mean().item() * 255
    assert error == pytest.approx(5.8, abs=0.5)  # as measured when the files were made
