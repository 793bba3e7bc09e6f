"""Through the program: train, run, sample rows, and errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUITE = """
[suite]
name = "sbgc"
dataset = { name = "digits", split = "test", limit = 3 }

[models.mine]
plugin = "sbgc"
checkpoint = "mine.safetensors"
solver = "heun"
steps = 4

[models.fresh]
plugin = "sbgc"
checkpoint = "mine.safetensors"
solver = "heun"
steps = 1
noise = "fresh"

[[threats]]
plugin = "clean"
"""

ATTACKED = """
[suite]
name = "attacked"
dataset = { name = "digits", split = "test", limit = 8 }

[models.sbgc]
plugin = "sbgc"
checkpoint = "builtin:digits-mlp"
steps = 3

[[threats]]
plugin = "clean"

[[threats]]
plugin = "pgd"
eps = [0.02, 0.2]
steps = 5
loss = "margin"

[[threats]]
plugin = "interpolation"
points = 5
"""


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    plugins = ["-p", "harness_sbgc"] if not installed() else []
    return subprocess.run(
        [sys.executable, "-c", "from harness.cli import main; main()", *arguments, *plugins],
        cwd=folder, env={**os.environ, "COLUMNS": "300"}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def installed() -> bool:
    from importlib.metadata import entry_points

    return any(point.value == "harness_sbgc" for point in entry_points(group="harness"))


def test_fit_and_run(tmp_path: Path) -> None:
    recipe = ["network.kind=mlp", "network.width=32", "network.blocks=1", "epochs=20", "lr=5e-3"]
    settings = [part for setting in recipe for part in ("--set", setting)]
    fitted = harness(tmp_path, "fit", "sbgc", "--dataset", "digits:train", "--out", "mine.safetensors", *settings)
    assert fitted.returncode == 0, fitted.stderr
    (tmp_path / "suite.toml").write_text(SUITE)
    run = harness(tmp_path, "run", "suite.toml", "--out", "out", "--workers", "1", "--device", "cpu")
    assert run.returncode in (0, 6), run.stderr + run.stdout
    cells: dict[str, Any] = {
        cell["id"]: cell for cell in json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    }
    clean = next(cell for name, cell in cells.items() if name.startswith("mine/clean"))
    assert clean["metrics"]["clean_accuracy"]["value"] >= 0.5
    assert 1.5 < clean["metrics"]["bits_per_dim"]["value"] < 10
    assert all(cell["status"] == "ok" for cell in cells.values())


@pytest.mark.slow
def test_attacks_and_interpolation(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(ATTACKED)
    run = harness(tmp_path, "run", "suite.toml", "--out", "out", "--workers", "2", "--device", "cpu")
    assert run.returncode in (0, 6), run.stderr + run.stdout
    cells = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert all(cell["status"] == "ok" for cell in cells)
    robust = {c["id"]: c["metrics"]["robust_accuracy"]["value"] for c in cells if "robust_accuracy" in c["metrics"]}
    assert len(robust) == 2
    assert min(robust.values()) < 0.5 <= max(robust.values())


def test_bad_input_is_one_line_each(tmp_path: Path) -> None:
    suite = ["[suite]", 'name = "x"', 'dataset = { name = "digits", split = "test", limit = 2 }']
    bad = {"a": "solver = 'rk45'\nrtol = 0", "b": "probes = 0", "c": "smallest_time = 1.0"}
    for name, options in bad.items():
        suite += [f"[models.{name}]", 'plugin = "sbgc"', options]
    (tmp_path / "suite.toml").write_text("\n".join([*suite, "[[threats]]", 'plugin = "clean"']))
    run = harness(tmp_path, "run", "suite.toml", "--out", "out", "--workers", "1", "--device", "cpu")
    assert run.returncode == 4, run.stdout + run.stderr
    said = run.stderr.splitlines()
    for key in ("models.a (sbgc) rtol", "models.b (sbgc) probes", "models.c (sbgc) smallest_time"):
        assert sum(key in line for line in said) == 1, run.stderr
    assert "Traceback" not in run.stderr


def test_what_fails_a_cell_is_one_line_and_fails_it_alone(tmp_path: Path) -> None:
    suite = ["[suite]", 'name = "x"', 'dataset = { name = "digits", split = "test", limit = 2 }']
    models = {
        "tight": 'mode = "paper"\nprobes = 1\nmax_steps = 3',
        "plain": "conditional = false",
        "missing": 'checkpoint = "builtin:nothing"',
        "good": "steps = 1",
    }
    for name, options in models.items():
        suite += [f"[models.{name}]", 'plugin = "sbgc"', options]
    (tmp_path / "suite.toml").write_text("\n".join([*suite, "[[threats]]", 'plugin = "clean"']))
    run = harness(tmp_path, "run", "suite.toml", "--out", "out", "--workers", "1", "--device", "cpu")
    assert run.returncode == 3, run.stdout + run.stderr
    said = (run.stdout + run.stderr).splitlines()
    assert any("rk45 did not finish within 3 steps; raise max_steps" in line for line in said), said
    assert any("a denoiser without a class embedding, which cannot classify" in line for line in said), said
    assert any("no built-in checkpoint 'nothing'" in line for line in said), said
    assert "Traceback" not in run.stderr
    cells = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert [cell["model"] for cell in cells if cell["status"] == "ok"] == ["good"]
