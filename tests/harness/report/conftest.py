"""Finished run folders, written as the engine writes them, for the tests of reports."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.store import CellManifest, Run, RunFolder, load_run, shard_path, write_shard

SHAPE = (1, 8, 8)
SAMPLES = 24


def clean_images(ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """(B, 1, 8, 8): smooth grey blobs, one for each id."""
    y, x = np.mgrid[0:8, 0:8] / 7.0
    out = [0.5 + 0.4 * np.sin(3 * x + i) * np.cos(2 * y + i) for i in ids]
    return np.stack(out)[:, None].astype(np.float32) if len(out) else np.zeros((0, *SHAPE), np.float32)


def estimate(value: float | None, spread: float = 0.02, **more: Any) -> dict[str, Any]:
    low, high = (None, None) if value is None else (max(value - spread, 0.0), min(value + spread, 1.0))
    return {"value": value, "low": low, "high": high, "n": SAMPLES, **more}


def attack_rows(eps: float, seed: int = 0, success: float = 0.5) -> dict[str, NDArray[Any]]:
    """Rows of an attack whose perturbations fill the ball to different degrees."""
    generator = np.random.default_rng(seed)
    ids = np.arange(SAMPLES, dtype=np.int64)
    x = clean_images(ids)
    sizes = np.linspace(0.2, 1.0, SAMPLES)[generator.permutation(SAMPLES)] * eps
    step = np.sign(generator.standard_normal(x.shape)) * sizes[:, None, None, None]
    adversarial = np.clip(x + step, 0, 1).astype(np.float32)
    difference = (adversarial.astype(np.float64) - x).reshape(SAMPLES, -1)
    correct = ids % 6 != 5
    return {
        "sample_id": ids,
        "label": ids % 3,
        "clean_prediction": np.where(correct, ids % 3, 2 - ids % 3),
        "clean_correct": correct,
        "adversarial_prediction": (ids + 1) % 3,
        "success": correct & (generator.random(SAMPLES) < success),
        "adversarial": adversarial.reshape(SAMPLES, -1),
        "linf": np.abs(difference).max(1),
        "l2": np.sqrt((difference**2).sum(1)),
        "l1": np.abs(difference).sum(1),
        "l0": (difference != 0).sum(1),
    }


def cell(model: str, threat: str, **more: Any) -> dict[str, Any]:
    """An entry of results.json."""
    base: dict[str, Any] = {"id": f"{model}/{threat}/digits", "model": model, "threat": threat, "plugin": threat}
    base |= {"dataset": "digits", "params": {}, "status": "ok", "error": "", "n": SAMPLES}
    return {**base, "metrics": {}, "audit": [], "reliable": True, **more}


def attack_cell(model: str, eps: str, robust: float, **more: Any) -> dict[str, Any]:
    metrics = {
        "clean_accuracy": estimate(0.98),
        "robust_accuracy": estimate(robust),
        "attack_success_rate": estimate(1 - robust),
        "linf_median": estimate(0.08),
    }
    params = {"norm": "linf", "eps": eps, "steps": 40}
    audit = [{"check": "gradients", "ok": True, "message": ""}]
    named = f"pgd[norm=linf,eps={eps}]"
    return cell(model, named, **{"plugin": "pgd", "params": params, "metrics": metrics, "audit": audit, **more})


def write_run(folder: Path, cells: list[dict[str, Any]], rows: dict[str, dict[str, NDArray[Any]]], **info: Any) -> Run:
    """A run folder with these results, and rows for the cells that have some."""
    run = RunFolder(folder)
    run.create()
    manifests = []
    for entry in cells:
        digest = hashlib.sha256(entry["id"].encode()).hexdigest()
        about = {k: entry[k] for k in ("id", "model", "threat", "plugin", "dataset", "params")}
        manifests.append(
            CellManifest(**about, digest=digest, variants=(), samples=SAMPLES, shards=(0,), family="", budget=None)
        )
        if entry["id"] in rows:
            write_shard(shard_path(folder, digest, 0), rows[entry["id"]], {})
    summary = {"metric": "mean_corruption_error", "subject": "plain", "cells": ["a", "b"], **estimate(0.4)}
    run.write_json("results.json", {"schema": 1, "suite": "release", "cells": cells, "summaries": [summary]})
    facts: dict[str, Any] = {
        "schema": 1,
        "suite": {"suite": {"name": "release", "dataset": {"name": "digits"}}, "gate": None},
        "argv": ["harness", "run", "release.toml"],
        "revision": {"commit": "0123abcd", "dirty": True},
        "packages": {"torch": "2.13.0"},
        "plugins": {"attacks": "harness_attacks of harness-robustness 0.1.0"},
        "device": "cpu",
        "seed": 0,
        "workers": 1,
        "limited": False,
        "timings": {"started": 1.7e9, "seconds": 12.3, "cells": {}},
    }
    run.write_json("run.json", {**facts, **info, "cells": [asdict(m) for m in manifests]})
    return load_run(folder)


def release_run(folder: Path) -> Run:
    """Two models under clean, PGD at two eps and OoD; one number unreliable, one cell failed, one skipped."""
    cells, rows = [], {}
    for number, (model, robust) in enumerate((("plain", (0.4, 0.05)), ("adversarial", (0.8, 0.55)))):
        metrics = {"clean_accuracy": estimate(0.98), "expected_calibration_error": estimate(0.02)}
        cells.append(cell(model, "clean", metrics=metrics))
        for eps, value in zip(("8/255", "16/255"), robust, strict=True):
            cells.append(attack_cell(model, eps, value))
            rows[cells[-1]["id"]] = attack_rows(0.2, number, 1 - value)
        scores = {"auroc[uniform]": estimate(0.99), "auroc[constant]": estimate(None, reason="only one image is left")}
        cells.append(cell(model, "ood", metrics=scores))
    failing = {"check": "gradients", "ok": False, "message": "31 % of the samples have a zero gradient"}
    cells[2] |= {"audit": [failing], "reliable": False}
    cells.append(cell("broken", "clean", status="failed", error="logits are not finite for 3 of 24 images", n=0))
    cells.append(cell("density", "clean", status="skipped", error="the threat needs a Classifier", n=0))
    return write_run(folder, cells, rows)


@dataclass(frozen=True)
class Runs:
    """Makes run folders; the functions of this file, for test modules, which cannot import a conftest."""

    folder: Path
    cell = staticmethod(cell)
    attack_cell = staticmethod(attack_cell)
    attack_rows = staticmethod(attack_rows)
    estimate = staticmethod(estimate)
    clean_images = staticmethod(clean_images)

    def release(self) -> Run:
        return release_run(self.folder / "release")

    def write(
        self, cells: list[dict[str, Any]], rows: dict[str, dict[str, NDArray[Any]]] | None = None, **info: Any
    ) -> Run:
        return write_run(self.folder / "run", cells, rows or {}, **info)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)
