"""What is worth doing only once: hashes of files, and unpacked copies of compressed ones.

Everything lies under one folder, the environment variable HARNESS_CACHE or ~/.cache/harness, and may be deleted at any
time. Files are written beside their place and renamed, so that several processes can fill the cache at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import HarnessError

CHUNK = 1 << 20
_log = logging.getLogger("harness.datasets")


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of a file's bytes; md5 only because that is what data sets publish."""

    sha256: str
    md5: str


def folder() -> Path:
    """The cache folder; it need not exist yet."""
    return Path(os.environ.get("HARNESS_CACHE") or "~/.cache/harness").expanduser().absolute()


def fingerprint(path: Path) -> Fingerprint:
    """Hashes of a file, remembered by (path, size, modification time in ns).

    Raises:
        HarnessError: the file cannot be read.
    """
    try:
        status = path.stat()
        known = {"path": str(path.absolute()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        values = remembered(known, lambda: asdict(_hash_file(path)))
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror or error}") from error
    return Fingerprint(values["sha256"], values["md5"])


def remembered(known: Mapping[str, Any], compute: Callable[[], dict[str, str]]) -> dict[str, str]:
    """`compute()`, or its result from an earlier run with the same facts `known` about the same ``known["path"]``."""
    place = folder() / "fingerprints" / f"{hashlib.sha256(known['path'].encode()).hexdigest()}.json"
    wanted = json.loads(json.dumps(known))
    try:
        entry = json.loads(place.read_text())
        if entry["known"] == wanted:
            return dict(entry["values"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.debug("no usable fingerprint in %s: %s", place, error)
    values = compute()
    try:
        _write_whole(place, lambda file: _write_json(file, {"known": wanted, "values": values}))
    except OSError as error:
        _log.warning("cannot remember file hashes in %s (%s); they are computed again each run", place.parent, error)
    return values


def unpacked(source: Path, key: Iterable[str], write: Callable[[BinaryIO], None]) -> Path:
    """The file in the cache that `write` makes; `write` is called only when no file of this key is there yet.

    Args:
        source: what is unpacked, for error texts.
        key: everything that decides the bytes, such as the source's sha256 and the member's name.
        write: fills a binary file; what it raises passes through, and nothing is left behind.

    Raises:
        HarnessError: the cache folder cannot be written.
    """
    name = hashlib.sha256("\n".join(key).encode()).hexdigest()
    place = folder() / "unpacked" / name
    if not place.exists():
        try:
            _write_whole(place, write)
        except OSError as error:
            raise HarnessError(
                f"{source}: cannot be unpacked into {place.parent}: {error.strerror or error}; free some space there"
                " or set HARNESS_CACHE to another folder"
            ) from error
    return place


def combined_digest(facts: Mapping[str, Any]) -> str:
    """One sha256 over JSON facts (file hashes, options)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _hash_file(path: Path) -> Fingerprint:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return Fingerprint(sha256.hexdigest(), md5.hexdigest())


def _write_json(file: BinaryIO, value: object) -> None:
    file.write(json.dumps(value).encode())


def _write_whole(place: Path, write: Callable[[BinaryIO], None]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:16]}-")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, place)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108
        raise
