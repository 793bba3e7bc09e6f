"""The cache: hashes remembered, files written whole, several processes at once, folders that cannot be written."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from harness_datasets import cache

from harness.errors import HarnessError


def test_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert cache.fingerprint(path).sha256 == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert cache.fingerprint(path).md5 == hashlib.md5(b"x" * 3_000_000).hexdigest()


def test_fingerprint_follows_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = cache.fingerprint(path)
    hashed: list[Path] = []
    original = cache._hash_file
    monkeypatch.setattr(cache, "_hash_file", lambda p: hashed.append(p) or original(p))
    assert cache.fingerprint(path) == first
    assert hashed == []
    path.write_bytes(b"three")
    assert cache.fingerprint(path) != first
    stamp = path.stat().st_mtime_ns + 5
    os.utime(path, ns=(stamp, stamp))
    cache.fingerprint(path)
    assert hashed == [path, path]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"known": 1}'])
def test_damaged_entries_are_replaced(tmp_path: Path, cache_folder: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = cache.fingerprint(path)
    (entry,) = (cache_folder / "fingerprints").iterdir()
    entry.write_text(content)
    assert cache.fingerprint(path) == first
    assert first.sha256 in entry.read_text()


def test_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.folder() == Path(os.environ["HARNESS_CACHE"])
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "harness"


def test_unpacked_leaves_nothing_of_a_failure(cache_folder: Path, tmp_path: Path) -> None:
    def write(out: BinaryIO) -> None:
        out.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.unpacked(tmp_path, ["key"], write)
    assert list((cache_folder / "unpacked").iterdir()) == []


def test_full_disk_is_one_line(tmp_path: Path, cache_folder: Path) -> None:
    def write(out: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(HarnessError, match=r"cannot be unpacked into .*No space left on device.*HARNESS_CACHE"):
        cache.unpacked(tmp_path / "data.gz", ["key"], write)
    assert list((cache_folder / "unpacked").iterdir()) == []


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"one")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))  # a file where the folder should be
    with caplog.at_level(logging.WARNING):
        assert cache.fingerprint(tmp_path / "file").md5 == hashlib.md5(b"one").hexdigest()
    assert "cannot remember file hashes" in caplog.text
    with pytest.raises(HarnessError, match="set HARNESS_CACHE to another folder"):
        cache.unpacked(tmp_path / "file", ["key"], lambda out: None)


def test_many_writers_of_one_file(cache_folder: Path, tmp_path: Path) -> None:
    content = os.urandom(200_000)
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: cache.unpacked(tmp_path, ["key"], lambda out: out.write(content)), range(16)))
    assert {place.read_bytes() for place in places} == {content}
    assert len(list((cache_folder / "unpacked").iterdir())) == 1
