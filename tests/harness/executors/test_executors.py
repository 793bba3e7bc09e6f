"""Rows do not depend on who evaluates them; a worker that dies takes down its cell and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.store import Run

RANDOM = '\n[models.random]\nplugin = "toy-random"\n'


def rows(run: Run) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    return {c["id"]: run.reader.raw(c["id"], run.columns(c["id"])) for c in run.cells()}


def assert_identical(one: Run, other: Run) -> None:
    assert one.results == other.results
    for cell, columns in rows(one).items():
        for name, values in columns.items():
            assert values.tobytes() == rows(other)[cell][name].tobytes(), (cell, name)


def descendants(pid: int) -> list[int]:
    """Processes started by `pid` that are alive, from /proc."""
    out = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == pid and fields[0] != "Z":
            out += [int(entry.name), *descendants(int(entry.name))]
    return out


def alive(pids: list[int]) -> list[int]:
    def running(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return [pid for pid in pids if running(pid)]


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"not within {seconds} s: {what}")


# The same rows


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_rows_are_bit_identical_inline_and_in_worker_processes(workers: int, workplace: Any) -> None:
    workplace.write(workplace.suite.read_text() + RANDOM)
    inline = workplace.run(out=workplace.folder / "a", workers=1)
    assert_identical(inline, workplace.run(out=workplace.folder / "b", workers=workers, executor="processes"))


def test_the_inline_executor_uses_one_thread_and_puts_the_number_back(workplace: Any) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        workplace.run()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


MICROBATCHES = """
[suite]
name = "micro"
dataset = "digits"
shard_size = 64

[models.cnn]
plugin = "torch"
checkpoint = "builtin:digits-cnn"

[[threats]]
plugin = "clean"

[[threats]]
plugin = "pgd"
eps = 0.1
steps = 5
"""


def test_microbatches_agree(workplace: Any) -> None:
    """Single forwards to 1e-5 relative; the verdicts of an attack on 99.5 % of the samples."""
    workplace.write(MICROBATCHES)
    found = {}
    for size in (1, 7, 64):
        options = {"out": workplace.folder / str(size), "overrides": [f"suite.microbatch={size}"], "limit": 200}
        found[size] = rows(workplace.run(**options))
    clean, attacked = list(found[64])
    for size in (1, 7):
        for name, values in found[64][clean].items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found[size][clean][name], values, rtol=1e-5, atol=1e-5)
        agree = found[size][attacked]["success"] == found[64][attacked]["success"]
        assert agree.mean() >= 0.995


# Workers that die


@pytest.mark.parametrize("kind", ["exits", pytest.param("killed", marks=pytest.mark.slow)])
def test_a_worker_that_dies_on_a_shard_fails_that_cell_alone(kind: str, workplace: Any) -> None:
    workplace.write(
        workplace.suite.read_text()
        + f'\n[[threats]]\nplugin = "toy-attack"\nname = "deadly"\neps = 0.1\nkind = "{kind}"\n'
    )
    run = workplace.run(workers=2)
    status = {c["threat"]: (c["status"], c["error"]) for c in run.cells()}
    assert status["deadly"] == (
        "failed",
        "the worker process died 3 times on samples 8 to 15 (killed, or out of memory: try a smaller microbatch)",
    )
    assert {s for name, (s, _) in status.items() if name != "deadly"} == {"ok"}


def test_a_pool_that_broke_once_recovers(workplace: Any) -> None:
    marker = workplace.folder / "died"
    workplace.edit("eps = [0.05, 0.2]", f'eps = [0.05, 0.2]\nkind = "killed once"\nmarker = "{marker}"')
    broken = workplace.run(workers=2)
    assert marker.exists()
    assert {c["status"] for c in broken.cells()} == {"ok"}
    assert_identical(broken, workplace.run(out=workplace.folder / "again", workers=1))


# A run that is killed or interrupted


@pytest.fixture
def running(workplace: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `harness run` on shards that take a while, in a process group of its own; wait until two are finished."""
    workplace.edit("eps = [0.05, 0.2]", "eps = [0.05, 0.2]\nwait = 0.4")
    workplace.edit("shard_size = 8", "shard_size = 2")
    started: list[subprocess.Popen[str]] = []

    def start(*more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            workplace.run_command("--workers", "2", *more), cwd=workplace.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        wait_until(lambda: len(list(workplace.out.rglob("*.parquet"))) > 16, 90, "a first shard of the attack")
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_no_worker_survives_a_killed_parent(running: Callable[..., subprocess.Popen[str]]) -> None:
    process = running()
    family = descendants(process.pid)
    assert len(family) >= 2
    process.kill()
    process.wait()
    wait_until(lambda: not alive(family), 10, f"the end of {family}")


@pytest.mark.parametrize("whole_group", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["group", "parent"])
def test_an_interrupt_ends_quickly_and_the_run_goes_on_later(
    whole_group: bool, workplace: Any, running: Callable[..., subprocess.Popen[str]]
) -> None:
    process = running()
    family = descendants(process.pid)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 2, error
    # click ends the line on which the terminal shows ^C
    assert error == "\nharness: interrupted; what was finished is kept, and the same command goes on from there\n"
    wait_until(lambda: not alive(family), 5, f"the end of {family}")
    assert not (workplace.out / "results.json").exists()
    assert not list(workplace.out.rglob("*.part"))
    kept = {path: path.stat().st_mtime_ns for path in workplace.out.rglob("*.parquet")}
    assert 0 < len(kept) < 45
    run = workplace.run(workers=2)
    assert {c["status"] for c in run.cells()} == {"ok"}
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "finished shards are not made again"
