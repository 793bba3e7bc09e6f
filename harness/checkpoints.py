"""Checkpoints: tensors in safetensors, with a JSON header that says what they are and how they were made."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, MissingDataError

if TYPE_CHECKING:
    from torch import Tensor

_KEY = "harness"


def save(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a checkpoint whole, then rename it into place.

    `header` is JSON: plugin name, options, class names, training recipe. Keys the reader needs are the plugin's own.
    """
    from safetensors.torch import save as to_bytes

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = to_bytes(plain, metadata={_KEY: json.dumps(header, sort_keys=True)})
    write_atomically(path, data)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a safetensors file; the header is empty where the file was not written by the harness.

    Raises:
        MissingDataError: no such file.
        HarnessError: not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingDataError(f"checkpoint {path} does not exist")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        header: dict[str, Any] = json.loads(metadata.get(_KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise HarnessError(f"checkpoint {path} is not a readable safetensors file: {error}") from error
    return tensors, header


def read_header(path: Path) -> dict[str, Any]:
    """The header alone, read without torch: empty where the file was not written by the harness."""
    if not path.is_file():
        raise MissingDataError(f"checkpoint {path} does not exist")
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 100_000_000:
                raise ValueError("header too long")
            header: dict[str, Any] = json.loads(json.loads(file.read(size)).get("__metadata__", {}).get(_KEY, "{}"))
    except (OSError, ValueError, AttributeError) as error:
        raise HarnessError(f"checkpoint {path} is not a readable safetensors file: {error}") from error
    return header


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    if not path.is_file():
        raise MissingDataError(f"file {path} does not exist")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole under another name in its folder, then rename it into place; an error leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # noqa: PTH101 - mkstemp makes files that only the owner can read
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
