"""Through the command line: train, run a suite on the result, and what an attack step costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import load_run

SUITE = """
[suite]
name = "flow"
dataset = { name = "digits", split = "test", limit = 24, subset = "stratified" }

[models.flow]
plugin = "ib-inn"
checkpoint = "CHECKPOINT"

[[threats]]
plugin = "clean"

[[threats]]
plugin = "pgd"
norm = "linf"
eps = 0.1
steps = 10
restarts = 1

[[threats]]
plugin = "ood"
sets = ["uniform"]
"""


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from harness.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder, env={**os.environ, "COLUMNS": "300", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def run(folder: Path, checkpoint: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The metrics and the rows of each threat, by its name."""
    (folder / "flow.toml").write_text(SUITE.replace("CHECKPOINT", checkpoint))
    done = cli(folder, "run", "flow.toml", "--out", "out", "--device", "cpu", "--workers", "1", "-p", "harness_ib_inn")
    assert done.returncode in (0, 6), done.stdout + done.stderr
    found = load_run(folder / "out")
    columns = ("sample_id", "forwards", "backwards")
    return {c["threat"]: (c["metrics"], found.rows(c["id"], columns)) for c in found.cells()}


def test_fit_then_run(tmp_path: Path) -> None:
    settings = [f"--set={s}" for s in ("layout=digits", "epochs=2", "beta=inf", "schedule=one-cycle")]
    fitted = cli(
        tmp_path, "fit", "ib-inn", "-p", "harness_ib_inn", "--dataset", "digits:train", "--out", "a.safetensors",
        "--device", "cpu", *settings,
    )  # fmt: skip
    assert fitted.returncode == 0, fitted.stderr
    assert "wrote a.safetensors" in fitted.stdout
    assert "layout digits" in fitted.stdout
    metrics, rows = run(tmp_path, "a.safetensors")["clean"]
    assert metrics["bits_per_dim"]["value"] > 4
    assert len(rows["sample_id"]) == 24


def test_a_shipped_model_under_attack(tmp_path: Path) -> None:
    """What the suite says of it, and that a step of PGD costs one forward and one backward pass."""
    found = run(tmp_path, "builtin:digits-beta8")
    assert found["clean"][0]["clean_accuracy"]["value"] > 0.9
    assert 3 < found["clean"][0]["bits_per_dim"]["value"] < 4.5
    metrics, rows = next(entry for name, entry in found.items() if name.startswith("pgd"))
    assert metrics["robust_accuracy"]["value"] < found["clean"][0]["clean_accuracy"]["value"]
    # A backward pass counts twice; a bit more than a step's share is the judging of the images.
    attacked = rows["backwards"] > 0
    cost = (rows["forwards"] + 2 * rows["backwards"])[attacked] / rows["backwards"][attacked]
    assert cost.max() <= 3.2
    assert "ood" in found


def test_negative_beta_on_the_command_line_is_one_line(tmp_path: Path, one_line: Any) -> None:
    done = cli(
        tmp_path, "fit", "ib-inn", "-p", "harness_ib_inn", "--dataset", "digits:train", "--out", "a.safetensors",
        "--set", "layout=digits", "--set", "beta=-2",
    )  # fmt: skip
    assert done.returncode == 4
    assert "-2 is no weight of L_Y" in one_line(done.stderr)
    assert "beta" in done.stderr
