"""`kill -9` at any moment: running again goes on, and ends with the same results to the byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

KILLS = 20


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.parquet")}


def kill_after(workplace: Any, seconds: float) -> bool:
    """Start the run, kill its whole process group after so long. Whether it was still running."""
    process = subprocess.Popen(
        workplace.run_command("--workers", "2"), cwd=workplace.folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def prepare(workplace: Any, wait: float) -> tuple[bytes, dict[str, bytes], float]:
    """Small shards that take `wait` seconds each; results, shards and duration of an uninterrupted run."""
    workplace.edit("eps = [0.05, 0.2]", f"eps = [0.05, 0.2]\nwait = {wait}")
    workplace.edit("shard_size = 8", "shard_size = 3")
    whole = workplace.folder / "whole"
    start = time.monotonic()
    command = workplace.run_command("--workers", "2")
    command[command.index(str(workplace.out))] = str(whole)
    subprocess.run(command, cwd=workplace.folder, check=True, stdout=subprocess.DEVNULL)
    return (whole / "results.json").read_bytes(), files(whole), time.monotonic() - start


def check(workplace: Any, results: bytes, shards: dict[str, bytes]) -> None:
    done = workplace.cli(*workplace.run_command("--workers", "2")[3:])
    assert done.returncode == 0, done.stderr
    assert (workplace.out / "results.json").read_bytes() == results
    assert files(workplace.out) == shards
    assert not list(workplace.out.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # many starts of the program, each of which imports torch
def test_a_run_killed_at_20_random_moments_ends_with_the_same_results(workplace: Any) -> None:
    results, shards, duration = prepare(workplace, wait=0.15)
    chance = random.Random(20251122)
    killed, finished = 0, 0
    while killed < KILLS:
        if kill_after(workplace, chance.uniform(0.0, duration)):
            killed += 1
            continue
        finished += 1  # kills add up to a whole run now and then: judge that one, and begin another
        assert (workplace.out / "results.json").read_bytes() == results
        shutil.rmtree(workplace.out)
        assert finished <= KILLS, "runs end before they can be killed"
    check(workplace, results, shards)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # many starts of the program, each of which imports torch
def test_a_run_killed_while_it_writes_ends_with_the_same_results(workplace: Any) -> None:
    """Killed as soon as another shard appears, so that estimates, journal and shards are in the midst of writing."""
    results, shards, _ = prepare(workplace, wait=0.0)
    seen = 0
    for _ in range(6):
        process = subprocess.Popen(
            workplace.run_command("--workers", "2"), cwd=workplace.folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            now = len(list(workplace.out.rglob("*.parquet"))) + len(list(workplace.out.rglob("estimates/*.json")))
            if now > seen + 2:
                seen = now
                break
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert seen
    check(workplace, results, shards)


def test_a_run_killed_once_goes_on(workplace: Any) -> None:
    """The quick form of the above: killed inside the second cell."""
    workplace.edit("shard_size = 8", "shard_size = 4")
    code = (
        "import os, sys, harness.store, harness.evaluate\n"
        "write, count = harness.store.write_shard, [0]\n"
        "def counted(*arguments):\n"
        "    write(*arguments)\n"
        "    count[0] += 1\n"
        "    if count[0] == 11: os.kill(os.getpid(), 9)\n"
        "harness.evaluate.write_shard = counted\n"
        "from harness.cli import main; main()"
    )
    command = workplace.run_command("--workers", "1")
    command[command.index("-c") + 1] = code
    done = subprocess.run(command, cwd=workplace.folder, capture_output=True, check=False)
    assert done.returncode == -9
    assert len(files(workplace.out)) == 11
    assert not (workplace.out / "results.json").exists()
    workplace.run()
    whole = workplace.run(out=workplace.folder / "whole")
    assert (workplace.out / "results.json").read_bytes() == (whole.folder / "results.json").read_bytes()
    assert files(workplace.out) == files(whole.folder)
