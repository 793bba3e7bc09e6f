"""The verdict on a paper's finding, and the difference it rests on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import harness
from harness.errors import HarnessError
from harness.host import load_host

SUITE = """
[suite]
name = "two"
dataset = { name = "digits", split = "test" }

[models.plain]
plugin = "torch"
checkpoint = "builtin:digits-cnn"

[models.pgd]
plugin = "torch"
checkpoint = "builtin:digits-cnn-pgd"

[[threats]]
plugin = "clean"
limit = 100

[[threats]]
plugin = "pgd"
norm = "linf"
eps = 0.1
steps = 5
limit = 100
"""


@pytest.fixture(scope="module")
def findings() -> Iterator[ModuleType]:
    path = Path(__file__).parents[2] / "benchmarks" / "findings.py"
    spec = importlib.util.spec_from_file_location("findings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["findings"] = module  # pydantic looks a class's annotations up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["findings"]


@pytest.mark.parametrize(
    ("interval", "more", "less", "not_more", "equal"),
    [
        ((0.02, 0.08), "reproduced", "contradicted", "contradicted", "undecided"),
        ((-0.08, -0.02), "contradicted", "reproduced", "reproduced", "undecided"),
        ((-0.02, 0.08), "undecided", "undecided", "undecided", "undecided"),
        ((-0.01, 0.01), "undecided", "undecided", "undecided", "reproduced"),
        ((0.06, 0.09), "reproduced", "contradicted", "contradicted", "contradicted"),
    ],
)
def test_verdicts(
    findings: ModuleType, interval: tuple[float, float], more: str, less: str, not_more: str, equal: str
) -> None:
    said = [findings.verdict(*interval, expect, 0.0) for expect in ("more", "less", "not more")]
    assert said == [more, less, not_more]
    assert findings.verdict(*interval, "equal", 0.05) == equal


def test_a_finding_on_a_run(findings: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(SUITE)
    run = harness.run(tmp_path / "two.toml", out=tmp_path / "two", workers=1)
    finding = findings.Finding(
        claim="trained on attacked images, it withstands them better",
        suite="two",
        metric="robust_accuracy",
        first={"model": "pgd", "threat": "pgd*"},
        second={"model": "plain", "threat": "pgd*"},
    )
    metrics = load_host().metrics
    found = findings.difference(run, finding, metrics)
    numbers = {c["model"]: c["metrics"]["robust_accuracy"]["value"] for c in run.cells() if c["plugin"] == "pgd"}
    assert found.value == pytest.approx(numbers["pgd"] - numbers["plain"])
    assert "**reproduced**" in findings.row(run, finding, metrics)
    with pytest.raises(HarnessError, match="2 cells are plain under"):
        findings.find_cell(run, findings.Cell(model="plain"))
