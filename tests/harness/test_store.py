"""The run folder: files whole or absent, damage noticed, rows read back with successes shared."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.checkpoints import write_atomically
from harness.errors import HarnessError, MissingDataError, StoreError
from harness.store import CellManifest, RowReader, Run, RunFolder, load_run, shard_facts, shard_path, write_shard

FACTS = {"cell": "d", "samples": "3"}


def columns(n: int = 3, **more: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"sample_id": np.arange(n), "success": np.zeros(n, dtype=bool), **more}


def manifest(id: str = "m/t/d", digest: str = "d" * 64, **changes: Any) -> CellManifest:  # noqa: A002
    values: dict[str, Any] = {
        "id": id, "digest": digest, "model": "m", "threat": "t", "plugin": "t", "dataset": "d", "params": {},
        "variants": (), "samples": 3, "shards": (0,), "family": "", "budget": None,
    }  # fmt: skip
    return CellManifest(**{**values, **changes})


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


# Shards


@pytest.mark.parametrize(
    "values",
    [
        np.array([True, False, True]),
        np.array([1, -(2**62), 3]),
        np.array([0.1, np.nan, np.inf]),
        np.array([0.1, 0.2, 0.3], dtype=np.float32),
        np.array(["a", "déjà", ""]),
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(3, dtype=np.int32),
    ],
    ids=lambda v: f"{v.dtype}-{v.ndim}d",
)
def test_a_column_is_read_back_as_it_was_written(values: NDArray[Any], tmp_path: Path) -> None:
    cell = manifest()
    write_shard(shard_path(tmp_path, cell.digest, 0), columns(x=values), FACTS)
    found = RowReader(tmp_path, [cell]).raw(cell.id, ["x"])["x"]
    np.testing.assert_array_equal(found, values)
    if values.dtype.kind != "U":
        assert found.dtype == values.dtype


def test_images_are_read_back_flat_and_exact(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 2, 4, 4), dtype=np.float32)
    cell = manifest()
    write_shard(shard_path(tmp_path, cell.digest, 0), columns(adversarial=images), FACTS)
    found = RowReader(tmp_path, [cell]).raw(cell.id, ["adversarial"])["adversarial"]
    assert np.array_equal(found.reshape(images.shape), images)


def test_a_shard_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    write_shard(path, columns(), FACTS)
    assert shard_facts(path) == FACTS
    assert names(tmp_path) == ["0.parquet"]


def test_no_file_no_facts(tmp_path: Path) -> None:
    assert shard_facts(tmp_path / "0.parquet") is None
    (tmp_path / "1.parquet").mkdir()
    assert shard_facts(tmp_path / "1.parquet") is None


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_truncated_shard_has_no_facts(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("shard") / "0.parquet"
    write_shard(path, columns(), FACTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert shard_facts(path) is None


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100, b"{}", os.urandom(500)])
def test_a_foreign_file_has_no_facts(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    path.write_bytes(content)
    assert shard_facts(path) is None


def test_a_parquet_file_of_somebody_else_has_no_facts(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1]}), tmp_path / "0.parquet")
    assert shard_facts(tmp_path / "0.parquet") is None


def test_damage_inside_a_page_is_noticed(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    cell = manifest(samples=1000)
    path = shard_path(tmp_path, cell.digest, 0)
    write_shard(path, {"noise": np.random.default_rng(0).random(1000)}, FACTS)
    page = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    first = page.dictionary_page_offset or page.data_page_offset
    content[first + page.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    assert shard_facts(path) is None  # though the footer is whole: the next run makes it again
    with pytest.raises(StoreError, match=r"0\.parquet cannot be read .*; delete it and run again") as caught:
        RowReader(tmp_path, [cell]).raw(cell.id, ["noise"])
    assert "\n" not in str(caught.value)


def test_a_missing_shard_and_a_missing_column_are_named(tmp_path: Path) -> None:
    cell = manifest(shards=(0, 3))
    write_shard(shard_path(tmp_path, cell.digest, 0), columns(), FACTS)
    reader = RowReader(tmp_path, [cell])
    assert not reader.is_complete(cell.id)
    assert reader.columns(cell.id) == {"sample_id", "success"}
    with pytest.raises(StoreError, match=r"3\.parquet cannot be read"):
        reader.raw(cell.id, ["success"])
    write_shard(shard_path(tmp_path, cell.digest, 3), columns(), FACTS)
    with pytest.raises(StoreError, match="has no column 'linf'"):
        reader.raw(cell.id, ["linf"])


def test_shards_of_different_types_are_one_line(tmp_path: Path) -> None:
    cell = manifest(shards=(0, 3))
    write_shard(shard_path(tmp_path, cell.digest, 0), columns(x=np.zeros(3)), FACTS)
    write_shard(shard_path(tmp_path, cell.digest, 3), columns(x=np.array(["a", "b", "c"])), FACTS)
    with pytest.raises(StoreError, match="differ in the types of their columns"):
        RowReader(tmp_path, [cell]).raw(cell.id, ["x"])


# Successes shared over budgets


def family(folder: Path, successes: list[list[bool]]) -> list[CellManifest]:
    """Cells at budgets 1, 2, ... with these successes; the perturbation of a row is its cell's budget."""
    cells = []
    for place, row in enumerate(successes, start=1):
        cell = manifest(f"m/t{place}/d", f"{place}" * 64, family="f", budget=float(place))
        success = np.array(row)
        outcome = {"success": success, "linf": np.full(len(row), float(place)), "steps": np.full(len(row), place)}
        write_shard(shard_path(folder, cell.digest, 0), {"sample_id": np.arange(len(row)), **outcome}, FACTS)
        cells.append(cell)
    return cells


