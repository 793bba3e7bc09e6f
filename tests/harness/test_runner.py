"""Runs from end to end in this process: results, reuse, damage, full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import hookimpl
from harness.errors import HarnessError, StoreError
from harness.host import load_host
from harness.runner import RunOptions, data_root, pick_device, run, safe_name
from harness.store import Run, load_run, shard_path

ENTRY = ["id", "model", "threat", "plugin", "dataset", "params", "status", "error", "n", "metrics", "audit", "reliable"]


def everything(value: Any) -> Iterator[Any]:
    """All keys and values of a JSON document."""
    yield value
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from everything(item)
    elif isinstance(value, list):
        for item in value:
            yield from everything(item)


def shard_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


# What a run leaves


def test_results_have_the_keys_of_the_schema_in_order(workplace: Any) -> None:
    workplace.write(
        workplace.suite.read_text()
        + '\n[models.flow]\nplugin = "toy-density"\n[models.bad]\nplugin = "toy-model"\nkind = "nan"\n'
    )
    results = workplace.run().results
    assert json.loads((workplace.out / "results.json").read_text()) == results
    assert list(results) == ["schema", "suite", "cells", "summaries"]
    assert (results["schema"], results["suite"]) == (1, "tiny")
    assert all(list(cell) == ENTRY for cell in results["cells"])
    states = {cell["id"]: cell["status"] for cell in results["cells"]}
    assert list(states.values()) == ["ok"] * 4 + ["skipped"] * 2 + ["failed"] * 3
    attack = results["cells"][1]
    assert (attack["n"], attack["error"], attack["reliable"]) == (30, "", True)
    assert attack["params"]["eps"] == "0.05"
    for name in ("clean_accuracy", "robust_accuracy", "attack_success_rate", "linf_median", "l2_median"):
        estimate = attack["metrics"][name]
        assert list(estimate)[:4] == ["value", "low", "high", "n"]
        assert estimate["value"] is None or estimate["low"] <= estimate["value"] <= estimate["high"]
    assert all(list(check) == ["check", "ok", "message"] for check in attack["audit"])
    assert results["cells"][-1]["reliable"] is False
    for summary in results["summaries"]:
        assert list(summary)[:7] == ["metric", "subject", "cells", "value", "low", "high", "n"]
        assert set(summary["cells"]) <= states.keys()


def test_results_hold_no_time_path_or_worker_count(workplace: Any) -> None:
    results = workplace.run().results
    words = [item for item in everything(results) if isinstance(item, str)]
    assert not [w for w in words if str(workplace.folder) in w or w.startswith("/")]
    assert not {"seconds", "workers", "started", "timings", "time", "host", "device"} & set(words)


def test_run_json_says_how_the_run_was_made(workplace: Any) -> None:
    info = workplace.run(limit=9).info
    expected = {"schema", "suite", "argv", "revision", "packages", "plugins", "device", "seed", "workers", "limited"}
    assert expected | {"identity", "cells", "timings"} <= info.keys()
    assert set(info["identity"]) == {"dataset", "seed", "threats", "models", "hash"}
    assert info["limited"] is True
    assert info["suite"]["suite"]["shard_size"] == 8
    assert info["packages"]["torch"]
    assert [c["samples"] for c in info["cells"]] == [9, 9, 9]


def test_the_journal_is_one_json_document_a_line(workplace: Any) -> None:
    workplace.run()
    events = [json.loads(line)["event"] for line in (workplace.out / "journal.jsonl").read_text().splitlines()]
    assert events[0] == "run_started"
    assert events[-1] == "run_finished"
    assert events.count("shard_finished") == 12
    assert events.count("cell_finished") == 3


# Budgets


def test_robust_accuracy_never_rises_with_the_budget_and_the_audit_says_where_it_did(workplace: Any) -> None:
    workplace.edit("eps = [0.05, 0.2]", 'eps = [0.2, 0.1]\nkind = "worse when stronger"')
    found = workplace.run()
    _, large, small = found.cells()
    assert (large["error"], small["error"]) == ("", "")
    assert (large["params"]["eps"], small["params"]["eps"]) == ("0.2", "0.1")
    raw = found.reader.raw(large["id"], ["success"])["success"]
    shared = found.rows(large["id"], ["success", "linf", "adversarial"])
    lesser = found.rows(small["id"], ["success", "linf", "adversarial"])
    assert not raw.any()
    assert lesser["success"].any()
    assert np.array_equal(shared["success"], lesser["success"])
    taken = lesser["success"]
    assert np.array_equal(shared["linf"][taken], lesser["linf"][taken])
    assert np.array_equal(shared["adversarial"][taken], lesser["adversarial"][taken])
    assert (shared["linf"][~taken] == 0).all()
    assert large["metrics"]["robust_accuracy"] == small["metrics"]["robust_accuracy"]
    assert large["reliable"] is False
    assert small["reliable"] is True
    assert [check for check in large["audit"] if not check["ok"]]


def test_a_failed_smaller_budget_leaves_the_larger_its_own_rows(workplace: Any) -> None:
    workplace.edit("eps = [0.05, 0.2]", 'eps = [0.05, 0.2]\nkind = "outside at small"')
    _, small, large = workplace.run().cells()
    assert small["status"] == "failed"
    assert "outside the budget" in small["error"]
    assert large["status"] == "ok"


# Faults stay where they are


@pytest.mark.parametrize("kind", ["outside", "nan image", "short", "object", "raises", "nothing", "spoils clean"])
def test_a_bad_threat_fails_its_cells_and_no_other(kind: str, workplace: Any) -> None:
    workplace.write(
        workplace.suite.read_text()
        + f'\n[[threats]]\nplugin = "toy-attack"\nname = "bad"\neps = 0.1\nkind = "{kind}"\nat = 20\n'
    )
    found = workplace.run()
    assert {c["threat"]: c["status"] for c in found.cells()} == {
        "clean": "ok", "toy-attack[eps=0.05]": "ok", "toy-attack[eps=0.2]": "ok", "bad": "failed",
    }  # fmt: skip
    (bad,) = (c for c in found.cells() if c["threat"] == "bad")
    assert bad["error"]
    assert "\n" not in bad["error"]
    assert not found.complete() or kind == "nothing"


METRIC = """
from harness import Estimate, MetricInfo, hookimpl


