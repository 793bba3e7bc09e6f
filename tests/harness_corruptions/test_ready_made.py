"""Corrupted test sets in the published layouts: what is read, what the rows say, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_corruptions.ready_made import GROUPS, ReadyMadeCorruptions, ReadyMadeOptions, build
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.errors import HarnessError, MissingDataError
from harness.host import Host
from harness.info import ThreatInfo
from harness.loading import build_threat
from harness.randomness import draws_for
from harness.suite import ThreatEntry
from harness.testing import toy_model
from harness.threats import Batch, ThreatContext

N = 6
LABELS = np.array([3, 0, 1, 3, 2, 0])
CLASSES = ("cat", "dog", "fox", "owl")


def facts(channels: int = 3, side: int = 8) -> DatasetFacts:
    return DatasetFacts("test", (channels, side, side), 256, CLASSES)


def pixels(seed: int, n: int = N, channels: int = 3, side: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def threat(folder: Path, data: DatasetFacts | None = None, **options: Any) -> ReadyMadeCorruptions:
    context = ThreatContext(data or facts(), lambda table: pytest.fail(f"opened {table}"), folder.parent)
    return build(ReadyMadeOptions.model_validate({"folder": folder.name, **options}), context)


def rows(one: ReadyMadeCorruptions, clean: NDArray[np.uint8], y: NDArray[Any] = LABELS, ids: Any = None) -> Any:
    """The threat's columns, judged by the mean of an image."""
    index = np.arange(len(clean)) if ids is None else np.asarray(ids)

    def judge(images: Tensor) -> dict[str, Tensor]:
        return {"mean": images.double().mean(dim=(1, 2, 3))}

    sample_ids = torch.from_numpy(index)
    x = torch.from_numpy(clean[index]).permute(0, 3, 1, 2).float().div(255)
    batch = Batch(x, torch.from_numpy(y[index]), sample_ids, draws_for(sample_ids, 0, "t"), judge=judge)
    return one.run(None, batch)  # type: ignore[arg-type]


