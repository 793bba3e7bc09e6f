"""PGD, APGD, CW and Square beside the same attacks of torchattacks, Foolbox and ART: time of a step, time to a result.

python benchmarks/attacks.py step      # CPU time of a gradient step (of a query, for Square) on images that stand
python benchmarks/attacks.py result    # CPU time until as many images have fallen as to each peer in the end
python benchmarks/attacks.py memory    # peak memory of PGD over batch, steps and restarts

The digits CNN, and with `--data FOLDER` (or HARNESS_DATA) the CIFAR-10 ResNet-20. One thread; runs that are compared
alternate; the least CPU time of some rounds. What is not installed is left out and said.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness_attacks.apgd import APGD, APGDOptions
from harness_attacks.cw import CW
from harness_attacks.cw_options import CWOptions
from harness_attacks.options import PGDOptions
from harness_attacks.pgd import PGD
from harness_attacks.square import Square, SquareOptions
from torch import Tensor

from harness.judge import norm_of
from harness.models import ModelView
from harness.randomness import draws_for
from harness.threats import Batch

sys.path.insert(0, str(Path(__file__).parent))
from pgd import Case, digits, resnet20

Make = Callable[[int, float], Any]
"""(steps, eps) -> an attack as its library has it."""
Side = Callable[[int, float], Tensor]
"""(steps, eps) -> the attacked images."""


@dataclass(frozen=True)
class Duel:
    """One attack in several libraries.

    Attributes:
        sides: by library; eps is infinite for CW, which is measured by the median norm it needs (`minimal`).
        steps: of the measurement of a step.
        ladder: steps that are tried in turn on the way to a result.
    """

    name: str
    sides: dict[str, Side]
    steps: int
    ladder: tuple[int, ...]
    minimal: bool = False


class Libraries:
    """What is installed, and the classifier as each library wants it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.torchattacks, self.foolbox = _imported("torchattacks"), _imported("foolbox")
        self.art = _imported("art.attacks.evasion")
        self.served = self.foolbox.PyTorchModel(case.model, bounds=(0.0, 1.0)) if self.foolbox else None
        self.estimator = _estimator(case) if self.art else None

    def sides(
        self, ours: Make, torchattacks: Make | None = None, foolbox: Make | None = None, art: Make | None = None
    ) -> dict[str, Side]:
        """The sides of a duel: ours, and those of the libraries that have the attack and are installed."""
        case = self.case
        found: dict[str, Side] = {"harness": lambda n, e: _run(case, ours(n, e))}
        if torchattacks and self.torchattacks:
            found["torchattacks"] = lambda n, e: torchattacks(n, e)(case.x, case.y)
        if foolbox and self.foolbox:
            found["foolbox"] = lambda n, e: foolbox(n, e)(
                self.served, case.x, case.y, epsilons=None if e == float("inf") else e
            )[1]
        if art and self.art:
            x, y = case.x.numpy(), case.y.numpy()
            found["art"] = lambda n, e: torch.from_numpy(art(n, e).generate(x=x, y=y))
        return found


def pgd(have: Libraries) -> Duel:
    model, size = have.case.model, len(have.case.x)
    sides = have.sides(
        lambda n, e: PGD(PGDOptions(eps=e, steps=n, step_size=_size(e, n))),
        lambda n, e: have.torchattacks.PGD(model, eps=e, alpha=_size(e, n), steps=n),
        lambda n, e: have.foolbox.attacks.LinfPGD(abs_stepsize=_size(e, n), steps=n),
        lambda n, e: have.art.ProjectedGradientDescentPyTorch(
            have.estimator, eps=e, eps_step=_size(e, n), max_iter=n, num_random_init=1, batch_size=size, verbose=False
        ),
    )
    return Duel("pgd", sides, 40, (5, 10, 20, 40, 80, 160))


def apgd(have: Libraries) -> Duel:
    model, size = have.case.model, len(have.case.x)
    fixed = {"nb_random_init": 1, "batch_size": size, "loss_type": "cross_entropy", "verbose": False}
    sides = have.sides(
        lambda n, e: APGD(APGDOptions(eps=e, steps=n)),
        lambda n, e: have.torchattacks.APGD(model, eps=e, steps=n),
        art=lambda n, e: have.art.AutoProjectedGradientDescent(
            have.estimator, eps=e, eps_step=2 * e, max_iter=n, **fixed
        ),
    )
    return Duel("apgd", sides, 20, (5, 10, 20, 40, 80, 160))


def cw(have: Libraries) -> Duel:
    model = have.case.model
    fixed = {"binary_search_steps": 3, "stepsize": 0.01, "initial_const": 1.0, "abort_early": False}
    sides = have.sides(
        lambda n, _: CW(CWOptions(steps=n, search_steps=3)),
        lambda n, _: have.torchattacks.CW(model, c=1, lr=0.01, steps=3 * n),
        lambda n, _: have.foolbox.attacks.L2CarliniWagnerAttack(steps=n, **fixed),
    )
    return Duel("cw", sides, 20, (25, 50, 100, 200, 400), minimal=True)


def square(have: Libraries) -> Duel:
    model, size = have.case.model, len(have.case.x)
    sides = have.sides(
        lambda n, e: Square(SquareOptions(eps=e, queries=n)),
        lambda n, e: have.torchattacks.Square(model, norm="Linf", eps=e, n_queries=n),
        art=lambda n, e: have.art.SquareAttack(
            have.estimator, eps=e, max_iter=n, nb_restarts=1, batch_size=size, verbose=False
        ),
    )
    return Duel("square", sides, 100, (50, 100, 200, 500, 1000, 2000))


