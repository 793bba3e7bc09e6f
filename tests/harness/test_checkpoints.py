"""Checkpoints: written whole or not at all, read without pickle, their header readable without torch."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import torch

from harness import checkpoints
from harness.errors import HarnessError, MissingDataError

HEADER = {"plugin": "toy", "options": {"hidden": 3}, "classes": ["ä", "b"]}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    whole = torch.arange(12.0).reshape(3, 4)
    return {"weight": whole, "shared": whole, "view": whole.T, "count": torch.tensor(3), "empty": torch.zeros(0, 2)}


def test_round_trip(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    checkpoints.save(path, tensors, HEADER)
    found, header = checkpoints.load(path)
    assert header == checkpoints.read_header(path) == HEADER
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)
    assert list(path.parent.iterdir()) == [path]


def test_the_same_checkpoint_is_the_same_bytes(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name in ("a", "b"):
        checkpoints.save(tmp_path / name, tensors, dict(reversed(HEADER.items())) if name == "b" else HEADER)
    assert checkpoints.file_digest(tmp_path / "a") == checkpoints.file_digest(tmp_path / "b")


def test_gradients_and_graphs_are_left_behind(tmp_path: Path) -> None:
    weight = torch.ones(2, requires_grad=True)
    checkpoints.save(tmp_path / "a", {"weight": weight, "double": weight * 2}, {})
    found, _ = checkpoints.load(tmp_path / "a")
    assert not found["double"].requires_grad


def test_a_file_of_someone_else_has_no_header(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "a", metadata={"format": "pt"})
    assert checkpoints.load(tmp_path / "a")[1] == checkpoints.read_header(tmp_path / "a") == {}
    save_file({"weight": torch.ones(2)}, tmp_path / "b")
    assert checkpoints.read_header(tmp_path / "b") == {}


@pytest.mark.parametrize("read", [checkpoints.load, checkpoints.read_header, checkpoints.file_digest])
def test_a_missing_file(tmp_path: Path, read) -> None:
    with pytest.raises(MissingDataError, match=f"{tmp_path}.* does not exist"):
        read(tmp_path / "a")


def wrong_files(tmp_path: Path) -> dict[str, bytes]:
    checkpoints.save(tmp_path / "good", {"weight": torch.ones(100)}, HEADER)
    good = (tmp_path / "good").read_bytes()
    listed = b"[1, 2]"
    return {
        "empty": b"",
        "pickle": b"\x80\x02}q\x00.",
        "text": b"not a checkpoint at all",
        "cut in the header": good[:30],
        "huge header": struct.pack("<Q", 2**62) + good[8:],
        "list header": struct.pack("<Q", len(listed)) + listed,
        "header that is no JSON": good.replace(b'{\\"classes', b'(\\"classes'),
    }


@pytest.mark.parametrize(
    "kind", ["empty", "pickle", "text", "cut in the header", "huge header", "list header", "header that is no JSON"]
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(wrong_files(tmp_path)[kind])
    for read in (checkpoints.load, checkpoints.read_header):
        with pytest.raises(
            HarnessError, match=r"checkpoint .*bad.safetensors is not a readable safetensors file: "
        ) as e:
            read(path)
        assert "\n" not in str(e.value)


def test_a_truncated_file(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a", {"weight": torch.ones(100)}, HEADER)
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:-8])
    with pytest.raises(HarnessError, match="not a readable safetensors file"):
        checkpoints.load(tmp_path / "b")


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    checkpoints.write_atomically(path, b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    checkpoints.write_atomically(tmp_path / "a", b"x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