@pytest.fixture
def cifar_c(tmp_path: Path) -> Path:
    """As CIFAR-10-C: for each corruption the severities one after the other, and the labels five times."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for seed, name in enumerate(("gaussian_noise", "spatter")):
        np.save(folder / f"{name}.npy", np.concatenate([pixels(10 * seed + s) for s in range(1, 6)]))
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    return folder


@pytest.fixture
def mnist_c(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist_c"
    for seed, name in enumerate(("fog", "zigzag", "identity")):
        (folder / name).mkdir(parents=True)
        for split in ("test", "train"):
            np.save(folder / name / f"{split}_images.npy", pixels(seed, channels=1))
            np.save(folder / name / f"{split}_labels.npy", LABELS)
    return folder


@pytest.fixture
def imagenet_c(tmp_path: Path) -> Path:
    folder = tmp_path / "ImageNet-C"
    for severity in (1, 3):
        for place, label in enumerate(sorted(LABELS)):
            path = folder / "frost" / str(severity) / CLASSES[label] / f"ILSVRC2012_val_{place}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * place, 0, 10 * severity)).save(path, quality=100)
    return folder


def test_each_severity_of_a_cifar_10_c_file_is_read_for_its_own_samples(cifar_c: Path) -> None:
    columns = rows(threat(cifar_c), pixels(99))
    order = [("none", 0), *((name, s) for name in ("gaussian_noise", "spatter") for s in range(1, 6))]
    assert list(zip(columns["corruption"], columns["severity"].tolist(), strict=True)) == [
        cell for cell in order for _ in range(N)
    ]
    assert columns["sample_id"].tolist() == list(range(N)) * 11
    assert columns["label"].tolist() == LABELS.tolist() * 11
    assert columns["severity"].dtype == torch.int64
    assert columns["group"] == ["none"] * N + ["noise"] * 5 * N + ["extra"] * 5 * N
    seeds = [99, 1, 2, 3, 4, 5, 11, 12, 13, 14, 15]
    means = np.concatenate([pixels(seed).reshape(N, -1).mean(axis=1) / 255 for seed in seeds])
    np.testing.assert_allclose(columns["mean"], means, rtol=1e-5)


def test_the_change_is_that_from_the_clean_image(cifar_c: Path) -> None:
    columns = rows(threat(cifar_c, corruptions=["spatter"], severities=[2]), pixels(99))
    change = (pixels(12).astype(float) - pixels(99).astype(float)).reshape(N, -1) / 255
    assert columns["changed_linf"][:N].tolist() == [0.0] * N
    np.testing.assert_allclose(columns["changed_linf"][N:], np.abs(change).max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(columns["changed_l2"][N:], np.sqrt((change**2).sum(axis=1)), rtol=1e-6)
    assert columns["changed_l2"].dtype == torch.float64


def test_a_sample_meets_its_own_image_whatever_the_batch(cifar_c: Path) -> None:
    whole = rows(threat(cifar_c), pixels(99))
    part = rows(threat(cifar_c), pixels(99), ids=[1, 4])
    of_part = [row for row, sample in enumerate(whole["sample_id"].tolist()) if sample in (1, 4)]
    assert torch.equal(part["mean"], whole["mean"][of_part])
    assert torch.equal(part["changed_l2"], whole["changed_l2"][of_part])


def test_mnist_c_has_one_severity(mnist_c: Path) -> None:
    one = threat(mnist_c, facts(1))
    columns = rows(one, pixels(99, channels=1))
    assert columns["corruption"] == ["none"] * N + ["fog"] * N + ["zigzag"] * N
    assert columns["severity"].tolist() == [0] * N + [1] * 2 * N
    assert columns["group"] == ["none"] * N + ["weather"] * N + ["extra"] * N
    np.testing.assert_allclose(columns["mean"][N : 2 * N], pixels(0, channels=1).mean(axis=(1, 2, 3)) / 255, rtol=1e-5)
    assert mnist_c / "fog" / "test_labels.npy" in one.files
    with pytest.raises(HarnessError, match="has one severity, called 1"):
        threat(mnist_c, facts(1), severities=[1, 2])


def test_the_clean_images_of_mnist_c_are_no_corruption(mnist_c: Path) -> None:
    with pytest.raises(HarnessError, match="identity: holds the clean images, which the rows hold anyway, as"):
        threat(mnist_c, facts(1), corruptions=["fog", "identity"])
    (left_out,) = set(rows(threat(mnist_c, facts(1)), pixels(99, channels=1))["left_out"])
    assert left_out.startswith("not in mnist_c: shot_noise, impulse_noise, glass_blur, motion_blur, shear, scale, ")


def test_a_whole_mnist_c_leaves_nothing_out(mnist_c: Path) -> None:
    names = "shot_noise impulse_noise glass_blur motion_blur shear scale rotate brightness translate stripe spatter"
    for name in (*names.split(), "dotted_line", "canny_edges"):
        shutil.copytree(mnist_c / "fog", mnist_c / name)
    columns = rows(threat(mnist_c, facts(1)), pixels(99, channels=1))
    assert set(columns["left_out"]) == {""}
    assert len(set(columns["corruption"])) == 16


def test_grey_images_need_no_axis_for_their_channel(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    np.save(folder / "fog.npy", np.concatenate([pixels(s, channels=1)[..., 0] for s in range(5)]))
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    columns = rows(threat(folder, facts(1), severities=[5]), pixels(99, channels=1))
    np.testing.assert_allclose(columns["mean"][N:], pixels(4, channels=1).mean(axis=(1, 2, 3)) / 255, rtol=1e-5)


def test_class_folders_are_read_in_the_order_of_their_names(imagenet_c: Path) -> None:
    clean = pixels(99)
    columns = rows(threat(imagenet_c), clean, np.sort(LABELS))
    assert columns["severity"].tolist() == [0] * N + [1] * N + [3] * N  # those that are there
    expected = [(40 * place + 10 * severity) / 3 / 255 for severity in (1, 3) for place in range(N)]
    np.testing.assert_allclose(columns["mean"][N:], expected, atol=2 / 255)
    renamed = DatasetFacts("test", (3, 8, 8), 256, ("a", "b", "c", "d"))  # the classes in the folders' order
    assert len(rows(threat(imagenet_c, renamed), clean, np.sort(LABELS))["mean"]) == 3 * N
    fewer = DatasetFacts("test", (3, 8, 8), 256, ("owl", "fox", "dog", "cat"))  # the same names, numbered otherwise
    assert len(rows(threat(imagenet_c, fewer), clean, 3 - np.sort(LABELS))["mean"]) == 3 * N


def test_the_rows_say_what_the_folder_does_not_hold(cifar_c: Path) -> None:
    columns = rows(threat(cifar_c), pixels(99))
    assert set(columns["table"]) == {"cifar10-c"}
    (left_out,) = set(columns["left_out"])
    assert left_out == "not in CIFAR-10-C: " + ", ".join(name for name in GROUPS if name != "gaussian_noise")
    assert set(rows(threat(cifar_c, corruptions=["spatter"]), pixels(99))["left_out"]) == {""}
    for name in GROUPS:
        np.save(cifar_c / f"{name}.npy", np.tile(pixels(0), (5, 1, 1, 1)))
    assert set(rows(threat(cifar_c), pixels(99))["left_out"]) == {""}


def test_another_test_set_is_refused_in_one_line(cifar_c: Path, one_line: Any) -> None:
    other = LABELS.copy()
    other[4] = 1
    with pytest.raises(HarnessError, match="image 4 has label 2, the data set's sample 4 has 1") as caught:
        rows(threat(cifar_c), pixels(99), other)
    assert "gaussian_noise.npy" in one_line(str(caught.value))
    with pytest.raises(HarnessError, match="has 6 images, the data set a sample 7"):
        rows(threat(cifar_c), pixels(99, n=8), np.zeros(8, dtype=np.int64), ids=[7])
    with pytest.raises(HarnessError, match=re.escape("holds images of (H, W, C) = (8, 8, 3), the data set's are (9,")):
        rows(threat(cifar_c), pixels(99, side=9))


def test_what_is_missing_is_named(cifar_c: Path, mnist_c: Path, imagenet_c: Path, one_line: Any) -> None:
    def refused(folder: Path, kind: type[HarnessError] = MissingDataError, **options: Any) -> str:
        with pytest.raises(kind) as caught:
            threat(folder, **options)
        text: str = one_line(str(caught.value))
        return text

    assert "gaussian_nose.npy does not exist" in refused(cifar_c, corruptions=["gaussian_nose"])
    assert "did you mean 'gaussian_noise'?" in refused(cifar_c, corruptions=["gaussian_nose"])
    assert "fogg/test_images.npy does not exist" in refused(mnist_c, corruptions=["fogg"])
    assert "snow does not exist" in refused(imagenet_c, corruptions=["snow"])
    assert "frost/2 does not exist" in refused(imagenet_c, severities=[2])
    assert "nowhere does not exist" in refused(cifar_c.with_name("nowhere"))
    (mnist_c / "fog" / "test_labels.npy").unlink()
    assert "fog/test_labels.npy does not exist" in refused(mnist_c)
    (cifar_c / "labels.npy").unlink()
    assert "labels.npy does not exist" in refused(cifar_c)
    empty = cifar_c.with_name("empty")
    empty.mkdir()
    assert "holds neither" in refused(empty, HarnessError)


def test_damaged_files_are_named(cifar_c: Path, imagenet_c: Path) -> None:
    path = cifar_c / "spatter.npy"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(HarnessError, match=r"spatter\.npy: is truncated or no \.npy file"):
        threat(cifar_c)
    np.save(path, pixels(0).astype(np.float32))
    with pytest.raises(HarnessError, match=r"spatter\.npy: holds float32 \(6, 8, 8, 3\), not uint8"):
        threat(cifar_c)
    np.save(path, pixels(0))
    with pytest.raises(HarnessError, match=r"spatter\.npy: has 6 images, labels\.npy has 30 labels"):
        threat(cifar_c)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(HarnessError, match="Python objects"):
        threat(cifar_c)
    image = imagenet_c / "frost" / "1" / "cat" / "ILSVRC2012_val_0.JPEG"
    image.write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(HarnessError, match=r"val_0\.JPEG: damaged image"):
        rows(threat(imagenet_c), pixels(99), np.sort(LABELS))
    Image.new("RGB", (9, 8)).save(image)
    with pytest.raises(HarnessError, match=r"val_0\.JPEG: is 8x9, the data set's images are 8x8"):
        rows(threat(imagenet_c), pixels(99), np.sort(LABELS))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"severities": [6]}, "less than or equal to 5"),
        ({"severities": [2, 2]}, "2 is listed twice"),
        ({"corruptions": ["fog", "fog"]}, "fog is listed twice"),
        ({"corruptions": []}, "the list is empty"),
        ({"corruption": ["fog"]}, "Extra inputs"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        ReadyMadeOptions.model_validate({"folder": "CIFAR-10-C", **options})


def test_the_groups_are_those_of_the_corruptions() -> None:
    catalogue = pytest.importorskip("harness_corruptions.catalogue")
    assert {name: one.group for name, one in catalogue.corruptions().items() if not one.extra} == dict(GROUPS)


@pytest.mark.parametrize("layout", ["cifar_c", "mnist_c", "imagenet_c"])
def test_what_is_read_decides_which_rows_are_found_again(layout: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(layout)
    data = facts(1 if layout == "mnist_c" else 3)

    def inputs() -> str:
        info = ThreatInfo(name="ready-made-corruptions", summary="", factory=build, options=ReadyMadeOptions)
        entry = ThreatEntry("c", info, ReadyMadeOptions(folder=folder.name), None, {})
        return build_threat(entry, data, Host(), None, folder.parent).inputs

    before = inputs()
    assert inputs() == before
    path = next(iter(sorted(folder.rglob("*.JPEG")) or sorted(folder.rglob("*labels.npy"))))
    path.write_bytes(path.read_bytes() + b"\0")
    assert inputs() != before


def test_the_host_judges_every_set(cifar_c: Path) -> None:
    """The columns of a classifier, as a run stores them."""
    from harness.judge import Judge

    model = toy_model({"Classifier"}, facts())
    ids = torch.arange(N)
    x = torch.from_numpy(pixels(99)).permute(0, 3, 1, 2).float().div(255)
    judge = Judge(model, x, torch.from_numpy(LABELS), ids, 0, None)
    batch = Batch(x, torch.from_numpy(LABELS), ids, draws_for(ids, 0, "t"), judge=judge.shifted)
    columns = threat(cifar_c).run(judge.model, batch)
    assert {"prediction", "correct", "confidence", "entropy", "ood_score"} <= set(columns)
    assert torch.equal(columns["prediction"] == columns["label"], columns["correct"])
    assert {len(values) for values in columns.values()} == {11 * N}
