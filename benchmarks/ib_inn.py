"""The shipped IB-INNs on digits: accuracy, bits/dim at the evaluated point of a bin, at its centre and over noise.

python benchmarks/ib_inn.py [CHECKPOINT ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from harness_ib_inn.loading import builtin_names
from harness_ib_inn.model import IBINN, build
from harness_ib_inn.options import IBINNOptions
from harness_ib_inn.training import dequantise

from harness.datasets import DatasetSlice
from harness.host import load_host
from harness.loading import open_dataset
from harness.models import ModelContext, bits_per_dim, prepare
from harness.suite import dataset_entry

DRAWS = 50


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    host = load_host()
    data = open_dataset(dataset_entry({"name": "digits", "split": "test"}, host, "digits"), host, None)
    print(
        "| checkpoint | accuracy | bits/dim | over noise | at the centres | decode(encode(x)) - x | ms for 359 images |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in names or [f"builtin:{known}" for known in builtin_names()]:
        context = ModelContext("digits", data.facts, "cpu", Path.cwd())
        report(name, prepare(build(IBINNOptions(checkpoint=name), context), "cpu"), data)


def report(name: str, model: IBINN, data: DatasetSlice) -> None:
    x, y = data.load(data.ids)
    accuracy = float((model.logits(x).argmax(dim=1) == y).double().mean())
    start = time.perf_counter()
    point = model.log_prob(x)
    took = time.perf_counter() - start
    generator = torch.Generator().manual_seed(0)
    noise = torch.stack(
        [model.log_prob_of_latent(*model.flow(dequantise(x, 17, generator))).mean() for _ in range(DRAWS)]
    ).mean()
    gap = float((model.decode(model.encode(x)[0]) - x).abs().max())
    model.noise.fill_(0.5)
    bits = [float(bits_per_dim(value.mean(), (1, 8, 8), 17)) for value in (point, noise, model.log_prob(x))]
    shown = Path(name).stem if name.endswith(".safetensors") else name
    print(f"| `{shown}` | {accuracy:.1%} | {' | '.join(f'{b:.3f}' for b in bits)} | {gap:.0e} | {1000 * took:.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
