"""How well the audit tells failed attacks from robust models: deceptive classifiers, and honest ones, over sweeps.

Run `python benchmarks/audit.py --store FOLDER`: every run is appended to a file there, and those that are in it are not
made again; `--seconds` ends a session early, and the next one goes on. `--table` prints what is there, as in
docs/audit.md. One thread, the digits, 8x8 pixels.

A deceptive classifier (`harness.testing.zoo`) is attacked as a user would, by PGD with its default loss, and by an
adversary who knows it (PGD on its adaptive form, two losses, images judged on the deceptive classifier). The difference
in robust accuracy is the gap that the audit has to report. An honest classifier has none to report.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness_attacks.options import PGDOptions
from harness_attacks.probes import probes_of
from harness_datasets.digits import Digits, DigitsOptions
from harness_torch.adversary import perturb
from harness_torch.model import build
from harness_torch.options import Adversarial, TorchOptions
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.audit import audit, judge_probe
from harness.audit.comparisons import tells
from harness.datasets import DatasetFacts
from harness.errors import ThreatError
from harness.evaluate import Setting, ShardTask, evaluate_batch
from harness.info import Probe, ProbeJudge, resolve
from harness.loading import BuiltModel, BuiltThreat
from harness.models import ModelContext, ModelView, prepare
from harness.testing.zoo import ZOO
from harness.threats import Batch, Budget, Columns, Threat, ThreatContext

Rows = Mapping[str, Any]
GAP = 0.05
STEPS = 15
STRENGTHS = {
    ("plain", "linf"): (0.02, 0.05, 0.08, 0.12),
    ("plain", "l2"): (0.15, 0.3, 0.5, 0.8),
    ("adversarial", "linf"): (0.05, 0.1, 0.2, 0.25),
    ("adversarial", "l2"): (0.3, 0.6, 1.0, 1.4),
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
    """One run of the sweep: which classifier, how PGD attacks it, on how many images.

    `deception` is a name of the zoo, or "" for an honest run; `base` one of `classifier`.
    """

    base: str
    deception: str
    norm: str
    eps: float
    seed: int
    samples: int
    restarts: int

    @property
    def key(self) -> str:
        return "/".join(map(str, asdict(self).values()))


def cells() -> Iterator[Cell]:
    """The sweep: 380 runs of deceptive classifiers (restarts 1, as by default), 304 of honest ones (restarts 2)."""
    for (kind, norm), strengths in STRENGTHS.items():
        for number, eps in enumerate(strengths):
            for deception in ZOO:
                if deception.name == "boundary-detector":
                    continue  # what it hides is robust accuracy with rejection
                yield Cell(f"{kind}-0", deception.name, norm, eps, 0, 150, 1)
                if number == 2:
                    yield Cell(kind, deception.name, norm, eps, 0, 100, 1)
            for training in range(1, 5):
                for seed in range(4):
                    yield Cell(f"{kind}-{training}", "", norm, eps, seed, 150, 2)
            for seed in range(3):
                yield Cell(kind, "", norm, eps, seed, 80, 2)


def images(split: str = "test") -> tuple[Tensor, Tensor]:
    data = Digits(DigitsOptions.model_validate({"split": split}))
    return data.images(np.arange(len(data.labels()))), torch.from_numpy(data.labels())


def embedded(name: str) -> Any:
    return prepare(build(TorchOptions(checkpoint=f"builtin:{name}"), ModelContext(name, FACTS, "cpu", Path())), "cpu")


BASES = {"plain": "digits-cnn", "adversarial": "digits-cnn-pgd"}


def classifier(base: str, store: Path) -> Any:
    """An embedded CNN ("plain", "adversarial"), or a perceptron trained here ("plain-3"), kept in the store."""
    if base in BASES:
        return embedded(BASES[base])
    file = store / f"{base}.pt"
    kind, _, seed = base.partition("-")
    if not file.exists():
        torch.save(train(int(seed), kind == "adversarial").state_dict(), file)
    module = perceptron()
    module.load_state_dict(torch.load(file, weights_only=True))
    return prepare(Scores(module), "cpu")


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def train(seed: int, adversarial: bool) -> nn.Module:
    """A perceptron after some seconds of training; adversarially with PGD in an l-inf ball of 0.15."""
    x, y = images("train")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = perceptron()
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for epoch in range(30 if adversarial else 15):
        # The budget grows: a net that meets the whole of it at once learns nothing.
        eps = 0.15 * min(1.0, (epoch + 1) / 10)
        recipe = Adversarial.model_validate({"norm": "linf", "eps": eps, "steps": 5})
        for index in torch.randperm(len(x), generator=generator).split(64):  # type: ignore[no-untyped-call]
            batch = perturb(module, x[index], y[index], recipe, generator) if adversarial else x[index]
            module.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(batch), y[index]).backward()  # type: ignore[no-untyped-call]
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

    def run(self, model: ModelView, batch: Batch) -> Columns:  # noqa: ARG002 - what a threat is given
        return {"adversarial": self.images}


def _no_data(table: Mapping[str, Any]) -> Any:
    raise AssertionError(f"an attack opened a data set: {table}")


def evaluated(model: Any, cell: Cell, x: Tensor, y: Tensor, everything: bool) -> dict[str, Any]:
    """What the attack found and what the audit makes of it: the message of each check that failed.

    The probes that are not run by default are run where nothing has been flagged yet, or with `everything`.
    """
    table = {"norm": cell.norm, "eps": cell.eps, "steps": STEPS, "restarts": cell.restarts}
    try:
        rows = rows_of(model, threat_of("pgd", table), x, y, cell.seed)
    except ThreatError as error:  # the cell fails, loudly
        with torch.no_grad():
            clean = model.logits(x).argmax(dim=1) == y
        return {"stands": clean.tolist(), "flags": {"refused": str(error)}, "more_flags": {}, "seen": {}}
    seen: dict[str, list[float]] = {}
    flags = {check.check: check.message for check in audit(rows) if not check.ok}
    more_flags: dict[str, str] = {}
    for probe in sorted(probes_of(PGDOptions.model_validate(table)), key=lambda probe: not probe.default):
        if not probe.default and flags and not everything:
            continue
        n = probe.samples
        probe_rows = rows_of(model, threat_of(probe.plugin, probe.table), x[:n], y[:n], cell.seed)
        check = judge_probe(probe.name, probe.judge, probe.advice, rows, probe_rows)
        seen[probe.name] = _counts(probe, rows, probe_rows)
        if not check.ok:
            (flags if probe.default else more_flags)[check.check] = check.message
    return {
        "clean": float(rows["clean_correct"].mean()),
        "stands": (rows["clean_correct"] & ~rows["success"]).tolist(),
        "flags": flags,
        "more_flags": more_flags,
        "seen": seen,
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
        table = {"norm": cell.norm, "eps": cell.eps, "steps": 2 * STEPS, "loss": loss, "restarts": 2}
        attack = threat_of("pgd", table)
        adaptive = model.adaptive() if cell.deception else model
        found = rows_of(adaptive, attack, x, y, cell.seed + 100)
        judged = rows_of(model, Given(torch.as_tensor(found["adversarial"]), attack.budget), x, y, cell.seed)
        stands &= judged["clean_correct"] & ~judged["success"]
    return stands


def result(cell: Cell, store: Path) -> dict[str, Any]:
    """The record of one run."""
    x, y = images()
    x, y = x[: cell.samples], y[: cell.samples]
    model = classifier(cell.base, store)
    if cell.deception:
        wrap = next(d.wrap for d in ZOO if d.name == cell.deception)
        model = prepare(wrap(model), "cpu")
    record = evaluated(model, cell, x, y, everything=not cell.deception)
    stands = np.asarray(record.pop("stands"))
    record["robust"] = float(stands.mean())
    record["adaptive"] = float((stands & withstands(model, cell, x, y)).mean())
    return {**asdict(cell), **record}


def sweep(store: Path, seconds: float, part: int, parts: int) -> None:
    """Make the runs of one part that the store lacks, in a random order, until the time is over."""
    known = {record["key"] for record in read(store)}
    mine = list(cells())[part::parts]
    missing = [mine[k] for k in np.random.default_rng(0).permutation(len(mine)) if mine[k].key not in known]
    end = time.monotonic() + seconds
    with (store / f"runs-{part}-of-{parts}.jsonl").open("a", encoding="utf-8") as out:
        for cell in missing:
            if time.monotonic() > end:
                break
            out.write(json.dumps({"key": cell.key, **result(cell, store)}) + "\n")
            out.flush()


def read(store: Path) -> list[dict[str, Any]]:
    """The runs in a store, in the order of their keys."""
    lines = [line for file in store.glob("runs-*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    records = {record["key"]: record for record in map(json.loads, lines)}
    return [records[key] for key in sorted(records)]


def flagged(record: Mapping[str, Any], default: bool) -> list[str]:
    """The checks that failed in a run, judged by today's thresholds; with `default` without the further probes."""
    names = [name for name in record["flags"] if not name.startswith("probe_")]
    for name, (count, n, _) in record["seen"].items():
        judge: ProbeJudge = {"probe_unbounded": "unbounded", "probe_binarised": "guaranteed"}.get(name, "stronger")  # type: ignore[assignment]
        if (name in DEFAULT or not default) and tells(judge, int(count), int(n)):
            names.append(name)
    return names


