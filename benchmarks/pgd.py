"""What PGD costs: the loop around the model, what leaving samples save, and other libraries beside it.

Run `python benchmarks/pgd.py`, with `--data FOLDER` (or HARNESS_DATA) for the CIFAR-10 ResNet-20 too. One thread; runs
to be compared alternate; times are CPU time of the process, the least over the rounds: what other work on the machine
adds is never negative. Where malloc puts its blocks changes a small network by 10 % from process to process; with
MALLOC_TOP_PAD_=100000000, MALLOC_MMAP_THRESHOLD_=1000000000 and MALLOC_TRIM_THRESHOLD_=1000000000 it stays the same.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness_attacks.options import PGDOptions
from harness_attacks.pgd import PGD
from harness_datasets.digits import Digits, DigitsOptions
from harness_torch.model import build
from harness_torch.options import TorchOptions
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.models import ModelContext, ModelView, prepare
from harness.randomness import draws_for
from harness.threats import Batch, Columns

Run = Callable[[], object]


@dataclass
class Case:
    """A classifier with images that it classifies rightly, and budgets that leave more or fewer of them standing."""

    name: str
    model: Any
    x: Tensor
    y: Tensor
    steps: int
    budgets: tuple[float, ...]
    five_percent: float  # a budget that leaves about 5 % standing

    def attack(self, **options: Any) -> Columns:
        """The attack as the host runs it; the host's clean evaluation is given, as it is shared by all threats."""
        ids = torch.arange(len(self.x))
        view = ModelView(self.model, {"Classifier"}, ids, 0, "attack")
        clean = torch.nn.functional.one_hot(self.y, 10).float()
        attack = PGD(PGDOptions.model_validate({"steps": self.steps, **options}))
        return attack.run(view, Batch(self.x, self.y, ids, draws_for(ids, 0, "threat", "pgd"), clean))

    def bare(self) -> None:
        """Forward and backward, nothing else."""
        x = self.x.clone()
        for _ in range(self.steps):
            x.requires_grad_()
            loss = torch.nn.functional.cross_entropy(self.model.logits(x), self.y, reduction="sum")
            torch.autograd.grad(loss, x)
            x = x.detach()

    def standing(self, columns: Columns) -> float:
        with torch.no_grad():
            return float((self.model.logits(columns["adversarial"]).argmax(dim=1) == self.y).double().mean())


def times(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round, run in turn A B A B after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: list[float], reference: list[float]) -> float:
    return min(seconds) / min(reference)


def step_cost(case: Case, rounds: int) -> None:
    print(
        f"\n{case.name}: nothing falls, {len(case.x)} images, {case.steps} steps; wanted: at most 1.05 of the bare loop"
    )
    runs: dict[str, Run] = {"bare loop": case.bare}
    for norm in ("linf", "l2", "l1"):
        runs[f"pgd {norm}"] = lambda norm=norm: case.attack(norm=norm, eps=1e-6)
    found = times(runs, rounds)
    for name, seconds in found.items():
        step = 1e3 * min(seconds) / case.steps
        print(f"  {name:12s} {step:9.3f} ms a step   {ratio(seconds, found['bare loop']):6.3f}")


def saving(case: Case, rounds: int) -> None:
    print(
        f"\n{case.name}: time against a run in which none falls; wanted: 80 % of what the gradients spared would save"
    )
    print("       eps  standing   gradients      time   of the ideal saving")
    for eps in case.budgets:
        columns = case.attack(eps=eps)
        ideal = 1 - float(columns["gradient_steps"].sum()) / (len(case.x) * case.steps)
        found = times(
            {
                "all stand": lambda: case.attack(eps=1e-6),
                "leave": lambda eps=eps: case.attack(eps=eps),
            },
            rounds,
        )
        spared = 1 - ratio(found["leave"], found["all stand"])
        share = f"{spared / ideal:8.0%}" if ideal > 0.02 else "       -"
        print(f"  {eps:8.4f}  {case.standing(columns):7.1%}   {1 - ideal:8.1%}  {1 - spared:8.1%}   {share}")


