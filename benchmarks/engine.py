"""What the engine costs beside the attack it runs, and what memory it takes.

    python benchmarks/engine.py overhead      # the attack called directly, and the same through the engine, in turn
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
PGD = 'plugin = "pgd"\neps = 0.2\nsteps = 40\nrestarts = 2'
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
    """Time of a whole in-process run against the time of its threat's `run` on the same batches."""
    import torch

    from harness.host import load_host
    from harness.loading import build_model, build_threat, open_dataset
    from harness.randomness import draws_for
    from harness.runner import RunOptions, run
    from harness.suite import load_suite
    from harness.threats import Batch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "x.npz", samples)
        (root / "suite.toml").write_text(SUITE.format(path=root / "x.npz", threat=PGD))
        host = load_host()
        suite = load_suite(root / "suite.toml", host)

        def direct() -> float:
            data = open_dataset(suite.dataset, host, root)
            model = build_model(suite.models[0], data.facts, "cpu", root)
            threat = build_threat(suite.threats[0], data.facts, host, root, root)
            start = time.perf_counter()
            for first in range(0, len(data), 256):
                ids = data.ids[first : first + 256]
                x, y = data.load(ids)
                sample_ids = torch.from_numpy(ids)
                with torch.no_grad():
                    logits = model.model.logits(x)
                draws = draws_for(sample_ids, 0, "threat", "pgd")
                threat.run(model.view(sample_ids, 0, "attack"), Batch(x, y, sample_ids, draws, logits))
            return time.perf_counter() - start

        def engine() -> float:
            start = time.perf_counter()
            run(suite, RunOptions(out=root / "run", workers=1, fresh=True), host=host)
            return time.perf_counter() - start

        engine()  # what is imported on first use is not the engine's cost
        ratios = []
        for _ in range(rounds):
            alone, whole = direct(), engine()
            ratios.append(whole / alone)
            print(f"attack alone {alone:6.2f} s   through the engine {whole:6.2f} s   ratio {whole / alone:.3f}")
        print(f"{samples} samples: median ratio {statistics.median(ratios):.3f}")


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
