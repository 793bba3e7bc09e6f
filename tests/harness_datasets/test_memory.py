"""Peak resident memory of reading an npz does not grow with the number of samples."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHAPE = (32, 32, 3)
_READ_ALL = """
import json, resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from harness.datasets import DatasetContext, DatasetSlice
from harness_datasets.npz import NpzOptions, build
data = DatasetSlice("npz", build(NpzOptions(path=sys.argv[1]), DatasetContext()))
data.digest()
total = 0.0
for start in range(0, len(data), 256):
    x, y = data.load(data.ids[start : start + 256])
    total += float(x.sum())
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"samples": len(data), "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}))
"""


def write(path: Path, kind: str, count: int) -> None:
    """An npz of `count` images, written piece by piece: this process must not hold it either."""
    method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
    block = np.random.default_rng(0).integers(0, 256, (50, *SHAPE), dtype=np.uint8)
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        if kind == "encoded":
            out = io.BytesIO()
            Image.fromarray(block[0]).save(out, "JPEG")
            encoded = np.frombuffer(out.getvalue(), np.uint8)
            write_array(archive, "jpeg", (count * encoded.size,), [encoded] * count)
            offsets = np.arange(count + 1) * encoded.size
            write_array(archive, "offsets", offsets.shape, [offsets])
        else:
            write_array(archive, "x", (count, *SHAPE), [block] * (count // len(block)))
        labels = np.arange(count) % 10
        write_array(archive, "y", labels.shape, [labels])


def write_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], parts: list[np.ndarray]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": parts[0].dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.data)


def peak(path: Path) -> float:
    """Peak resident memory in MiB of a process that reads all images in batches of 256.

    glibc moves its threshold for returning freed blocks to the system as a program runs, and the holes that batches
    leave in its heap then differ by 10 % from one run to the next. The threshold is fixed here, to see the loader.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
    command = [sys.executable, "-c", _READ_ALL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)["mib"])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "many"), [("stored", 100_000), ("compressed", 100_000), ("encoded", 20_000)])
def test_memory_is_flat(tmp_path: Path, kind: str, many: int) -> None:
    peaks = {}
    for count in (1_000, many):
        write(tmp_path / f"{count}.npz", kind, count)
        peaks[count] = peak(tmp_path / f"{count}.npz")
    assert peaks[many] <= 1.05 * peaks[1_000], peaks