def test_a_success_at_a_smaller_budget_is_taken_over_with_its_norms(tmp_path: Path) -> None:
    cells = family(tmp_path, [[True, False, True, False], [False, True, True, False]])
    reader = RowReader(tmp_path, cells)
    rows = reader.rows("m/t2/d", ["success", "linf", "steps"])
    assert rows["success"].tolist() == [True, True, True, False]
    assert rows["linf"].tolist() == [1.0, 2.0, 2.0, 2.0]
    assert rows["steps"].tolist() == [2, 2, 2, 2], "columns that describe no image are the cell's own"
    assert reader.raw("m/t2/d", ["success"])["success"].tolist() == [False, True, True, False]
    assert reader.rows("m/t1/d", ["success"])["success"].tolist() == [True, False, True, False]


@settings(deadline=None, max_examples=30)
@given(successes=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_shared_successes_never_fall_with_the_budget(
    successes: list[list[bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("family")
    cells = family(folder, successes)
    reader = RowReader(folder, cells)
    shared = np.array([reader.rows(c.id, ["success"])["success"] for c in cells])
    assert (np.diff(shared.astype(int), axis=0) >= 0).all()
    assert (shared == np.logical_or.accumulate(np.array(successes), axis=0)).all()
    norms = np.array([reader.rows(c.id, ["linf"])["linf"] for c in cells])
    assert (norms <= np.arange(1, len(cells) + 1)[:, None]).all()


def test_an_incomplete_smaller_budget_is_not_shared(tmp_path: Path) -> None:
    small, large = family(tmp_path, [[True, True], [False, False]])
    shard_path(tmp_path, small.digest, 0).unlink()
    assert not RowReader(tmp_path, [small, large]).rows(large.id, ["success"])["success"].any()


def test_other_families_and_other_samples_are_not_shared(tmp_path: Path) -> None:
    small, large = family(tmp_path, [[True, True], [False, False]])
    foreign = CellManifest(**{**vars(small), "family": "g"})
    assert not RowReader(tmp_path, [foreign, large]).rows(large.id, ["success"])["success"].any()
    shifted = {
        "sample_id": np.array([1, 2]),
        "success": np.array([True, True]),
        "linf": np.ones(2),
        "steps": np.ones(2),
    }
    write_shard(shard_path(tmp_path, small.digest, 0), shifted, FACTS)
    assert RowReader(tmp_path, [small, large]).rows(large.id, ["success"])["success"].tolist() == [False, True]


# Files whole or absent


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "f"
    write_atomically(path, b"old")
    write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "0.parquet"
    write_shard(path, columns(), FACTS)
    before = path.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    with pytest.raises(StoreError, match=r"cannot write .*0\.parquet: No space left on device"):
        write_shard(path, columns(5), FACTS)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["0.parquet"]


def test_json_is_written_with_all_digits_and_refuses_nan(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    path = folder.write_json("x.json", {"b": 0.1 + 0.2, "a": "déjà"})
    assert path.read_text() == '{\n "b": 0.30000000000000004,\n "a": "déjà"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("x.json", {"b": float("nan")})
    assert json.loads(path.read_text())["a"] == "déjà"


@pytest.mark.parametrize("where", ["file/run", "/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_made_is_one_line(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HarnessError, match=r"cannot write to .*; choose another --out") as caught:
        RunFolder(tmp_path / where).create()
    assert "\n" not in str(caught.value)


def test_an_error_file_is_named_whatever_the_cell_is_called(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).write_error("m/../../t[eps=8/255]/d", "Traceback")
    assert path.parent == tmp_path / "errors"
    assert path.read_text() == "m/../../t[eps=8/255]/d\n\nTraceback"


# One run at a time


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.create()
    with first.locked(), pytest.raises(HarnessError, match="in use by another run"), second.locked():
        pytest.fail("two runs at once")
    with second.locked():
        assert True, "the lock was given back"


def test_the_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from harness.store import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1])); folder.create()\n"
        "with folder.locked(): os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    with RunFolder(tmp_path).locked():
        assert (tmp_path / ".lock").exists()


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    leftover = tmp_path / "shards" / "abc" / ".0.parquet.xyz.part"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    with folder.locked():
        assert not leftover.exists()


def test_fresh_forgets_everything_computed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    write_shard(shard_path(tmp_path, "d" * 64, 0), columns(), FACTS)
    folder.write_json("results.json", {})
    folder.write_json("estimates/x.json", {})
    folder.journal("e")
    (tmp_path / "notes.txt").write_text("mine")
    folder.clear()
    assert names(tmp_path) == ["notes.txt"], "what is not the harness's stays"


# Reading a run


def finished(folder: Path, **changes: Any) -> Path:
    cell = manifest()
    write_shard(shard_path(folder, cell.digest, 0), columns(), FACTS)
    entry = {k: getattr(cell, k) for k in ("id", "model", "threat", "plugin", "dataset", "params")}
    results = {"schema": 1, "suite": "s", "cells": [{**entry, "status": "ok"}], "summaries": []}
    run = {"schema": 1, "cells": [vars(cell)]}
    RunFolder(folder).write_json("results.json", changes.get("results", results))
    RunFolder(folder).write_json("run.json", changes.get("run", run))
    return folder


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    run = load_run(finished(tmp_path))
    assert isinstance(run, Run)
    assert [c["id"] for c in run.cells()] == ["m/t/d"]
    assert run.complete()
    assert run.variants("m/t/d") == ()
    assert run.rows("m/t/d", ["sample_id"])["sample_id"].tolist() == [0, 1, 2]
    shard_path(tmp_path, "d" * 64, 0).unlink()
    assert not load_run(tmp_path).complete()


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no such folder"):
        load_run(tmp_path / "absent")
    with pytest.raises(MissingDataError, match=r"no results\.json in it: the run did not finish; run it again"):
        load_run(tmp_path)
    finished(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(MissingDataError, match=r"no run\.json"):
        load_run(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 2}', '{"schema": 1}', "\x00"])
def test_a_damaged_file_is_one_line(text: str, tmp_path: Path) -> None:
    for name in ("results.json", "run.json"):
        finished(tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(HarnessError) as caught:
            load_run(tmp_path)
        assert "\n" not in str(caught.value)


def test_files_of_two_runs_are_not_read_as_one(tmp_path: Path) -> None:
    finished(tmp_path, run={"schema": 1, "cells": []})
    with pytest.raises(HarnessError, match=r"of different runs \(m/t/d\); run it again"):
        load_run(tmp_path)