DEFAULT = {p.name for p in probes_of(PGDOptions.model_validate({"eps": 0.1})) if p.default}


def print_tables(records: list[dict[str, Any]]) -> None:
    """The tables of docs/audit.md."""
    print("| deceptive classifier | half | runs | PGD says | truth | gaps | flagged by default | with all | by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for deception in ZOO:
        own = [record for record in records if record["deception"] == deception.name]
        if own:
            half = "tuning" if deception.tuned else "report"
            print(f"| {deception.name} | {half} | {_of_deception(own)} |")
    for tuned in (True, False):
        names = {deception.name for deception in ZOO if deception.tuned == tuned}
        both = [record for record in records if record["deception"] in names]
        print(f"| **all** | {'tuning' if tuned else 'report'} | {_of_deception(both)} |")
    print("\n| honest classifier | runs | PGD says | truth | flagged by default | with all | of these, gap above 2 |")
    print("|---|---|---|---|---|---|---|")
    honest = [record for record in records if not record["deception"]]
    for name, kinds in (("perceptrons", "-"), ("embedded CNNs", "")):
        own = [record for record in honest if ("-" in record["base"]) == bool(kinds)]
        print(f"| {name} | {_of_honest(own)} |")
    print(f"| **all** | {_of_honest(honest)} |")
    for record in honest:
        if found := flagged(record, default=False):
            print(f"  flagged: {record['key']} {record['robust']:.3f} -> {record['adaptive']:.3f} {', '.join(found)}")
    for record in records:
        if record["deception"] and _gap(record) > GAP and not flagged(record, default=False):
            print(f"  missed: {record['key']} {record['robust']:.3f} -> {record['adaptive']:.3f}")


def _gap(record: Mapping[str, Any]) -> float:
    return float(record["robust"] - record["adaptive"])


def _of_deception(own: list[dict[str, Any]]) -> str:
    wide = [record for record in own if _gap(record) > GAP]
    default = sum(bool(flagged(record, default=True)) for record in wide)
    everything = sum(bool(flagged(record, default=False)) for record in wide)
    names = Counter(name for record in wide for name in flagged(record, default=False))
    by = ", ".join(name.removeprefix("probe_") for name, _ in names.most_common(3))
    robust, adaptive = (float(np.mean([record[key] for record in own])) for key in ("robust", "adaptive"))
    return f"{len(own)} | {robust:.0%} | {adaptive:.0%} | {len(wide)} | {default} | {everything} | {by}"


def _of_honest(own: list[dict[str, Any]]) -> str:
    if not own:
        return "0 | | | | |"
    robust, adaptive = (float(np.mean([record[key] for record in own])) for key in ("robust", "adaptive"))
    default = sum(bool(flagged(record, default=True)) for record in own)
    all_flagged = [record for record in own if flagged(record, default=False)]
    real = sum(_gap(record) > 0.02 for record in all_flagged)
    return f"{len(own)} | {robust:.1%} | {adaptive:.1%} | {default} | {len(all_flagged)} | {real}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="folder of the runs and the trained classifiers")
    parser.add_argument("--seconds", type=float, default=1e9, help="how long to go on")
    parser.add_argument("--part", default="0/1", help="share the runs among processes: 0/2 and 1/2")
    parser.add_argument("--table", action="store_true", help="run nothing; print what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    arguments.store.mkdir(parents=True, exist_ok=True)
    if arguments.table:
        planned = {cell.key for cell in cells()}
        print_tables([record for record in read(arguments.store) if record["key"] in planned])
    else:
        part, parts = map(int, arguments.part.split("/"))
        sweep(arguments.store, arguments.seconds, part, parts)


if __name__ == "__main__":
    main()