class Broken:
    def estimate(self, rows, level):
        {cell}

    def summarise(self, cells, level):
        {group}


@hookimpl
def register_metrics(register):
    for scope in ("cell", "group"):
        register(MetricInfo(name="broken_" + scope, summary="", metric=Broken(), columns=("success",),
                            direction="none", scope=scope))
"""


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("raise ValueError('two\\nlines')", "metric 'broken_cell': ValueError: two lines"),
        ("return {'': Estimate(float('nan'), 0.0, 1.0, 3)}", "is no finite number"),
        ("return {'': Estimate(object(), 0.0, 1.0, 3)}", "is no finite number"),
        ("return 3", "AttributeError"),
    ],
)
def test_a_broken_metric_fails_the_cells_it_is_for(cell: str, message: str, workplace: Any) -> None:
    plugin = workplace.write(METRIC.format(cell=cell, group="return []"), "metric.py")
    clean, *attacks = workplace.run(plugins=(*workplace.plugins, str(plugin))).cells()
    assert clean["status"] == "ok"
    for attack in attacks:
        assert attack["status"] == "failed"
        assert message in attack["error"]
        assert "\n" not in attack["error"]
    assert {c["status"] for c in workplace.run().cells()} == {"ok"}, (
        "its rows are there: without the metric all is well"
    )


def test_a_broken_group_metric_is_an_undefined_number(workplace: Any) -> None:
    text = METRIC.format(cell="return {}", group="raise ValueError('no')")
    plugin = workplace.write(text, "metric.py")
    found = workplace.run(plugins=(*workplace.plugins, str(plugin)))
    assert {c["status"] for c in found.cells()} == {"ok"}
    (summary,) = (s for s in found.results["summaries"] if s["metric"] == "broken_group")
    assert (summary["value"], summary["reason"]) == (None, "ValueError: no")


def test_an_executor_that_loses_shards_is_noticed(workplace: Any) -> None:
    plugin = workplace.write(
        "from harness import ExecutorInfo, hookimpl\n\n\n"
        "class Lazy:\n    def __init__(self, context):\n        pass\n\n"
        "    def run(self, tasks, wanted):\n        return iter(())\n\n\n"
        "@hookimpl\ndef register_executors(register):\n"
        "    register(ExecutorInfo(name='lazy', summary='', factory=Lazy))\n",
        "lazy.py",
    )
    found = workplace.run(plugins=(*workplace.plugins, str(plugin)), executor="lazy")
    assert {(c["status"], c["error"]) for c in found.cells()} == {("failed", "4 of 4 shards were never evaluated")}


# Reuse


def finished(place: Any) -> tuple[Run, bytes]:
    found = place.run()
    return found, (place.out / "results.json").read_bytes()


def test_what_is_finished_is_reused(workplace: Any) -> None:
    _, before = finished(workplace)
    times = shard_times(workplace.out)
    _, after = finished(workplace)
    assert before == after
    assert shard_times(workplace.out) == times


def test_a_new_cell_runs_alone(workplace: Any) -> None:
    finished(workplace)
    times = shard_times(workplace.out)
    workplace.edit("eps = [0.05, 0.2]", "eps = [0.05, 0.1, 0.2]")
    workplace.run()
    now = shard_times(workplace.out)
    assert {path: now[path] for path in times} == times
    assert len(now) == len(times) + 4


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def swap(path: Path) -> None:
    """The next shard of the same cell in this one's place."""
    path.write_bytes(path.with_name("16.parquet").read_bytes())


