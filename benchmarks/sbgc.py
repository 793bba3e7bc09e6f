"""What a score-based generative classifier costs and how exact it is, on the embedded digits model.

Run `python benchmarks/sbgc.py PART [--images N]`, PART one of

- `solvers`: error of solver and grid against a fine grid with the exact trace, evaluations, time;
- `probes`: noise of the trace estimate, probes fixed or resampled, shared by the classes or not;
- `gradients`: the three gradients: time, memory, cosine to finite differences, attack success;
- `cost`: evaluations an image, time over that of as many bare evaluations, forward against reverse mode.

One thread; times are CPU time of the process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness_attacks.options import PGDOptions
from harness_attacks.pgd import PGD
from harness_datasets.digits import Digits, DigitsOptions
from harness_diffusion.likelihood import log_prob
from harness_diffusion.scaling import dequantise, to_scaled
from harness_sbgc.model import Sbgc, build
from harness_sbgc.noise import StreamNoise, fixed_stream
from harness_sbgc.options import SbgcOptions
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.models import ModelContext, ModelView, bits_per_dim, prepare
from harness.randomness import draws_for
from harness.threats import Batch

FACTS = DatasetFacts(name="digits", shape=(1, 8, 8), class_names=tuple("0123456789"), levels=17)
D, K = 64, 10


def model(**options: Any) -> Sbgc:
    """The embedded model with these options."""
    table = {"checkpoint": "builtin:digits-mlp", **options}
    built: Sbgc = prepare(build(SbgcOptions.model_validate(table), ModelContext("sbgc", FACTS, "cpu", Path())), "cpu")
    return built


def images(count: int) -> tuple[Tensor, Tensor]:
    """Images and labels of the test split."""
    data = Digits(DigitsOptions(split="test"))
    index = np.arange(count)
    return data.images(index), torch.from_numpy(np.asarray(data.labels())[index])


def table(header: str, rows: list[list[str]]) -> None:
    names = [name.strip() for name in header.split("|")]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return run(), time.process_time() - start


def likelihoods(x: Tensor, **options: Any) -> tuple[Tensor, float, float]:
    """(B, K) log p(x | y), mean evaluations, seconds."""
    built = model(**options)
    with torch.no_grad():
        found, seconds = timed(lambda: built.likelihoods(x, fixed_stream(0, x.device)))
    return found.log_prob, float(found.evaluations.double().mean()), seconds


def solvers(count: int) -> None:
    x, y = images(count)
    exact, _, _ = likelihoods(x, solver="rk4", steps=32, trace="exact")
    print(f"{count} images; reference: rk4, 32 steps, exact trace; errors in nats (of {exact.mean():.1f} on average)\n")
    cases: list[tuple[str, dict[str, Any]]] = [
        *((f"heun, {n} steps, exact trace", {"solver": "heun", "steps": n, "trace": "exact"}) for n in (12, 24)),
        *((f"rk4, {n} steps, exact trace", {"solver": "rk4", "steps": n, "trace": "exact"}) for n in (6, 12)),
        *((f"rk4, {n} steps, 1 probe", {"solver": "rk4", "steps": n}) for n in (6, 12, 24)),
        ("heun, 24 steps, 1 probe", {"solver": "heun"}),
        *(
            (f"rk45, {tol:g}, {n} probes", {"mode": "paper", "rtol": tol, "atol": tol, "probes": n})
            for tol, n in ((1e-3, 1), (1e-3, 10), (1e-5, 1), (1e-5, 10), (1e-5, 30))
        ),
    ]
    rows = []
    for name, options in cases:
        found, evaluations, seconds = likelihoods(x, **options)
        error = found - exact
        between = error - error.mean(dim=1, keepdim=True)
        own = bits_per_dim(found.gather(1, y[:, None])[:, 0], FACTS.shape, FACTS.levels).mean()
        right = (found.argmax(dim=1) == y).double().mean()
        numbers = [error.mean(), error.std(), between.std()]
        row = [name, f"{evaluations:.0f}", *(f"{n:.2f}" for n in numbers), f"{own:.3f}", f"{100 * right:.1f}"]
        rows.append([*row, f"{1e3 * seconds / len(x):.0f}"])
    table("solver|evaluations|bias|sd|sd between classes|bits/dim|accuracy, %|ms an image", rows)


def probes(count: int) -> None:
    x, y = images(count)
    built = model()
    noise = built.noise(fixed_stream(0, x.device), count)
    v = to_scaled(dequantise(x.double(), FACTS.levels, noise.dequantisation().double())).repeat_interleave(K, dim=0)
    labels = torch.arange(K).repeat(count)
    sample = torch.arange(count).repeat_interleave(K)
    flow = built.flow()
    with torch.no_grad():
        exact = log_prob(replace(flow, trace="exact"), v, labels, sample, noise).log_prob.reshape(count, K)
    rows = []
    for name, resampled, shared, n in (
        ("1 fixed, of each class's own", False, False, 1),
        ("1 fixed, shared", False, True, 1),
        ("10 fixed, shared", False, True, 10),
        ("1 resampled, of each class's own", True, False, 1),
        ("1 resampled, shared (default)", True, True, 1),
        ("3 resampled, shared", True, True, 3),
        ("10 resampled, shared", True, True, 10),
    ):
        owner = sample if shared else torch.arange(count * K)
        streams = draws_for(torch.arange(int(owner.max()) + 1), 1, "probes")
        drawn = StreamNoise(streams, len(streams), (1, 8, 8), n, False)
        source: Any = drawn if resampled else _Fixed(drawn)
        with torch.no_grad():
            (found, seconds) = timed(lambda s=source, o=owner: log_prob(flow, v, labels, o, s).log_prob)  # type: ignore[misc]
        error = found.reshape(count, K) - exact
        between = error - error.mean(dim=1, keepdim=True)
        right = (found.reshape(count, K).argmax(dim=1) == y).double().mean()
        rows.append([name, f"{error.std():.2f}", f"{between.std():.2f}", f"{100 * right:.1f}", f"{seconds:.1f}"])
    print(f"{count} images, rk4 with 12 steps; errors in nats against the exact trace on the same grid\n")
    table("probes|sd|sd between classes|accuracy, %|s", rows)


class _Fixed:
    """The probes of evaluation 0 throughout."""

    def __init__(self, noise: StreamNoise) -> None:
        self.noise = noise
        self.kept = noise.probes(0)

    def probes(self, _number: int) -> Tensor:
        return self.kept

    def diffusion(self, number: int) -> tuple[Tensor, Tensor]:
        return self.noise.diffusion(number)


def gradients(count: int) -> None:
    x, y = images(count)
    few = x[:4], y[:4]
    numeric = _differences(model().double(), *few)
    cases: list[tuple[str, dict[str, Any]]] = [
        *((f"exact, {n} steps", {"steps": n}) for n in (12, 24)),
        ("adjoint", {"gradient": "adjoint"}),
        ("exact, rk45", {"solver": "rk45"}),
        ("adjoint, rk45", {"gradient": "adjoint", "solver": "rk45"}),
        *((f"surrogate, {n} draws", {"gradient": "surrogate", "surrogate_draws": n}) for n in (4, 16, 64)),
    ]
    rows = []
    for name, options in cases:
        built = model(**options)
        at = x.clone().requires_grad_()
        value, forward = timed(lambda b=built, a=at: _margin(b, a, y))  # type: ignore[misc]
        (gradient,), backward = timed(lambda v=value, a=at: torch.autograd.grad(v.sum(), a))  # type: ignore[misc]
        cosine = torch.cosine_similarity(gradient[:4].flatten(1).double(), numeric.flatten(1)).mean()
        row = [name, f"{forward:.1f}", f"{backward:.1f}", f"{memory(options, count):.0f}", f"{cosine:.3f}"]
        rows.append([*row, *(f"{100 * share:.0f}" for share in _attacked(options, x, y))])
    print(
        f"{count} images, rk4 with 12 steps unless said; finite differences in float64 on 4 of them; PGD l-inf 0.1,"
        " 5 steps on the margin, judged by the same model on the noise that was attacked and on other noise\n"
    )
    table("gradient|forward, s|backward, s|memory, MB|cosine to differences|attack success, %|on other noise, %", rows)


def memory(options: dict[str, Any], count: int) -> float:
    """Most memory, in MB, that a gradient takes beyond what the process had before it, in a process of its own."""
    # Every tensor of its own mapping, so that freed memory goes back and the peak is that of what is alive.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (options, count))


def _growth(options: dict[str, Any], count: int) -> float:
    torch.set_num_threads(1)
    x, y = images(count)
    value = _margin(model(**options), x.requires_grad_(), y)
    page = resource.getpagesize()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * page
    torch.autograd.grad(value.sum(), x)
    return (1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def _margin(built: Any, x: Tensor, y: Tensor) -> Tensor:
    """The label's log-likelihood minus the next class's (the digit after it), nats."""
    scores = built.class_log_prob(x)
    other = (y + 1) % K
    return scores.gather(1, y[:, None])[:, 0] - scores.gather(1, other[:, None])[:, 0]


def _differences(built: Any, x: Tensor, y: Tensor, step: float = 1e-4) -> Tensor:
    """Central differences of the margin, entry by entry."""
    out = torch.zeros(len(x), D, dtype=torch.float64)
    with torch.no_grad():
        for entry in range(D):
            move = torch.zeros(D, dtype=torch.float64).index_fill(0, torch.tensor([entry]), step).reshape(1, 1, 8, 8)
            ends = [_margin(built, x.double() + sign * move, y) for sign in (1, -1)]
            out[:, entry] = (ends[0] - ends[1]) / (2 * step)
    return out


def _attacked(options: dict[str, Any], x: Tensor, y: Tensor) -> list[float]:
    """Shares of images that PGD makes this model misclassify: on the noise that was attacked, and on other noise."""
    ids = torch.arange(len(x))
    view = ModelView(model(**options), {"Classifier", "ClassDensity"}, ids, 0, "attack")
    clean = torch.nn.functional.one_hot(y, K).float()
    attack = PGD(PGDOptions.model_validate({"eps": 0.1, "steps": 5, "loss": "margin"}))
    found = attack.run(view, Batch(x, y, ids, draws_for(ids, 0, "threat", "pgd"), clean))
    adversarial = torch.as_tensor(found["adversarial"])
    with torch.no_grad():
        verdicts = [model(**options, noise_seed=seed).logits(adversarial).argmax(dim=1) for seed in (0, 1)]
    return [float((verdict != y).double().mean()) for verdict in verdicts]


def cost(count: int) -> None:
    x, _ = images(count)
    built = model()
    found, _ = timed(lambda: built.likelihoods(x, fixed_stream(0, x.device)))
    evaluations = int(found.evaluations[0, 0])
    rows = count * K
    v, t = torch.randn(rows, 1, 8, 8), torch.full((rows,), 0.3)
    y, probe = torch.arange(K).repeat(count), torch.ones(rows, 1, 8, 8)
    flow = built.flow()

    def forward() -> None:
        with torch.no_grad():
            flow.score(v, t, y)

    def reverse(graph: bool = False) -> None:
        at = v.clone().requires_grad_()
        with torch.enable_grad()():
            (pulled,) = torch.autograd.grad(flow.score(at, t, y), at, probe, create_graph=graph)
            if graph:
                torch.autograd.grad((pulled * probe).sum(), at)

    def ahead() -> None:
        with torch.no_grad()():
            torch.func.jvp(lambda at: flow.score(at, t, y), (v,), (probe,))

    seconds = {}
    for name, run in {"forward": forward, "vjp": reverse, "jvp": ahead, "vjp of vjp": lambda: reverse(True)}.items():
        run()
        seconds[name] = min(timed(run)[1] for _ in range(7))
    whole = min(timed(lambda: built.likelihoods(x, fixed_stream(0, x.device)))[1] for _ in range(3))
    table(
        f"{rows} rows|ms|over forward",
        [[name, f"{1e3 * s:.1f}", f"{s / seconds['forward']:.2f}"] for name, s in seconds.items()],
    )
    print(
        f"an image: {K} classes x {evaluations} evaluations = {K * evaluations} forward and as many backward passes;"
        f"\nlikelihoods of {count} images: {whole:.2f} s, {whole / (evaluations * seconds['vjp']):.3f} times as long as"
        f" {evaluations} bare evaluations with their backward pass"
    )


PARTS: dict[str, tuple[Callable[[int], None], int]] = {
    "solvers": (solvers, 20),
    "probes": (probes, 30),
    "gradients": (gradients, 16),
    "cost": (cost, 32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--images", type=int, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run, count = PARTS[arguments.part]
    run(arguments.images or count)


if __name__ == "__main__":
    main()
