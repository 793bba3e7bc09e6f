"""The examples of the README and of docs/suites.md run as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- (?:file|suite): (?P<name>\S+) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="not a checkout")


def write_examples(document: str, folder: Path) -> list[str]:
    names = []
    for match in BLOCK.finditer((ROOT / document).read_text(encoding="utf-8")):
        path = folder / match["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(match["text"], encoding="utf-8")
        names.append(match["name"])
    return names


def harness(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("harness", path=str(Path(sys.executable).parent)) or "harness"
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def metric(folder: Path, cell: str, name: str) -> float:
    cells = json.loads((folder / "results.json").read_text())["cells"]
    value: float = next(c for c in cells if c["id"] == cell)["metrics"][name]["value"]
    return value


def test_a_model_without_a_plugin(tmp_path: Path) -> None:
    assert {"my_pkg/nets.py", "mine.toml"} <= set(write_examples("README.md", tmp_path))
    weights = (
        "import torch; from safetensors.torch import save_file; from my_pkg.nets import small_cnn;"
        "torch.manual_seed(0); save_file(small_cnn().state_dict(), 'weights.safetensors')"
    )
    subprocess.run([sys.executable, "-c", weights], cwd=tmp_path, check=True, timeout=120)
    done = harness("run", "mine.toml", "--workers", "1", "--limit", "20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    small = metric(tmp_path / "runs/mine", "mine/pgd[norm=linf,eps=1/16]/digits", "robust_accuracy")
    large = metric(tmp_path / "runs/mine", "mine/pgd[norm=linf,eps=2/16]/digits", "robust_accuracy")
    assert large <= small <= metric(tmp_path / "runs/mine", "mine/clean/digits", "clean_accuracy")


def test_a_model_in_one_file(tmp_path: Path) -> None:
    write_examples("README.md", tmp_path)
    done = harness("run", "one-file.toml", "-p", "my_model.py", "--workers", "2", "--limit", "20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0 <= metric(tmp_path / "runs/one-file", "linear/pgd[eps=0.1]/digits", "robust_accuracy") <= 1
    forgotten = harness("run", "one-file.toml", cwd=tmp_path)
    assert forgotten.returncode == 4
    assert "'my-model' is not a model plugin" in forgotten.stderr


def test_the_suite_of_the_suites_page(tmp_path: Path) -> None:
    assert write_examples("docs/suites.md", tmp_path) == ["release.toml"]
    done = harness("run", "release.toml", "--workers", "1", "--limit", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "runs/release/results.json").read_text())["cells"]
    assert len(cells) == 2 * (1 + 2 + 1 + 1)


def test_documents_name_no_file_that_is_not_there() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"
