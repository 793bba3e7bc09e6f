"""AutoAttack beside its reference implementation: verdicts, model evaluations, time of a step.

python benchmarks/auto_attack.py record --out tests/harness_attacks/autoattack_verdicts    # what the reference says
python benchmarks/auto_attack.py compare --out tests/harness_attacks/autoattack_verdicts   # ours, on the same images
python benchmarks/auto_attack.py speed                                                     # time of a step

`record` needs the package `autoattack` (github.com/fra31/auto-attack; not in the package registry), `speed` compares
with what is installed of it and of torchattacks. `--data FOLDER` (or HARNESS_DATA) adds the CIFAR-10 ResNet-20.
One thread everywhere.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness_attacks.apgd import APGD, APGDOptions
from harness_attacks.autoattack import AutoAttack, AutoAttackOptions
from harness_attacks.fab import FAB, FABOptions
from harness_attacks.square import Square, SquareOptions
from harness_datasets.digits import Digits, DigitsOptions
from harness_torch.model import build
from harness_torch.options import TorchOptions
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.models import ModelContext, ModelView, prepare
from harness.randomness import draws_for
from harness.threats import Batch

LETTERS = {"apgd-ce": "c", "apgd-t": "t", "fab-t": "f", "square": "s"}
"""Who broke a sample; "." stands, "x" was wrong before."""
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# Budgets that leave between a fifth and four fifths standing.
CASES = [
    ("digits-cnn", "linf", 0.07),
    ("digits-cnn", "l2", 0.35),
    ("digits-cnn", "l1", 1.0),
    ("digits-cnn-pgd", "linf", 0.22),
    ("digits-cnn-pgd", "l2", 0.7),
    ("digits-cnn-pgd", "l1", 1.0),
    ("cifar10-resnet20", "linf", 0.005),
]


@dataclass
class Counted:
    """A classifier that counts the images it evaluates, and those it differentiates, under the name of who asks."""

    model: Any
    asking: str = "clean"
    forwards: dict[str, int] = field(default_factory=dict)
    backwards: dict[str, int] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        self._add(self.forwards, len(x))
        logits: Tensor = self.model.logits(x)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._add(self.backwards, len(x)))  # type: ignore[no-untyped-call]
        return logits

    def _add(self, counts: dict[str, int], images: int) -> None:
        counts[self.asking] = counts.get(self.asking, 0) + images


def classifier(name: str, data: str | None) -> tuple[Any, Tensor, Tensor]:
    """A classifier with the images it is attacked on."""
    if name.startswith("digits"):
        digits = Digits(DigitsOptions())
        facts = DatasetFacts("digits", (1, 8, 8), 17, tuple("0123456789"))
        model = build(TorchOptions(checkpoint=f"builtin:{name}"), ModelContext(name, facts, "cpu", Path()))
        labels = torch.from_numpy(digits.labels())
        return prepare(model, "cpu"), digits.images(np.arange(len(labels))), labels
    options = TorchOptions.model_validate(
        {
            "factory": "harness_torch.networks:cifar_resnet20",
            "checkpoint": f"{data}/models/cifar10_resnet20.th",
            "key": "state_dict",
            "prefix": "module.",
            "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        }
    )
    facts = DatasetFacts("cifar10", (3, 32, 32), 256, tuple("0123456789"))
    model = prepare(build(options, ModelContext(name, facts, "cpu", Path())), "cpu")
    with np.load(Path(str(data)) / "cifar10" / "cifar10_test1000_lossless.npz") as file:
        x, y = file["x"], file["y"]
    return model, torch.from_numpy(x).permute(0, 3, 1, 2).float().div(255).contiguous(), torch.from_numpy(y)


def record(model_name: str, norm: str, eps: float, samples: int, seed: int, data: str | None) -> dict[str, Any]:
    """What the reference's standard version says of each image, and what it asked of the model."""
    autoattack = importlib.import_module("autoattack")
    model, x, y = classifier(model_name, data)
    x, y = x[:samples], y[:samples]
    with torch.no_grad():
        letters = np.where((model.logits(x).argmax(dim=1) == y).numpy(), ".", "x")
    places = {row.numpy().tobytes(): place for place, row in enumerate(x)}
    counted = Counted(model)
    attack = autoattack.AutoAttack(
        counted, norm=NORMS[norm], eps=eps, version="standard", device="cpu", seed=seed, verbose=False
    )

    def watched(name: str, perturb: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(images: Tensor, labels: Tensor) -> Tensor:
            counted.asking = name
            found = perturb(images, labels)
            counted.asking = "between"
            with torch.no_grad():
                fallen = model.logits(found).argmax(dim=1) != labels
            for row in images[fallen]:
                letters[places[row.numpy().tobytes()]] = LETTERS[name]
            return found

        return run

    parts = {"apgd-ce": attack.apgd, "apgd-t": attack.apgd_targeted, "fab-t": attack.fab, "square": attack.square}
    for name, part in parts.items():
        part.perturb = watched(name, part.perturb)
    start = time.process_time()
    attack.run_standard_evaluation(x, y, bs=len(x))
    return {
        "model": model_name,
        "norm": norm,
        "eps": eps,
        "samples": samples,
        "seed": seed,
        "verdicts": "".join(letters),
        "forwards": counted.forwards,
        "backwards": counted.backwards,
        "seconds": round(time.process_time() - start, 1),
    }


def record_all(folder: Path, only: str, samples: int | None, seeds: list[int], data: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for model, norm, eps in CASES:
        if only not in f"{model}-{norm}":
            continue
        for seed in seeds:
            case = record(model, norm, eps, samples or (359 if "digits" in model else 1000), seed, data)
            case["made_with"] = f"autoattack a392200, torch {torch.__version__}, {platform.machine()}, one thread"
            case["letters"] = {**{letter: name for name, letter in LETTERS.items()}, ".": "stands", "x": "wrong before"}
            path = folder / f"{model}-{norm}-seed{seed}.json"
            path.write_text(json.dumps(case, indent=1) + "\n")
            standing = case["verdicts"].count(".") / case["samples"]
            print(f"{path.name}: {standing:.1%} stand, {case['seconds']} s", flush=True)


def attacked(attack: Any, model: Any, x: Tensor, y: Tensor) -> tuple[dict[str, Any], ModelView]:
    """An attack as the host runs it: its columns, and the view that counted."""
    ids = torch.arange(len(x))
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    with torch.no_grad():
        clean = model.logits(x)
    return dict(attack.run(view, Batch(x, y, ids, draws_for(ids, 0, "threat", "autoattack"), clean))), view


def compare(path: Path, data: str | None) -> None:
    """Our verdicts beside recorded ones."""
    case = json.loads(path.read_text())
    model, x, y = classifier(case["model"], data)
    x, y = x[: case["samples"]], y[: case["samples"]]
    attack = AutoAttack(AutoAttackOptions(norm=case["norm"], eps=case["eps"]), 10)
    start = time.process_time()
    columns, view = attacked(attack, model, x, y)
    seconds = time.process_time() - start
    with torch.no_grad():
        ours = (model.logits(columns["adversarial"]).argmax(dim=1) == y).numpy()
    theirs = np.array([letter == "." for letter in case["verdicts"]])
    broken = {name: columns["attack"].count(name) for name in attack.parts}
    recorded = {name: case["verdicts"].count(letter) for name, letter in LETTERS.items()}
    print(f"{path.stem}, eps {case['eps']}: {int(theirs.sum())} of {len(x)} stand by theirs, {int(ours.sum())} by ours")
    print(f"  differ: {int((ours & ~theirs).sum())} stand by ours only, {int((theirs & ~ours).sum())} by theirs only")
    print(f"  broken by, ours: {broken}; theirs: {recorded}")
    forwards, backwards = sum(case["forwards"].values()), sum(case["backwards"].values())
    print(f"  forwards {int(view.forwards.sum())} / {forwards} = {float(view.forwards.sum()) / forwards:.3f},", end=" ")
    print(
        f"backwards {int(view.backwards.sum())} / {backwards} = {float(view.backwards.sum()) / backwards:.3f},", end=" "
    )
    print(f"CPU seconds {seconds:.1f} / {case['seconds']} (not the same run)", flush=True)


def speed(rounds: int, data: str | None) -> None:
    """CPU time of a step of each part, ours and what is installed, in turn; the least of some rounds.

    On images that the attacks cannot break (a tiny budget), so that every step is made on the whole batch.
    """
    model, x, y = classifier("digits-cnn", data)
    with torch.no_grad():
        right = model.logits(x).argmax(dim=1) == y
    x, y = x[right][:40], y[right][:40]  # few, so that the network does not hide the attack
    eps = 1e-3
    runs: dict[str, dict[str, tuple[Callable[[], Any], int]]] = {}
    for norm, theirs in NORMS.items():
        runs[f"apgd {norm}"] = ours_and_theirs("apgd", norm, theirs, eps, 20, model, x, y)
        runs[f"fab {norm}"] = ours_and_theirs("fab", norm, theirs, eps, 10, model, x, y)
        runs[f"square {norm}"] = ours_and_theirs("square", norm, theirs, eps, 100, model, x, y)
    for name, sides in runs.items():
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(rounds + 1):
            for side, (run, _) in sides.items():
                start = time.process_time()
                run()
                if number:
                    seconds[side].append(time.process_time() - start)
        ours = min(seconds["ours"]) / sides["ours"][1]
        for side, (_, steps) in sides.items():
            step = min(seconds[side]) / steps
            print(f"{name:12} {side:13} {1e3 * step:7.3f} ms a step, {step / ours:.2f} of ours", flush=True)


def ours_and_theirs(
    part: str, norm: str, theirs: str, eps: float, steps: int, model: Any, x: Tensor, y: Tensor
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Runs of one part, with their numbers of steps."""
    fixed: dict[str, Any] = {"norm": norm, "eps": eps}
    ours: Any = {
        "apgd": lambda: APGD(APGDOptions(**fixed, steps=steps)),
        "fab": lambda: FAB(FABOptions(**fixed, steps=steps, targets=1)),
        "square": lambda: Square(SquareOptions(**fixed, queries=steps)),
    }[part]()
    runs: dict[str, tuple[Callable[[], Any], int]] = {"ours": (lambda: attacked(ours, model, x, y), steps)}
    common: dict[str, Any] = {"norm": theirs, "eps": eps, "device": "cpu", "seed": 0}
    if importlib.util.find_spec("autoattack"):
        base, fab, square = (importlib.import_module(f"autoattack.{m}") for m in ("autopgd_base", "fab_pt", "square"))
        call = model.logits
        peer: Any = {
            "apgd": lambda: base.APGDAttack(call, n_iter=steps, **common),
            "fab": lambda: fab.FABAttack_PT(call, n_iter=steps, targeted=True, n_target_classes=1, **common),
            "square": lambda: square.SquareAttack(call, n_queries=steps, resc_schedule=False, **common),
        }[part]()
        if part == "apgd":
            peer.init_hyperparam(x)
        runs["reference"] = (lambda: peer.perturb(x, y), steps)
    if importlib.util.find_spec("torchattacks") and norm != "l1":
        torchattacks = importlib.import_module("torchattacks")
        like: dict[str, Any] = {"norm": theirs, "eps": eps}
        other: Any = {
            "apgd": lambda: torchattacks.APGD(model, steps=steps, **like),
            "fab": lambda: torchattacks.FAB(model, steps=steps, n_classes=2, multi_targeted=True, **like),
            "square": lambda: torchattacks.Square(model, n_queries=steps, **like),
        }[part]()
        runs["torchattacks"] = (lambda: other(x, y), steps)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare", "speed"])
    parser.add_argument("--out", type=Path, default=Path("tests/harness_attacks/autoattack_verdicts"))
    parser.add_argument("--only", default="", help="a part of the names of the cases")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=5, help="of the measurement of speed")
    parser.add_argument("--data", default=os.environ.get("HARNESS_DATA"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "record":
        record_all(arguments.out, arguments.only, arguments.samples, arguments.seeds, arguments.data)
    elif arguments.what == "compare":
        for path in sorted(arguments.out.glob("*.json")):
            if arguments.only in path.stem:
                compare(path, arguments.data)
    else:
        speed(arguments.rounds, arguments.data)


if __name__ == "__main__":
    main()
