"""Why another set of attacks: one network, its logits as generative classifiers give them, under every library.

Run `python benchmarks/why.py` (three minutes of one core). It prints the tables of docs/why.md. The network is the
embedded classifier of digits; "shifted" adds -3000 to all its logits, "scaled" multiplies them by 10^4. Neither changes
any prediction, so neither can change how robust the network is.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness_datasets.digits import Digits, DigitsOptions
from harness_torch.model import build
from harness_torch.options import TorchOptions
from torch import Tensor, nn

from harness.audit import audit
from harness.datasets import DatasetFacts
from harness.evaluate import Setting, ShardTask, evaluate_batch
from harness.host import Host, load_host
from harness.loading import BuiltModel, build_threat
from harness.models import ModelContext, prepare
from harness.randomness import Draws
from harness.suite import threat_entry

EPS = 0.085  # l-inf: about 31 % withstand it
STEPS = 40
NOISE = 0.22  # of the random model's input: right on three of four images
TRIES = 50
BACKENDS = ("art", "foolbox", "torchattacks")
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Altered(nn.Module):
    """The network with its logits scaled and shifted, in the arithmetic of the network (float32)."""

    num_classes = 10

    def __init__(self, network: Any, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network.logits(x) * self.scale + self.shift
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


class Noisy(nn.Module):
    """The network behind Gaussian noise: from the streams it is handed, or the global generator for other libraries."""

    num_classes = 10
    stochastic = True

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
        noise = draws.normal("input", 0, x.shape[1:])
        logits: Tensor = self.network.logits(x + NOISE * noise)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network.logits(x + NOISE * torch.randn_like(x))
        return logits


@dataclass
class Bench:
    """The network, its test images, and the plugins."""

    network: Any
    x: Tensor
    y: Tensor
    facts: DatasetFacts
    host: Host

    def withstand(self, images: Tensor) -> float:
        """Share of images that the network, as it is, classifies rightly."""
        with torch.no_grad():
            return float((self.network.logits(images).argmax(dim=1) == self.y).double().mean())

    def rows(self, model: Any, plugin: str, table: Mapping[str, Any]) -> dict[str, Any]:
        """What the harness records of a threat on all images."""
        entry = threat_entry(plugin, plugin, table, self.host)
        threat = build_threat(entry, self.facts, self.host, None, Path())
        setting = Setting("", "", None, (), "cpu", 0, len(self.x), False)
        ids = np.arange(len(self.x))
        task = ShardTask(setting, "", "", "digits", ("", "", {}), (plugin, plugin, table), ids)
        return dict(evaluate_batch(BuiltModel(model, frozenset({"Classifier"})), threat, self.x, self.y, ids, task))


def judged(rows: Mapping[str, Any]) -> str:
    """Robust accuracy of a cell, in %; marked where the audit of its rows raises a flag."""
    fell = rows["success"] if "success" in rows else rows["found"]
    mark = "" if all(check.ok for check in audit(rows)) else " (unreliable)"
    return f"{100 * np.mean(rows['clean_correct'] & ~fell):.1f}{mark}"


def libraries(eps: float) -> dict[str, Attack]:
    """The attacks as the libraries are used by themselves."""
    step = 2.5 * eps / STEPS
    torchattacks, foolbox = (importlib.import_module(name) for name in ("torchattacks", "foolbox"))
    evasion, estimators = (
        importlib.import_module(f"art.{name}") for name in ("attacks.evasion", "estimators.classification")
    )

    def by_torchattacks(name: str, **arguments: Any) -> Attack:
        return lambda model, x, y: getattr(torchattacks, name)(model, **arguments)(x, y)

    def by_foolbox(name: str, budget: float | None, **arguments: Any) -> Attack:
        attack = getattr(foolbox.attacks, name)(**arguments)
        return lambda model, x, y: attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=budget)[1]

    def by_art(name: str, **arguments: Any) -> Attack:
        def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            shape = tuple(x.shape[1:])
            estimator = estimators.PyTorchClassifier(
                model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type="cpu"
            )
            made = getattr(evasion, name)(estimator, **arguments, batch_size=len(x), verbose=False)
            return torch.from_numpy(made.generate(x=x.numpy(), y=y.numpy()))

        return attack

    return {
        "PGD, torchattacks": by_torchattacks("PGD", eps=eps, alpha=step, steps=STEPS),
        "PGD, Foolbox": by_foolbox("LinfPGD", eps, abs_stepsize=step, steps=STEPS),
        "PGD, ART": by_art("ProjectedGradientDescent", eps=eps, eps_step=step, max_iter=STEPS, num_random_init=1),
        "APGD, torchattacks": by_torchattacks("APGD", eps=eps, steps=STEPS),
        "APGD, ART": by_art(
            "AutoProjectedGradientDescent", eps=eps, eps_step=2 * eps, max_iter=STEPS, nb_random_init=1
        ),
        "CW, torchattacks": by_torchattacks("CW", c=10, steps=100),
        "CW, Foolbox": by_foolbox(
            "L2CarliniWagnerAttack", None, steps=100, binary_search_steps=1, initial_const=10, stepsize=0.01
        ),
        "CW, ART": by_art("CarliniL2Method", max_iter=100, binary_search_steps=1, initial_const=10),
    }


def ours(host: Host) -> dict[str, tuple[str, dict[str, Any]]]:
    """The threats of the harness: its own, and the libraries' attacks through its backends."""
    budget = {"norm": "linf", "eps": EPS}
    smallest = {"norm": "l2", "together": True}
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "**PGD, Harness**": ("pgd", {**budget, "steps": STEPS}),
        "PGD, torchattacks through Harness": (
            "torchattacks",
            {**budget, "attack": "PGD", "arguments": {"steps": STEPS, "alpha": 2.5 * EPS / STEPS}, "together": True},
        ),
        "CW, torchattacks through Harness": (
            "torchattacks",
            {**smallest, "attack": "CW", "arguments": {"c": 10, "steps": 100}},
        ),
    }
    if "cw" in host.threats:
        rows["**CW, Harness**"] = ("cw", {"steps": 100, "search_steps": 3})
    return rows