@pytest.mark.parametrize("damage", [truncate, empty, remove, swap])
def test_a_damaged_or_foreign_shard_is_evaluated_again(damage: Callable[[Path], None], workplace: Any) -> None:
    found, before = finished(workplace)
    times = shard_times(workplace.out)
    manifest = found.reader.cells["rows/toy-attack[eps=0.2]/toy"]
    path = shard_path(workplace.out, manifest.digest, 8)
    damage(path)
    (workplace.out / "results.json").unlink()
    assert finished(workplace)[1] == before
    now = shard_times(workplace.out)
    assert {p for p in now if now[p] != times[p]} == {path}


def test_a_shard_damaged_inside_a_page_is_made_again(workplace: Any) -> None:
    import pyarrow.parquet as pq

    found, before = finished(workplace)
    path = shard_path(workplace.out, found.reader.cells["rows/toy-attack[eps=0.2]/toy"].digest, 8)
    metadata = pq.read_metadata(path)
    names = [metadata.row_group(0).column(i).path_in_schema for i in range(metadata.num_columns)]
    column = metadata.row_group(0).column(names.index("linf"))
    content = bytearray(path.read_bytes())
    content[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    found, after = finished(workplace)
    assert after == before
    events = [json.loads(line) for line in (workplace.out / "journal.jsonl").read_text().splitlines()]
    last = max(i for i, event in enumerate(events) if event["event"] == "run_started")
    again = [event for event in events[last:] if event["event"] == "shard_finished"]
    assert [(event["cell"], event["first_id"]) for event in again] == [("rows/toy-attack[eps=0.2]/toy", 8)]
    assert path.read_bytes() != bytes(content)


def test_half_an_estimate_is_made_again(workplace: Any) -> None:
    _, before = finished(workplace)
    for path in (workplace.out / "estimates").iterdir():
        path.write_text(path.read_text()[:-5])
    assert finished(workplace)[1] == before


def test_an_unfinished_run_is_no_run(workplace: Any) -> None:
    finished(workplace)
    workplace.edit("eps = [0.05, 0.2]", 'eps = [0.05, 0.3]\nkind = "interrupts"')
    with pytest.raises(KeyboardInterrupt):
        workplace.run()
    with pytest.raises(HarnessError, match="the run did not finish; run it again"):
        load_run(workplace.out)


# A disk that is full


@pytest.mark.parametrize("name", ["8.parquet", "results.json", "run.json", "journal.jsonl", "estimates"])
def test_a_full_disk_ends_the_run_in_one_line(name: str, workplace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, opened = os.replace, Path.open

    def full_replace(source: str, target: str | Path) -> None:
        if name in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    def full_open(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_replace)
        patch.setattr(Path, "open", full_open)
        with pytest.raises(StoreError, match="No space left on device") as caught:
            workplace.run()
        assert "\n" not in str(caught.value)
        assert not (workplace.out / "results.json").exists()
    assert not list(workplace.out.rglob("*.part"))
    _, after = finished(workplace)
    assert {c["status"] for c in json.loads(after)["cells"]} == {"ok"}


def test_a_disk_that_is_really_full(workplace: Any) -> None:
    """On a file system of 64 KiB; needs the right to mount one."""
    mount = workplace.folder / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mount)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
    try:
        with pytest.raises(StoreError, match="No space left on device"):
            workplace.run(out=mount / "out")
        assert not list(mount.rglob("*.part"))
        assert not (mount / "out" / "results.json").exists()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# Options


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("release", "release"),
        ("../../etc", "etc"),
        ("a b/c", "a-b-c"),
        ("...", "suite"),
        ("x" * 200, "x" * 80),
        ("-", "suite"),
    ],
)
def test_a_suite_name_cannot_leave_the_runs_folder(name: str, folder: str) -> None:
    assert safe_name(name) == folder