def peers(case: Case, rounds: int) -> None:
    eps, steps = case.five_percent, case.steps
    size = 2.5 * eps / steps
    runs: dict[str, Run] = {"harness": lambda: case.attack(eps=eps)}
    for name, make in (("torchattacks", _torchattacks), ("foolbox", _foolbox), ("art", _art)):
        try:
            runs[name] = make(case, eps, size)
        except ImportError as error:
            print(f"  {name}: not installed ({error})")
    standing = case.standing(case.attack(eps=eps))
    print(
        f"\n{case.name}: {standing:.1%} standing at l-inf {eps}, {steps} steps; wanted: at most 0.5 of the fastest peer"
    )
    found = times(runs, rounds)
    fastest = min((name for name in found if name != "harness"), key=lambda name: min(found[name]))
    for name, seconds in found.items():
        print(f"  {name:12s} {min(seconds):8.3f} s   {ratio(seconds, found[fastest]):6.3f}")


def _torchattacks(case: Case, eps: float, size: float) -> Run:
    attack = importlib.import_module("torchattacks").PGD(
        case.model, eps=eps, alpha=size, steps=case.steps, random_start=True
    )
    return lambda: attack(case.x, case.y)


def _foolbox(case: Case, eps: float, size: float) -> Run:
    foolbox = importlib.import_module("foolbox")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=case.steps, random_start=True)
    wrapped = foolbox.PyTorchModel(case.model, bounds=(0, 1))
    return lambda: attack(wrapped, case.x, case.y, epsilons=eps)


def _art(case: Case, eps: float, size: float) -> Run:
    estimators = importlib.import_module("art.estimators.classification")
    module = importlib.import_module(
        "art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch"
    )
    estimator = estimators.PyTorchClassifier(
        case.model, torch.nn.CrossEntropyLoss(), tuple(case.x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = module.ProjectedGradientDescentPyTorch(
        estimator,
        eps=eps,
        eps_step=size,
        max_iter=case.steps,
        num_random_init=1,
        batch_size=len(case.x),
        verbose=False,
    )
    x, y = case.x.numpy(), case.y.numpy()
    return lambda: attack.generate(x=x, y=y)


def digits() -> Case:
    data = Digits(DigitsOptions())
    facts = DatasetFacts("digits", data.shape, data.levels, data.class_names)  # type: ignore[arg-type]
    model = build(TorchOptions(checkpoint="builtin:digits-cnn"), ModelContext("digits-cnn", facts, "cpu", Path()))
    x, y = data.images(np.arange(359)), torch.from_numpy(data.labels())
    budgets = (0.005, 0.03, 0.05, 0.07, 0.09, 0.11, 0.14, 0.18, 0.25, 0.4)
    return rightly_classified("digits CNN", model, x, y, 256, 40, budgets, 0.12)


def resnet20(root: Path) -> Case:
    options = {
        "factory": "harness_torch.networks:cifar_resnet20",
        "checkpoint": str(root / "models" / "cifar10_resnet20.th"),
        "key": "state_dict",
        "prefix": "module.",
        "normalize": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    }
    facts = DatasetFacts("cifar10", (3, 32, 32), 256, tuple("0123456789"))
    model = build(TorchOptions.model_validate(options), ModelContext("resnet20", facts, "cpu", Path()))
    with np.load(root / "cifar10" / "cifar10_test1000_lossless.npz") as file:
        x, y = torch.from_numpy(file["x"][:100]), torch.from_numpy(file["y"][:100])
    x = x.permute(0, 3, 1, 2).float().div(255).contiguous()
    return rightly_classified("ResNet-20", model, x, y, 64, 20, (0.0005, 0.001, 0.002, 0.004, 0.008, 0.03), 0.0065)


def rightly_classified(
    name: str, model: Any, x: Tensor, y: Tensor, limit: int, steps: int, budgets: tuple[float, ...], five: float
) -> Case:
    prepare(model, "cpu")
    with torch.no_grad():
        right = (model.logits(x).argmax(dim=1) == y).nonzero()[:limit, 0]
    return Case(name, model, x[right], y[right], steps, budgets, five)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("HARNESS_DATA") or None, help="folder with models/, cifar10/"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the small network; the large one has half")
    parser.add_argument("--only", choices=["step", "saving", "peers"], help="one of the three tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    cases = [(digits(), arguments.rounds)]
    if arguments.data:
        cases.append((resnet20(Path(arguments.data)), (arguments.rounds + 1) // 2))
    print(f"torch {torch.__version__}, one thread, least CPU time of the rounds, load {os.getloadavg()[0]:.1f}")
    for name, table in (("step", step_cost), ("saving", saving), ("peers", peers)):
        if arguments.only in (None, name):
            for case, rounds in cases:
                table(case, rounds)


if __name__ == "__main__":
    main()
