"""Accepting a run as a baseline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import HarnessError, StoreError
from harness.gate_options import GateOptions
from harness.gating.baseline import accept
from harness.gating.comparability import IncompleteRunError
from harness.gating.judging import gate
from harness.host import Host
from harness.store import load_run

PGD = "cnn/pgd[eps=8/255]/digits"


@pytest.fixture
def run(write_run: Any, attacked: Any) -> Any:
    columns = {**attacked(400, 4, 40), "adversarial": np.random.default_rng(0).random((400, 64), dtype=np.float32)}
    return write_run("run", {PGD: columns})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_baseline_holds_the_images_that_a_candidate_is_shown(run: Any, tmp_path: Path) -> None:
    kept = load_run(accept(run, "first release", tmp_path / "release"))
    np.testing.assert_array_equal(
        kept.rows(PGD, ["adversarial"])["adversarial"], run.rows(PGD, ["adversarial"])["adversarial"]
    )


def test_a_baseline_gates_without_its_images_too(run: Any, tmp_path: Path, host: Host) -> None:
    folder = accept(run, "first release", tmp_path / "baselines" / "release", images=False)
    kept = load_run(folder)
    assert "adversarial" not in kept.columns(PGD)
    assert kept.complete()
    assert sum(map(len, tree(folder).values())) < sum(map(len, tree(run.folder).values())) / 3
    for name in ("sample_id", "clean_correct", "success"):
        np.testing.assert_array_equal(kept.rows(PGD, [name])[name], run.rows(PGD, [name])[name])
    report = gate(run, kept, GateOptions(), host)
    assert report.exit_code == 0
    about = json.loads((folder / "baseline.json").read_text())
    assert about["reason"] == "first release"
    assert about["identity"] == run.info["identity"]["hash"]
    assert set(about) == {"schema", "suite", "reason", "date", "by", "revision", "identity"}


def test_a_baseline_is_not_overwritten_silently(run: Any, write_run: Any, attacked: Any, tmp_path: Path) -> None:
    to = tmp_path / "kept"
    accept(run, "first", to)
    before = tree(to)
    newer = write_run("newer", {PGD: attacked(400)})
    with pytest.raises(HarnessError, match=r"accepted on .* \(first\); say --replace"):
        accept(newer, "second", to)
    assert tree(to) == before
    accept(newer, "second", to, replace=True)
    assert json.loads((to / "baseline.json").read_text())["reason"] == "second"
    assert load_run(to).cells()[0]["metrics"]["robust_accuracy"]["value"] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "newer", "run"]


def test_a_folder_that_is_no_baseline_is_never_replaced(run: Any, tmp_path: Path) -> None:
    to = tmp_path / "precious"
    to.mkdir()
    (to / "thesis.tex").write_text("ten years")
    for replace in (False, True):
        with pytest.raises(HarnessError, match="is no baseline"):
            accept(run, "why", to, replace=replace)
    assert tree(to) == {"thesis.tex": b"ten years"}
    with pytest.raises(HarnessError, match="is no baseline"):
        accept(run, "why", to / "thesis.tex", replace=True)


def test_runs_that_cannot_gate_are_refused(write_run: Any, attacked: Any, tmp_path: Path) -> None:
    to = tmp_path / "kept"
    limited = write_run("limited", {PGD: attacked(400)}, limited=True)
    failed = write_run("failed", {PGD: attacked(400)}, failed={"mlp/clean/digits": "died"})
    torn = write_run("torn", {PGD: attacked(400)}, without_shards=[PGD])
    for run, message in ((limited, "--limit"), (failed, "mlp/clean/digits failed"), (torn, "lacks rows")):
        with pytest.raises(HarnessError, match=message):
            accept(run, "why", to)
    with pytest.raises(IncompleteRunError):
        accept(torn, "why", to)
    with pytest.raises(HarnessError, match="reason is empty"):
        accept(write_run("fine", {PGD: attacked(400)}), "  ", to)
    assert not to.exists()


def test_a_failure_leaves_what_was_there(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "kept"
    accept(run, "first", to)
    before = tree(to)
    original, calls = os.replace, []

    def full(source: Any, target: Any) -> None:
        calls.append(target)
        if Path(target) == to and len([c for c in calls if Path(c) == to]) == 1:
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="No space left"):
        accept(run, "second", to, replace=True)
    assert tree(to) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "run"]


def test_a_damaged_shard_is_named(run: Any, tmp_path: Path) -> None:
    (path, *_) = run.reader.paths(PGD)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="damaged"):
        accept(run, "why", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