def test_the_run_folder_is_named_after_the_suite(workplace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace.folder)
    found = run(workplace.suite, plugins=workplace.plugins, workers=1, device="cpu")
    assert found.folder == workplace.folder / "runs" / "tiny"


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:-1", "cuda:99", ""])
def test_a_wrong_device_is_refused(device: str) -> None:
    with pytest.raises(HarnessError, match=f"--device {device}"):
        pick_device(device)


def test_the_cpu_is_taken_when_asked_for() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda:0")


def test_the_data_root_is_the_option_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    assert data_root(None) == tmp_path
    (tmp_path / "x").mkdir()
    assert data_root(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv("HARNESS_DATA", "")
    assert data_root(None) is None
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "absent"))
    with pytest.raises(HarnessError, match=r"data root .*absent is not a folder"):
        data_root(None)


def test_nothing_is_written_where_the_call_is_wrong(workplace: Any) -> None:
    for wrong in ({"device": "tpu"}, {"data_root": workplace.folder / "absent"}, {"executor": "ry"}, {"only": ("x",)}):
        with pytest.raises(HarnessError):
            workplace.run(**wrong)
    assert not workplace.out.exists()


def test_options_of_a_run_change_no_number(workplace: Any) -> None:
    _, before = finished(workplace)
    options = RunOptions(out=workplace.folder / "b", workers=1, device="cpu", plugins=workplace.plugins, fresh=True)
    run(workplace.suite, options)
    assert (workplace.folder / "b" / "results.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_ends_the_run_all_the_same(workplace: Any) -> None:
    """In a finaliser a KeyboardInterrupt is printed and forgotten."""
    host = load_host(workplace.plugins)

    class Dropped:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # until the handler has run
                pass

    class Observer:
        @hookimpl
        def shard_finished(self, event: Any) -> None:
            Dropped()

    host.observe(Observer(), "dropper")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        workplace.run(host=host)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(list(workplace.out.rglob("*.parquet"))) == 1
