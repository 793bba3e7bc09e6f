"""`pytest SUITE.toml`: cells and gates as tests."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

# pytester forgets what a session imported, and these cannot be imported twice in one process.
import numpy  # noqa: F401
import PIL.Image  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pydantic  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch  # noqa: F401

pytest_plugins = ["pytester"]

SUITE = """
[suite]
name = "small"
dataset = {{ name = "digits", split = "test", limit = {limit} }}

[models.cnn]
plugin = "torch"
checkpoint = "{checkpoint}"

[[threats]]
plugin = "clean"

[[threats]]
plugin = "pgd"
eps = 0.1
steps = 5
{gate}
"""
GATE = "[gate]\nmax_drop = 0.2"


def run_pytest(pytester: pytest.Pytester, *arguments: str) -> tuple[int, str]:
    """Exit status and output of a session in this process (torch is imported once)."""
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-v", "-rs", "--harness-workers=1", *arguments)
    return int(result.ret), result.stdout.str()


def write_suite(folder: Path, *, checkpoint: str = "builtin:digits-cnn", limit: int = 60, gate: str = GATE) -> Path:
    path = folder / "small.toml"
    path.write_text(SUITE.format(checkpoint=checkpoint, limit=limit, gate=gate))
    return path


def test_one_test_per_cell_with_numbers_in_the_xml(pytester: pytest.Pytester) -> None:
    write_suite(pytester.path)
    status, output = run_pytest(pytester, "small.toml", "--junitxml=out.xml")
    assert status == 0, output
    assert "small.toml::cnn/clean/digits PASSED" in output
    assert "small.toml::cnn/pgd[eps=0.1,steps=5]/digits PASSED" in output
    properties = {p.get("name"): p.get("value") for p in ElementTree.parse(pytester.path / "out.xml").iter("property")}
    assert properties.keys() >= {"clean_accuracy", "robust_accuracy"}


def test_only_the_selected_cells_run(pytester: pytest.Pytester) -> None:
    write_suite(pytester.path)
    status, output = run_pytest(pytester, "small.toml", "-k", "clean")
    assert status == 0, output
    assert len(list((pytester.path / "runs/small/shards").iterdir())) == 1


def test_a_stray_toml_file_is_no_suite(pytester: pytest.Pytester) -> None:
    write_suite(pytester.path)
    assert run_pytest(pytester, ".")[0] == 5


def test_a_wrong_suite_is_told_in_lines(pytester: pytest.Pytester) -> None:
    path = write_suite(pytester.path)
    path.write_text(path.read_text().replace("steps", "stesp"))
    status, output = run_pytest(pytester, "small.toml")
    assert status == 2
    assert "threats[1] (pgd) stesp: unknown key; did you mean 'steps'?" in output
    assert "Traceback" not in output


def test_a_failed_cell_fails_without_a_traceback(pytester: pytest.Pytester) -> None:
    write_suite(pytester.path, checkpoint="missing.safetensors")
    status, output = run_pytest(pytester, "small.toml")
    assert status == 1
    assert "missing.safetensors" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("gate", "words"),
    [(GATE, "gate cnn/clean/digits PASSED"), ("", "cannot exclude a loss of 0.01")],
    ids=["enough samples pass", "too few are skipped with the reason"],
)
def test_a_gate_against_the_same_model(pytester: pytest.Pytester, gate: str, words: str) -> None:
    write_suite(pytester.path, gate=gate)
    run_pytest(pytester, "small.toml", "--harness-out=base")
    status, output = run_pytest(pytester, "small.toml", "--harness-baseline=base")
    assert status == 0, output
    assert words in output


def test_a_gate_against_a_better_model_fails(pytester: pytest.Pytester) -> None:
    write_suite(pytester.path, checkpoint="builtin:digits-cnn-pgd", limit=200)
    run_pytest(pytester, "small.toml", "--harness-out=base")
    write_suite(pytester.path, limit=200)
    status, output = run_pytest(pytester, "small.toml", "--harness-baseline=base")
    assert status == 1, output
    assert "robust_accuracy: regressed" in output
