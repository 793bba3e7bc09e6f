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

Make = Callable[[int], Callable[[], Tensor]]
"""Steps -> an attack of so many steps that gives the attacked images."""


@dataclass(frozen=True)
class Duel:
    """One attack in several libraries.

    Attributes:
        sides: by library.
        eps: of the budget; infinite for CW, which is measured by the median norm it needs.
        steps: of the measurement of a step.
        ladder: steps that are tried in turn on the way to a result.
    """

    name: str
    sides: dict[str, Callable[[float], Make]]
    steps: int
    ladder: tuple[int, ...]
    minimal: bool = False


def duels(case: Case) -> Iterator[Duel]:
    """The attacks with the peers that have them and are installed."""
    bounds = (0.0, 1.0)
    have = {name: _imported(name) for name in ("torchattacks", "foolbox", "art.attacks.evasion")}
    ta, fb, art = have["torchattacks"], have["foolbox"], have["art.attacks.evasion"]
    served = fb.PyTorchModel(case.model, bounds=bounds) if fb else None
    estimator = _estimator(case) if art else None
    size = len(case.x)

    def ours(attack: Callable[[int, float], Any]) -> Callable[[float], Make]:
        return lambda eps: lambda steps: lambda: _run(case, attack(steps, eps))

    def of_torchattacks(make: Callable[[int, float], Any]) -> Callable[[float], Make]:
        return lambda eps: lambda steps: lambda: make(steps, eps)(case.x, case.y)

    def of_foolbox(make: Callable[[int, float], Any]) -> Callable[[float], Make]:
        return lambda eps: (
            lambda steps: (
                lambda: make(steps, eps)(served, case.x, case.y, epsilons=None if eps == float("inf") else eps)[1]
            )
        )

    def of_art(make: Callable[[int, float], Any]) -> Callable[[float], Make]:
        x, y = case.x.numpy(), case.y.numpy()
        return lambda eps: lambda steps: lambda: torch.from_numpy(make(steps, eps).generate(x=x, y=y))

    def chosen(**sides: tuple[Any, Any]) -> dict[str, Callable[[float], Make]]:
        return {name: side for name, (there, side) in sides.items() if there}

    yield Duel(
        "pgd",
        chosen(
            harness=(True, ours(lambda n, e: PGD(PGDOptions(eps=e, steps=n, step_size=_size(e, n))))),
            torchattacks=(ta, of_torchattacks(lambda n, e: ta.PGD(case.model, eps=e, alpha=_size(e, n), steps=n))),
            foolbox=(fb, of_foolbox(lambda n, e: fb.attacks.LinfPGD(abs_stepsize=_size(e, n), steps=n))),
            art=(
                art,
                of_art(
                    lambda n, e: art.ProjectedGradientDescentPyTorch(
                        estimator, eps=e, eps_step=_size(e, n), max_iter=n, num_random_init=1, batch_size=size,
                        verbose=False,
                    )
                ),
            ),
        ),
        40,
        (5, 10, 20, 40, 80, 160),
    )  # fmt: skip
    yield Duel(
        "apgd",
        chosen(
            harness=(True, ours(lambda n, e: APGD(APGDOptions(eps=e, steps=n)))),
            torchattacks=(ta, of_torchattacks(lambda n, e: ta.APGD(case.model, eps=e, steps=n))),
            art=(
                art,
                of_art(
                    lambda n, e: art.AutoProjectedGradientDescent(
                        estimator, eps=e, eps_step=2 * e, max_iter=n, nb_random_init=1, batch_size=size,
                        loss_type="cross_entropy", verbose=False,
                    )
                ),
            ),
        ),
        20,
        (5, 10, 20, 40, 80, 160),
    )  # fmt: skip
    yield Duel(
        "cw",
        chosen(
            harness=(True, ours(lambda n, _: CW(CWOptions(steps=n, search_steps=3)))),
            torchattacks=(ta, of_torchattacks(lambda n, _: ta.CW(case.model, c=1, lr=0.01, steps=3 * n))),
            foolbox=(
                fb,
                of_foolbox(
                    lambda n, _: fb.attacks.L2CarliniWagnerAttack(
                        binary_search_steps=3, steps=n, stepsize=0.01, initial_const=1.0, abort_early=False
                    )
                ),
            ),
        ),
        20,
        (25, 50, 100, 200, 400),
        minimal=True,
    )
    yield Duel(
        "square",
        chosen(
            harness=(True, ours(lambda n, e: Square(SquareOptions(eps=e, queries=n)))),
            torchattacks=(ta, of_torchattacks(lambda n, e: ta.Square(case.model, norm="Linf", eps=e, n_queries=n))),
            art=(
                art,
                of_art(
                    lambda n, e: art.SquareAttack(
                        estimator, eps=e, max_iter=n, nb_restarts=1, batch_size=size, verbose=False
                    )
                ),
            ),
        ),
        100,
        (50, 100, 200, 500, 1000, 2000),
    )


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
        runs = {name: (side(eps)(duel.steps), side(eps)(2 * duel.steps)) for name, side in duel.sides.items()}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, both in runs.items():
                short, long = (_seconds(run) for run in both)
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
        weakest = max(_result(case, side(eps)(duel.ladder[-1])(), duel) for side in peers)
        aim = weakest * 1.02 if duel.minimal else weakest + 0.005
        ours = 0.0
        for name, side in duel.sides.items():
            for steps in duel.ladder:
                reached = _result(case, side(eps)(steps)(), duel)
                if reached <= aim:
                    break
            run = side(eps)(steps)
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
