"""What the engine costs beside the attack it runs, and what memory it takes.

python benchmarks/engine.py overhead      # a whole run against the calls of its attack
python benchmarks/engine.py memory        # peak resident memory from 1,000 to 100,000 samples of an npz on disk
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SUITE = """
[suite]
name = "engine"
dataset = {{ name = "npz", path = "{path}", levels = 256 }}

[models.cnn]
plugin = "torch"
checkpoint = "builtin:digits-cnn-pgd"

[[threats]]
{threat}
"""
PGD_TABLE = 'plugin = "pgd"\neps = 0.2\nsteps = 40\nrestarts = 2'
CLEAN = 'plugin = "clean"'


def write_images(path: Path, count: int) -> None:
    """`count` noisy copies of the digits as an uncompressed npz, written in pieces."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    generator = np.random.default_rng(0)
    index = np.arange(count) % len(digits.images)
    x = (digits.images[index] * 15 + generator.integers(0, 16, (count, 8, 8))).clip(0, 255).astype(np.uint8)
    np.savez(path, x=x, y=digits.target[index].astype(np.int64))


def overhead(samples: int, rounds: int) -> None:
    """What a whole in-process run takes beside the attack called directly.

    That is the threat's `run` and the clean predictions that it needs (it leaves alone what is wrong already).
    Both are processor time of one thread in one process, measured in the same run: two runs in turn would differ by
    more than what is looked for. Counting evaluations happens inside the attack: benchmarks/pgd.py holds the loop
    with it against a bare one.
    """
    import torch
    from harness_attacks.pgd import PGD

    from harness.host import load_host
    from harness.loading import build_model, open_dataset
    from harness.runner import RunOptions, run
    from harness.suite import load_suite

    inside = 0.0
    attack = PGD.run

    def timed(self: PGD, model: Any, batch: Any) -> Any:
        nonlocal inside
        start = time.process_time()
        try:
            return attack(self, model, batch)
        finally:
            inside += time.process_time() - start

    PGD.run = timed  # type: ignore[method-assign]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "x.npz", samples)
        (root / "suite.toml").write_text(SUITE.format(path=root / "x.npz", threat=PGD_TABLE))
        host = load_host()
        suite = load_suite(root / "suite.toml", host)
        # What is imported on first use is not the engine's cost.
        run(suite, RunOptions(out=root / "warm-up", workers=1, limit=64), host=host)
        data = open_dataset(suite.dataset, host, root)
        model = build_model(suite.models[0], data.facts, "cpu", root).model
        shares = []
        for _ in range(rounds):
            start = time.process_time()
            with torch.no_grad():
                for first in range(0, len(data), 256):
                    model.logits(data.load(data.ids[first : first + 256])[0])
            inside = time.process_time() - start
            start = time.process_time()
            run(suite, RunOptions(out=root / "run", workers=1, fresh=True), host=host)
            whole = time.process_time() - start
            shares.append(whole / inside - 1)
            print(f"attack {inside:6.2f} s   whole run {whole:6.2f} s   overhead {100 * shares[-1]:.2f} %")
    print(f"{samples} samples, PGD as in the quickstart: median overhead {100 * statistics.median(shares):.2f} %")


def memory(counts: list[int]) -> None:
    """Peak resident memory of a whole run, each in a process of its own."""
    code = (
        "import resource, sys; from harness.cli import _status;"
        "status = _status(sys.argv[1:]);"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, status)"
    )
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for count in counts:
            write_images(root / f"{count}.npz", count)
            suite = root / f"{count}.toml"
            suite.write_text(SUITE.format(path=root / f"{count}.npz", threat=CLEAN))
            arguments = ["run", str(suite), "--workers", "1", "--out", str(root / str(count))]
            done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
            line = next(line for line in done.stdout.splitlines() if line.startswith("peak"))
            peaks[count] = int(line.split()[1]) / 1024
            print(f"{count:>7} samples: peak {peaks[count]:.0f} MiB (status {line.split()[2]})")
    print(json.dumps({"peak_mib": peaks, "ratio": max(peaks.values()) / min(peaks.values())}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "memory"])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.what == "overhead":
        overhead(chosen.samples, chosen.rounds)
    else:
        memory([1_000, 10_000, 100_000])
