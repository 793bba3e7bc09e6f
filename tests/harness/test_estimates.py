"""Rows -> estimates: which metrics apply, what is remembered, and when it is forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.estimates import Estimator, cell_entry, metric_name, one_line
from harness.host import Host, load_host
from harness.info import MetricInfo, resolve
from harness.metrics import Estimate
from harness.store import CellManifest, RowReader, shard_path, write_shard

TOY = str(Path(__file__).parents[1] / "toy" / "toy_plugin.py")


class Counting:
    """Counts how often it is asked."""

    def __init__(self, value: Any = 0.5) -> None:
        self.calls = 0
        self.value = value

    def estimate(self, rows: Mapping[str, Any], level: float) -> dict[str, Estimate]:
        self.calls += 1
        return {"": Estimate(self.value, 0.0, 1.0, len(rows["score"])), "part": Estimate(level, 0.0, 1.0, 1)}


def manifest(digest: str) -> CellManifest:
    return CellManifest("m/t/d", digest, "m", "t", "t", "d", {"eps": "8/255"}, (), 4, (0,), "", None)


def estimator(folder: Path, cell: CellManifest, metric: Any, level: float = 0.9) -> Estimator:
    host = Host()
    host.metrics.items["counted"] = MetricInfo(
        name="counted", summary="", metric=metric, columns=("score",), direction="higher"
    )
    host.metrics.items["other"] = MetricInfo(
        name="other", summary="", metric=Counting(), columns=("absent",), direction="higher"
    )
    return Estimator(RowReader(folder, [cell]), host, level)


@pytest.fixture
def cell(tmp_path: Path) -> CellManifest:
    found = manifest("d" * 64)
    columns = {"sample_id": np.arange(4), "score": np.linspace(0, 1, 4)}
    write_shard(shard_path(tmp_path, found.digest, 0), columns, {})
    return found


def test_metrics_apply_where_their_columns_are(cell: CellManifest, tmp_path: Path) -> None:
    found = estimator(tmp_path, cell, Counting()).cell(cell)
    assert list(found) == ["metrics", "audit", "reliable"]
    assert found["metrics"] == {
        "counted": {"value": 0.5, "low": 0.0, "high": 1.0, "n": 4},
        "counted[part]": {"value": 0.9, "low": 0.0, "high": 1.0, "n": 1},
    }


def test_an_estimate_is_made_once_for_the_same_rows(cell: CellManifest, tmp_path: Path) -> None:
    metric = Counting()
    first = estimator(tmp_path, cell, metric).cell(cell)
    assert estimator(tmp_path, cell, metric).cell(cell) == first
    assert metric.calls == 1


def test_other_rows_and_another_level_are_estimated_anew(cell: CellManifest, tmp_path: Path) -> None:
    metric = Counting()
    estimator(tmp_path, cell, metric).cell(cell)
    estimator(tmp_path, cell, metric, level=0.95).cell(cell)
    other = manifest("e" * 64)
    write_shard(shard_path(tmp_path, other.digest, 0), {"sample_id": np.arange(2), "score": np.ones(2)}, {})
    assert estimator(tmp_path, other, metric).cell(other)["metrics"]["counted"]["n"] == 2
    assert metric.calls == 3


def test_a_remembered_estimate_is_what_was_made(cell: CellManifest, tmp_path: Path) -> None:
    value = 0.1 + 0.2
    first = estimator(tmp_path, cell, Counting(value)).cell(cell)
    again = estimator(tmp_path, cell, Counting(value)).cell(cell)
    assert json.dumps(first) == json.dumps(again)
    assert again["metrics"]["counted"]["value"] == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32(0.5), object()])
def test_what_is_no_finite_number_is_refused(value: Any, cell: CellManifest, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no finite number"):
        estimator(tmp_path, cell, Counting(value)).cell(cell)


def test_an_entry_has_the_keys_of_the_schema() -> None:
    entry = cell_entry(manifest("d"), n=4, reliable=False)
    assert list(entry) == [
        "id", "model", "threat", "plugin", "dataset", "params", "status", "error", "n", "metrics", "audit", "reliable",
    ]  # fmt: skip
    assert (entry["status"], entry["n"], entry["reliable"], entry["params"]) == ("ok", 4, False, {"eps": "8/255"})


def test_names_and_errors_in_one_line() -> None:
    assert metric_name("auroc", "") == "auroc"
    assert metric_name("auroc", "uniform") == "auroc[uniform]"
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"


def test_a_run_whose_numbers_are_known_loads_nothing_heavy_but_torch(workplace: Any) -> None:
    workplace.run()
    code = (
        "import sys\nfrom harness.runner import run\n"
        "run(sys.argv[1], out=sys.argv[2], plugins=(sys.argv[3],), workers=1, device='cpu')\n"
        "heavy = {'scipy', 'sklearn', 'matplotlib', 'pandas', 'art', 'foolbox'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    command = [sys.executable, "-c", code, str(workplace.suite), str(workplace.out), workplace.plugins[0]]
    done = subprocess.run(command, cwd=workplace.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_metric_over_cells_is_made_with_its_options_and_anew_with_others(tmp_path: Path) -> None:
    toys = load_host([TOY])
    found = manifest("d" * 64)
    shades = {"sample_id": np.arange(4), "shade": np.arange(4)}
    write_shard(shard_path(tmp_path, found.digest, 0), shades, {})
    for above, count in ((0, 3), (2, 1), (0, 3)):
        options = {"toy_count": resolve(toys.metrics.get("toy_count").options, "toys").model_validate({"above": above})}
        (summary,) = Estimator(RowReader(tmp_path, [found]), toys, 0.95, options).summaries([found])
        assert (summary["metric"], summary["value"]) == ("toy_count", count)
