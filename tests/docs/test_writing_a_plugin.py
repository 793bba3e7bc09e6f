"""The examples of docs/writing-a-plugin.md run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import events, info
from harness.hookspecs import API_VERSION
from harness.host import load_host
from harness.testing import check_model

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "writing-a-plugin.md"
FILE = re.compile(r"<!-- file: (?P<name>\S+) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)
PLUGINS = ("my_model.py", "my_data.py", "my_threat.py", "my_metric.py", "my_log.py")

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not a checkout")


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    for match in FILE.finditer(PAGE.read_text(encoding="utf-8")):
        path = tmp_path / match["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(match["text"], encoding="utf-8")
    return tmp_path


def call(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def harness(*arguments: str) -> list[str]:
    return [shutil.which("harness", path=str(Path(sys.executable).parent)) or "harness", *arguments]


def test_every_python_block_is_run() -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    files = {match["text"]: match["name"] for match in FILE.finditer(page)}
    loose = [block for block in blocks if block not in files]
    assert len(loose) == 1  # the signatures of the hooks
    scope: dict[str, object] = {**vars(info), **vars(events)}
    exec(compile("from __future__ import annotations\n" + loose[0], "hooks", "exec"), scope)
    run = {*PLUGINS, "test_my_plugins.py", "my_quantised.py", "harness-brightness/harness_brightness/__init__.py"}
    assert {name for name in files.values() if name.endswith(".py")} == run | {
        "harness-brightness/harness_brightness/model.py"
    }


def test_the_declared_surrogate_gives_a_gradient(examples: Path) -> None:
    scope: dict[str, Any] = {}
    exec((examples / "my_quantised.py").read_text(), scope)
    x = torch.rand(3, 1, 8, 8, requires_grad=True)
    model = scope["Quantised"]()
    model(x).max().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert torch.equal(model(x), model((x.detach() * 7).round() / 7))


def test_the_tour(examples: Path) -> None:
    (block,) = re.findall(r"<!-- commands -->\n```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "harness"
        done = call(harness(*arguments), examples)
        assert done.returncode == 0, done.stdout + done.stderr
    folder = examples / "runs" / "tour"
    cells = {c["id"]: c for c in json.loads((folder / "results.json").read_text())["cells"]}
    value = {c["threat"]: {name: m["value"] for name, m in c["metrics"].items()} for c in cells.values()}
    assert value["clean"]["clean_accuracy"] == 1.0
    assert 0.5 < value["clean"]["mean_confidence"] <= 1.0
    small, large = (value[f"worst-noise[eps={eps}]"]["robust_accuracy"] for eps in ("1/10", "5/10"))
    assert large <= small <= 1.0
    assert (folder / "cells.txt").read_text().splitlines() == [f"{c} ok" for c in cells]


def test_the_plugins_are_listed(examples: Path) -> None:
    done = call(harness("plugins", "show", "nearest-mean", "-p", "my_model.py"), examples)
    assert done.returncode == 0, done.stderr
    assert "standard deviation of a pixel" in done.stdout


def test_the_conformance_example(examples: Path) -> None:
    done = call([sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "test_my_plugins.py"], examples)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("nearest-mean-checkpoint_round_trip", "nearest-mean-gradients", "worst-noise-batch_invariance"):
        assert name in done.stdout


def test_the_package(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = examples / "harness-brightness"
    dist = project / "harness_brightness-0.1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: harness-brightness\nVersion: 0.1.0\n")
    (dist / "entry_points.txt").write_text("[harness]\nbrightness = harness_brightness\n")
    assert (
        '[project.entry-points.harness]\nbrightness = "harness_brightness"' in (project / "pyproject.toml").read_text()
    )
    monkeypatch.syspath_prepend(project)
    host = load_host()
    assert host.models.owners["brightness"].origin == "harness_brightness of harness-brightness 0.1.0"
    check_model("brightness", {"expected": 0.4}, host=host)


def test_every_check_is_named_on_the_page() -> None:
    from harness.testing.checks_of_models import CHECKS as MODEL_CHECKS
    from harness.testing.checks_of_threats import CHECKS as THREAT_CHECKS

    names = [f.__name__.removeprefix("check_") for f in (*MODEL_CHECKS, *THREAT_CHECKS)]
    page = PAGE.read_text(encoding="utf-8")
    missing = [n for n in (*names, "gradients", "checkpoint_round_trip") if f"`{n}`" not in page]
    assert not missing


def test_the_version_on_the_page() -> None:
    assert f"now {API_VERSION}, raised" in " ".join(PAGE.read_text(encoding="utf-8").split())