def duels(case: Case) -> Iterator[Duel]:
    have = Libraries(case)
    for duel in (pgd, apgd, cw, square):
        yield duel(have)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return None


def _estimator(case: Case) -> Any:
    return importlib.import_module("art.estimators.classification").PyTorchClassifier(
        case.model, torch.nn.CrossEntropyLoss(), tuple(case.x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )


def _size(eps: float, steps: int) -> float:
    return 2.5 * eps / steps


def _run(case: Case, attack: Any) -> Tensor:
    """The attack as the host runs it; the host's clean evaluation is given, as it is shared by all threats."""
    ids = torch.arange(len(case.x))
    view = ModelView(case.model, {"Classifier"}, ids, 0, "attack")
    with torch.no_grad():
        clean = case.model.logits(case.x)
    images: Tensor = attack.run(view, Batch(case.x, case.y, ids, draws_for(ids, 0, "threat", "x"), clean))[
        "adversarial"
    ]
    return images


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def step_table(case: Case, rounds: int) -> None:
    """Two lengths of run, so that what comes before the first step drops out."""
    print(f"\n{case.name}, {len(case.x)} images that stand\n")
    print("| attack | library | ms a step | of ours |\n|---|---|---|---|")
    for duel in duels(case):
        eps = float("inf") if duel.minimal else 1e-6
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in duel.sides}
        for number in range(rounds + 1):
            for name, side in duel.sides.items():
                short, long = (_seconds(partial(side, steps, eps)) for steps in (duel.steps, 2 * duel.steps))
                if number:
                    seconds[name].append((short, long))
        least = {name: min(b for _, b in s) - min(a for a, _ in s) for name, s in seconds.items()}
        factor = (3 if duel.minimal else 1) * duel.steps
        for name, found in least.items():
            print(f"| {duel.name} | {name} | {1e3 * found / factor:.2f} | {found / least['harness']:.2f} |", flush=True)


def result_table(case: Case, rounds: int) -> None:
    """The aim is what every peer reaches with the most steps; how long does each take to get as far?"""
    print(f"\n{case.name}, {len(case.x)} images\n")
    print("| attack | aim | library | steps | reached | s | of ours |\n|---|---|---|---|---|---|---|")
    for duel in duels(case):
        eps = float("inf") if duel.minimal else case.five_percent
        peers = [side for name, side in duel.sides.items() if name != "harness"]
        weakest = max(_result(case, side(duel.ladder[-1], eps), duel) for side in peers)
        aim = weakest * 1.02 if duel.minimal else weakest + 0.005
        ours = 0.0
        for name, side in duel.sides.items():
            for steps in duel.ladder:
                reached = _result(case, side(steps, eps), duel)
                if reached <= aim:
                    break
            run = partial(side, steps, eps)
            seconds = min(_seconds(run) for _ in range(rounds)) if reached <= aim else float("nan")
            ours = seconds if name == "harness" else ours
            numbers = f"{aim:.3f} | {name} | {steps} | {reached:.3f} | {seconds:.2f} | {seconds / ours:.2f}"
            print(f"| {duel.name} | {numbers} |", flush=True)


def _result(case: Case, images: Tensor, duel: Duel) -> float:
    """Robust accuracy; of CW the median norm, a failure infinite."""
    with torch.no_grad():
        standing = case.model.logits(images).argmax(dim=1) == case.y
    if not duel.minimal:
        return float(standing.double().mean())
    return float(norm_of(images - case.x, "l2").masked_fill(standing, float("inf")).median())


def memory_table(data: Path | None) -> None:
    print("\n| batch | steps | restarts | peak MiB above one forward and backward of 1 image |\n|---|---|---|---|")
    settings = [(64, 10, 1), (128, 10, 1), (256, 10, 1), (128, 100, 1), (128, 10, 5)]
    base = _peak(1, 1, 1, data)
    for batch, steps, restarts in settings:
        print(f"| {batch} | {steps} | {restarts} | {_peak(batch, steps, restarts, data) - base:.0f} |", flush=True)


def _peak(batch: int, steps: int, restarts: int, data: Path | None) -> float:
    command = [sys.executable, __file__, "one", "--setting", str(batch), str(steps), str(restarts)]
    more = ["--data", str(data)] if data else []
    # Freed blocks go back at once, so that the peak is what is alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def one(case: Case, batch: int, steps: int, restarts: int) -> None:
    repeats = -(-batch // len(case.x))
    x, y = (part.repeat(repeats, *[1] * (part.ndim - 1))[:batch] for part in (case.x, case.y))
    grown = Case(case.name, case.model, x, y, steps, (), 0.0)
    _run(grown, PGD(PGDOptions(eps=1e-6, steps=steps, restarts=restarts, random_start=True)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "result", "memory", "one"])
    parser.add_argument("--data", type=Path, default=os.environ.get("HARNESS_DATA") or None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--setting", type=int, nargs=3, help="batch, steps, restarts of `one`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    data = Path(arguments.data) if arguments.data else None
    if arguments.what == "memory":
        memory_table(data)
    elif arguments.what == "one":
        one(resnet20(data) if data else digits(), *arguments.setting)
    else:
        print(f"torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f}")
        table = step_table if arguments.what == "step" else result_table
        for case in [digits(), *([resnet20(data)] if data else [])]:
            table(case, arguments.rounds)


if __name__ == "__main__":
    main()