def of_logits(bench: Bench) -> None:
    """Robust accuracy of one network under three ways of writing down its logits."""
    models = {
        "as trained": Altered(bench.network),
        "shifted by -3000": Altered(bench.network, shift=-3000.0),
        "scaled by 10^4": Altered(bench.network, scale=1e4),
    }
    print(f"\nRobust accuracy in %, l-inf {EPS}, {STEPS} steps (PGD, APGD); any l2 distance (CW). Clean: ", end="")
    print(f"{100 * bench.withstand(bench.x):.1f}\n\n| attack | " + " | ".join(models) + " |")
    print("|---|" + "---:|" * len(models))
    for name, attack in libraries(EPS).items():
        found = []
        for model in models.values():
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002 - where ART draws its starts
            found.append(f"{100 * bench.withstand(attack(model.eval(), bench.x, bench.y)):.1f}")
        print(f"| {name} | " + " | ".join(found) + " |", flush=True)
    for name, (plugin, table) in ours(bench.host).items():
        found = [judged(bench.rows(model.eval(), plugin, table)) for model in models.values()]
        print(f"| {name} | " + " | ".join(found) + " |", flush=True)


def of_noise(bench: Bench) -> None:
    """What is left of a random model at eps = 0, where an attack can do nothing."""
    model = Noisy(bench.network).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        right = torch.stack([model(bench.x).argmax(dim=1) == bench.y for _ in range(TRIES)])
    rows = bench.rows(model, "pgd", {"norm": "linf", "eps": 0.0, "steps": STEPS, "restarts": TRIES})
    single, most = float(right.double().mean()), float(rows["clean_correct"].mean())
    print(
        f"\nNoise of {NOISE} on the input, eps = 0. Right in one draw: {100 * single:.1f} %; by the class that most of"
    )
    print(f"ten draws name: {100 * most:.1f} %\n")
    print("| verdict | said to be robust, % |\n|---|---:|")
    standing = float(right.all(dim=0).double().mean())
    print(f"| any misclassified iterate counts, {TRIES} steps | {100 * standing:.1f} |")
    for name, left in repeated(bench, model).items():
        print(f"| {name} | {100 * left:.1f} |", flush=True)
    print(f"| **PGD, Harness**, {TRIES} restarts | {judged(rows)} |")


def repeated(bench: Bench, model: nn.Module) -> dict[str, float]:
    """Share of images that the libraries' own verdict leaves standing after an attack of eps = 0, repeated."""
    torchattacks, foolbox = (importlib.import_module(name) for name in ("torchattacks", "foolbox"))
    torch.manual_seed(0)
    attack = foolbox.attacks.LinfPGD(steps=1).repeat(TRIES)
    _, _, flags = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), bench.x, bench.y, epsilons=0.0)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        chain = torchattacks.MultiAttack([torchattacks.FGSM(model, eps=0.0) for _ in range(TRIES)], verbose=True)
        chain(bench.x, bench.y)
    success = float(said.getvalue().strip().removesuffix("%").split()[-1])  # "Attack success rate: 1.00 % | 2.00 %"
    return {
        f"PGD, Foolbox, repeated {TRIES} times": 1 - float(flags.double().mean()),
        f"FGSM, torchattacks, MultiAttack of {TRIES}": 1 - success / 100,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    host = load_host()
    host = load_host([f"harness_{name}" for name in BACKENDS if name not in host.threats])
    data = Digits(DigitsOptions())
    facts = DatasetFacts("digits", data.shape, data.levels, data.class_names)
    network = build(TorchOptions(checkpoint="builtin:digits-cnn"), ModelContext("digits-cnn", facts, "cpu", Path()))
    y = torch.from_numpy(data.labels())
    bench = Bench(prepare(network, "cpu"), data.images(np.arange(len(y))), y, facts, host)
    of_logits(bench)
    of_noise(bench)


if __name__ == "__main__":
    main()
