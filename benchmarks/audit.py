"""How well the audit tells failed attacks from robust models: deceptive classifiers, and honest ones, over sweeps.

Run `python benchmarks/audit.py --store FOLDER`: every run is appended to a file there, and those that are in it are not
made again; `--seconds` ends a session early, and the next one goes on. `--table` prints what is there, as in
docs/audit.md. One thread, the digits, 8x8 pixels.

A deceptive classifier (`harness.testing.zoo`) is attacked as a user would, by PGD with its default loss, and by an
adversary who knows it (PGD on its adaptive form, two losses, images judged on the deceptive classifier). The difference
in robust accuracy is the gap that the audit has to report. An honest classifier has none to report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness_datasets.digits import Digits, DigitsOptions
from harness_torch.adversary import perturb
from harness_torch.model import build
from harness_torch.networks import digits_cnn
from harness_torch.options import Adversarial, TorchOptions
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.audit import audit, judge_probe
from harness.datasets import DatasetFacts
from harness.errors import ThreatError
from harness.evaluate import Setting, ShardTask, evaluate_batch
from harness.info import Probe, resolve
from harness.loading import BuiltModel, BuiltThreat
from harness.models import ModelContext, ModelView, prepare
from harness.threats import Batch, Budget, Columns, Threat, ThreatContext

Rows = Mapping[str, Any]
GAP = 0.05
STEPS = 20
STRENGTHS = {
    ("plain", "linf"): (0.03, 0.06, 0.1, 0.15),
    ("plain", "l2"): (0.15, 0.3, 0.5, 0.8),
    ("adversarial", "linf"): (0.1, 0.2, 0.25, 0.3),
    ("adversarial", "l2"): (0.5, 0.8, 1.2, 1.6),
}
THREATS = {
    "pgd": ("harness_attacks.options:PGDOptions", "harness_attacks.pgd:build"),
    "noise": ("harness_attacks.noise:NoiseOptions", "harness_attacks.noise:build"),
    "unbounded": ("harness_attacks.under_test:UnboundedOptions", "harness_attacks.under_test:build_unbounded"),
    "square": ("harness_attacks.square:SquareOptions", "harness_attacks.square:build"),
    "binarised": ("harness_attacks.binarised:BinarisedOptions", "harness_attacks.binarised:build"),
}
FACTS = DatasetFacts("digits", (1, 8, 8), 17, tuple("0123456789"))


class Scores(nn.Module):
    """A module as a classifier."""

    stochastic = False
    num_classes = 10

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out


@dataclass(frozen=True)
class Cell:
    """One run of the sweep: which classifier, and how PGD attacks it."""

    kind: str  # deceptive or honest
    base: str
    deception: str
    norm: str
    eps: float
    seed: int
    steps: int = STEPS

    @property
    def key(self) -> str:
        return "/".join(map(str, asdict(self).values()))


def images(split: str = "test") -> tuple[Tensor, Tensor]:
    data = Digits(DigitsOptions.model_validate({"split": split}))
    return data.images(np.arange(len(data.labels()))), torch.from_numpy(data.labels())


def embedded(name: str) -> Any:
    return prepare(build(TorchOptions(checkpoint=f"builtin:{name}"), ModelContext(name, FACTS, "cpu", Path())), "cpu")


BASES = {"plain": "digits-cnn", "adversarial": "digits-cnn-pgd"}


def classifier(base: str, store: Path) -> Any:
    """An embedded classifier, or one trained here: ``plain-3``, ``adversarial-1``, kept in the store."""
    if base in BASES:
        return embedded(BASES[base])
    file = store / f"{base}.pt"
    kind, _, seed = base.partition("-")
    if not file.exists():
        torch.save(train(int(seed), kind == "adversarial").state_dict(), file)
    module = digits_cnn()
    module.load_state_dict(torch.load(file, weights_only=True))
    return prepare(Scores(module), "cpu")


def train(seed: int, adversarial: bool) -> nn.Module:
    """The small CNN, trained for some seconds; adversarially with PGD in an l-inf ball of 0.2."""
    x, y = images("train")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = digits_cnn()
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    recipe = Adversarial.model_validate({"norm": "linf", "eps": 0.2, "steps": 5})
    for epoch in range(25 if adversarial else 15):
        for index in torch.randperm(len(x), generator=generator).split(64):
            batch = x[index]
            if adversarial:
                # The budget grows: a net that meets the whole of it at once learns nothing.
                now = recipe.model_copy(update={"eps": 0.2 * min(1.0, (epoch + 1) / 10)})
                batch = perturb(module, batch, y[index], now, generator)
            module.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(batch), y[index]).backward()
            optimizer.step()
    return module.eval()


def threat_of(plugin: str, table: Mapping[str, Any]) -> Threat:
    options, factory = THREATS[plugin]
    chosen = resolve(options, plugin).model_validate(dict(table))
    threat: Threat = resolve(factory, plugin)(chosen, ThreatContext(FACTS, _no_data, Path()))
    return threat


def rows_of(model: Any, threat: Threat, x: Tensor, y: Tensor, seed: int) -> Rows:
    """The rows of one cell, as the engine makes them."""
    setting = Setting("", "", None, (), "cpu", seed, len(x), store_images=True)
    name = type(threat).__name__
    task = ShardTask(setting, "", "", "", ("", "", {}), (name, name, {}), np.arange(len(x)))
    built = BuiltModel(model, frozenset({"Classifier"}))
    return evaluate_batch(built, BuiltThreat(threat, threat.budget), x, y, task.ids, task)


@dataclass
class Given:
    """Images that another attack made."""

    images: Any
    budget: Budget | None

    def run(self, model: ModelView, batch: Batch) -> Columns:
        return {"adversarial": self.images}


def _no_data(table: Mapping[str, Any]) -> Any:
    raise AssertionError(f"an attack opened a data set: {table}")


def evaluated(model: Any, cell: Cell, x: Tensor, y: Tensor, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """What the attack found, and what the audit makes of it: the message of each check that failed."""
    table = {"norm": cell.norm, "eps": cell.eps, "steps": cell.steps}
    try:
        rows = rows_of(model, threat_of("pgd", table), x, y, cell.seed)
    except ThreatError as error:  # the cell fails, loudly
        with torch.no_grad():
            clean = model.logits(x).argmax(dim=1) == y
        return {"stands": clean.tolist(), "checks": {"refused": str(error)}, "probes": {}, "seen": {}}
    found = {c.check: c.message for c in audit(rows) if not c.ok}
    judged, seen = {}, {}
    for name, probe in probes.items():
        n = probe.samples
        probe_rows = rows_of(model, threat_of(probe.plugin, probe.table), x[:n], y[:n], cell.seed)
        judged[name] = judge_probe(name, probe.judge, probe.advice, rows, probe_rows).message
        seen[name] = _counts(probe, rows, probe_rows)
    return {
        "clean": float(rows["clean_correct"].mean()),
        "stands": (rows["clean_correct"] & ~rows["success"]).tolist(),
        "checks": found,
        "probes": {name: message for name, message in judged.items() if message},
        "seen": seen,
        "calls": float((rows["forwards"] + rows["backwards"]).mean()),
    }


def _counts(probe: Probe, rows: Rows, probe_rows: Rows) -> list[float]:
    """What a verdict rests on: the count, of how many, and model calls a sample."""
    n = len(probe_rows["sample_id"])
    calls = float((probe_rows["forwards"] + probe_rows["backwards"]).mean())
    if probe.judge == "guaranteed":
        posed = probe_rows["task_posed"]
        return [int((posed & probe_rows["task_solved"]).sum()), int(posed.sum()), calls]
    right = rows["clean_correct"][:n]
    if probe.judge == "unbounded":
        return [int((right & ~probe_rows["success"]).sum()), int(right.sum()), calls]
    return [int((right & ~rows["success"][:n] & probe_rows["success"]).sum()), int(right.sum()), calls]


def withstands(model: Any, cell: Cell, x: Tensor, y: Tensor) -> NDArray[np.bool_]:
    """Which samples an adversary who knows the model leaves standing: PGD on its adaptive form, with both losses."""
    stands = np.ones(len(x), dtype=bool)
    for loss in ("cross-entropy", "margin"):
        table = {"norm": cell.norm, "eps": cell.eps, "steps": 2 * cell.steps, "loss": loss}
        attack = threat_of("pgd", table)
        found = rows_of(model.adaptive(), attack, x, y, cell.seed)
        judged = rows_of(model, Given(found["adversarial"], attack.budget), x, y, cell.seed)
        stands &= judged["clean_correct"] & ~judged["success"]
    return stands


def main() -> None: ...


if __name__ == "__main__":
    main()
