"""Run folders written as a run writes them, without running anything."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.host import Host, load_host
from harness.info import resolve
from harness.store import SCHEMA, CellManifest, Run, RunFolder, load_run, shard_path, write_shard

Columns = Mapping[str, NDArray[Any]]
WriteRun = Callable[..., Run]


@pytest.fixture(scope="session")
def host() -> Host:
    return load_host()


def _manifest(cell: str, columns: Columns, variants: Sequence[str]) -> CellManifest:
    model, _, rest = cell.partition("/")
    threat, _, dataset = rest.rpartition("/")
    state = hashlib.sha256(cell.encode())
    for name, values in columns.items():
        state.update(name.encode() + repr(values.tolist()).encode())
    ids = np.unique(columns["sample_id"])
    firsts = tuple(int(part[0]) for part in np.array_split(ids, 2)) if ids.size > 1 else tuple(map(int, ids))
    return CellManifest(
        cell, state.hexdigest(), model, threat, threat.partition("[")[0], dataset, {}, tuple(variants), int(ids.size),
        firsts, "", None,
    )  # fmt: skip


def _metrics(host: Host, columns: Columns) -> dict[str, Any]:
    found = {}
    for info in host.metrics:
        if info.scope == "cell" and set(info.columns) <= set(columns):
            estimates = resolve(info.metric, info.name).estimate(columns, 0.95)
            found.update({f"{info.name}[{v}]" if v else info.name: e.to_json() for v, e in estimates.items()})
    return found


def _entry(cell: CellManifest, **facts: Any) -> dict[str, Any]:
    about = {key: getattr(cell, key) for key in ("id", "model", "threat", "plugin", "dataset", "params")}
    return {**about, "status": "ok", "error": "", "n": 0, "metrics": {}, "audit": [], "reliable": True, **facts}


@pytest.fixture
def write_run(tmp_path: Path, host: Host) -> WriteRun:
    """Write a finished run: `write(name, {cell id: columns}, ...)`.

    `failed` and `skipped` give the reason by cell id, `unreliable` the audit's message, `without_shards` the ids of
    cells whose second shard is lost.
    """

    def write(
        name: str,
        cells: Mapping[str, Columns],
        *,
        suite: str = "release",
        variants: Sequence[str] = (),
        failed: Mapping[str, str] | None = None,
        skipped: Mapping[str, str] | None = None,
        unreliable: Mapping[str, str] | None = None,
        without_shards: Sequence[str] = (),
        gate: Mapping[str, Any] | None = None,
        identity: Mapping[str, str] | None = None,
        limited: bool = False,
    ) -> Run:
        folder = RunFolder(tmp_path / name)
        folder.create()
        manifests = {id: _manifest(id, columns, variants) for id, columns in cells.items()}  # noqa: A001
        for cell, manifest in manifests.items():
            bounds = [*manifest.shards, np.inf]
            for low, high in itertools.pairwise(bounds):
                inside = (cells[cell]["sample_id"] >= low) & (cells[cell]["sample_id"] < high)
                part = {key: values[inside] for key, values in cells[cell].items()}
                write_shard(shard_path(folder.path, manifest.digest, int(low)), part, {"cell": manifest.digest})
        entries = []
        for cell, manifest in manifests.items():
            facts: dict[str, Any] = {"metrics": _metrics(host, cells[cell]), "n": manifest.samples}
            if cell in (unreliable or {}):
                check = {"check": "zero_gradients", "ok": False, "message": (unreliable or {})[cell]}
                facts.update(reliable=False, audit=[check])
            entries.append(_entry(manifest, **facts))
        for status, reasons in (("failed", failed), ("skipped", skipped)):
            for cell, reason in (reasons or {}).items():
                about = _manifest(cell, {"sample_id": np.arange(1)}, ())
                entries.append(_entry(about, status=status, error=reason, reliable=status != "failed"))
        for cell in without_shards:
            shard_path(folder.path, manifests[cell].digest, manifests[cell].shards[-1]).unlink()
        parts = {"dataset": "d", "seed": "0", "threats": "t", "models": "m", **(identity or {})}
        info = {
            "schema": SCHEMA,
            "suite": {"suite": {"name": suite}, "gate": gate},
            "argv": ["harness", "run", "release.toml"],
            "revision": {"commit": "abc", "dirty": False},
            "limited": limited,
            "identity": {**parts, "hash": repr(sorted(parts.items()))},
            "cells": [vars(m) for m in manifests.values()],
        }
        folder.write_json("run.json", info)
        folder.write_json("results.json", {"schema": SCHEMA, "suite": suite, "cells": entries, "summaries": []})
        return load_run(folder.path)

    return write


@pytest.fixture
def attacked() -> Callable[..., dict[str, NDArray[Any]]]:
    """Columns of an attack's cell: `attacked(n, wrong, fallen)`, the first `wrong` samples misclassified from the
    start, the next `fallen` under attack; `shift` moves both along the samples."""

    def columns(n: int, wrong: int = 0, fallen: int = 0, shift: int = 0) -> dict[str, NDArray[Any]]:
        place = (np.arange(n) - shift) % n
        correct = place >= wrong
        success = correct & (place < wrong + fallen)
        linf = np.where(success, 0.1, 0.2)
        return {
            "sample_id": np.arange(n), "label": np.zeros(n, dtype=np.int64), "clean_correct": correct,
            "success": success, "linf": linf, "l2": linf,
        }  # fmt: skip

    return columns


@pytest.fixture
def clean() -> Callable[..., dict[str, NDArray[Any]]]:
    """Columns of a clean cell with the first `wrong` samples misclassified."""

    def columns(n: int, wrong: int = 0, shift: int = 0) -> dict[str, NDArray[Any]]:
        return {"sample_id": np.arange(n), "clean_correct": (np.arange(n) - shift) % n >= wrong}

    return columns
