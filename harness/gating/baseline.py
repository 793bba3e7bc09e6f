"""Accepting a run as a baseline: a copy of what a gate needs, with who accepted it and why."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from harness.checkpoints import write_atomically
from harness.errors import HarnessError, StoreError
from harness.gating.comparability import check_gateable
from harness.store import Run

SCHEMA = 1
MARKER = "baseline.json"


def accept(run: Run, reason: str, to: Path, *, replace: bool = False, images: bool = True) -> Path:
    """Copy a run into the folder `to`, whole or not at all, and return that folder.

    It holds run.json, results.json, the shards of the suite's cells, and baseline.json: reason, date, who (as git is
    configured), code revision and the hash of what a candidate must share.

    Args:
        replace: take the place of the baseline that is there.
        images: keep the attacked images, so that they can be replayed on candidates; a gate needs none.

    Raises:
        IncompleteRunError: shards are missing.
        HarnessError: a limited or failed run, no reason, or something is at `to` already.
        StoreError: the folder cannot be written.
    """
    if not reason.strip():
        raise HarnessError("--reason is empty; say why this run becomes the baseline")
    _check_acceptable(run)
    _check_place(to, replace)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name[:40]}.", suffix=".part"))
        try:
            temporary.chmod(0o755)  # mkdtemp makes folders that only the owner can read
            _copy(run, temporary, images=images)
            _write_json(temporary / MARKER, _about(run, reason.strip()))
            _put_in_place(temporary, to)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write baseline {to}: {error.strerror or error}") from error
    return to


def _check_acceptable(run: Run) -> None:
    failed = [cell["id"] for cell in run.cells() if cell["status"] == "failed"]
    if failed:
        more = f" and {len(failed) - 1} more cells" if len(failed) > 1 else ""
        raise HarnessError(f"run {run.folder} is no baseline: {failed[0]}{more} failed; mend it and run again")
    check_gateable(run, "run")


def _check_place(to: Path, replace: bool) -> None:
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return
    if not (to / MARKER).is_file():
        raise HarnessError(f"{to} exists and is no baseline; choose another --to")
    if not replace:
        raise HarnessError(f"{to} holds a baseline{_said_of(to)}; say --replace to replace it")


def _said_of(folder: Path) -> str:
    try:
        about = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return f" accepted on {about['date']} ({about['reason']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # damaged, but still a baseline that nobody asked to replace


def _copy(run: Run, folder: Path, *, images: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _write_json(folder / "run.json", run.info)
    _write_json(folder / "results.json", run.results)
    for cell in run.reader.cells.values():
        for path in run.reader.paths(cell.id) if cell.role == "cell" else ():
            target = folder / path.relative_to(run.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                kept = [name for name in pq.read_schema(path).names if images or name != "adversarial"]
                table = pq.read_table(path, columns=kept, page_checksum_verification=True)
            except pa.ArrowException as error:
                raise StoreError(f"shard {path} is damaged ({error}); delete it and run again") from error
            pq.write_table(table, target, compression="zstd", write_page_checksum=True)


def _about(run: Run, reason: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "suite": run.results["suite"],
        "reason": reason,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "by": _who(),
        "revision": run.info.get("revision"),
        "identity": run.info["identity"]["hash"],
    }


def _who() -> str | None:
    """Name and address as git is configured; None where it says nothing."""
    said = []
    for key in ("user.name", "user.email"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(["git", "config", key], capture_output=True, text=True, timeout=10, check=True)
            said.append(done.stdout.strip() if key == "user.name" else f"<{done.stdout.strip()}>")
    return " ".join(said) or None


def _put_in_place(temporary: Path, to: Path) -> None:
    if not to.exists():
        os.replace(temporary, to)  # noqa: PTH105 - renames a folder
        return
    former = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name[:40]}.", suffix=".old"))
    os.replace(to, former)  # noqa: PTH105 - onto an empty folder
    try:
        os.replace(temporary, to)  # noqa: PTH105
    except OSError:
        os.replace(former, to)  # noqa: PTH105 - what was there comes back
        raise
    shutil.rmtree(former, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
