"""Suite -> cells -> shards, with the digests by which finished shards are found again."""

from __future__ import annotations

import importlib.metadata
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.capabilities import with_derived
from harness.checkpoints import file_digest
from harness.datasets import DatasetFacts, DatasetSlice, Ints
from harness.errors import HarnessError, NothingToRunError, did_you_mean, needs_trace, one_line
from harness.gate_options import matches_glob
from harness.host import Host
from harness.loading import build_model, build_threat, code_version, digest_of, model_digest, open_dataset
from harness.store import CellManifest
from harness.suite import ModelEntry, Suite, ThreatEntry

ROWS_VERSION = 1
"""Raised when rows of the same cell would come out differently; shards of an older version are then not reused."""
MICROBATCH_VALUES = 4_000_000
"""By default a microbatch holds at most so many pixel values: 256 images of CIFAR's size, 26 of ImageNet's."""
_ENGINE = ("evaluate.py", "judge.py", "models.py", "randomness.py")


@dataclass(frozen=True)
class Cell:
    """One model x one threat with concrete parameters x one data set. `skip` says why it cannot be run, if it can't."""

    id: str
    model: ModelEntry
    threat: ThreatEntry
    dataset: str
    skip: str = ""


@dataclass(frozen=True)
class PlannedCell:
    """A cell whose samples and digest are known."""

    cell: Cell
    digest: str
    model_digest: str
    ids: Ints
    shard_size: int
    family: str

    def shards(self) -> list[Ints]:
        """The sample ids of each shard. Never depends on the number of workers."""
        return [self.ids[i : i + self.shard_size] for i in range(0, len(self.ids), self.shard_size)]

    def manifest(self) -> CellManifest:
        cell = self.cell
        return CellManifest(
            id=cell.id,
            digest=self.digest,
            model=cell.model.name,
            threat=cell.threat.label,
            plugin=cell.threat.info.name,
            dataset=cell.dataset,
            params=cell.threat.params,
            variants=cell.threat.info.variants,
            samples=len(self.ids),
            shards=tuple(int(ids[0]) for ids in self.shards()),
            family=self.family,
            budget=cell.threat.budget,
        )


@dataclass(frozen=True)
class Plan:
    """What a run will do. `failed` holds the cells of models that could not be built: (cell, one line, traceback)."""

    suite: Suite
    facts: DatasetFacts
    cells: tuple[PlannedCell, ...]
    skipped: tuple[Cell, ...]
    failed: tuple[tuple[Cell, str, str], ...]
    order: tuple[str, ...]  # ids of all cells, as the suite lists them
    identity: dict[str, str]
    microbatch: int


def expand(suite: Suite, only: Sequence[str] = ()) -> list[Cell]:
    """All cells of a suite, without looking at data or checkpoints; impossible pairs carry the reason.

    Args:
        only: keep the cells whose id matches one of these patterns (`*` and `?` are wildcards).

    Raises:
        NothingToRunError: a pattern matches no cell.
    """
    cells = [_cell(model, threat, suite.dataset.name) for model in suite.models for threat in suite.threats]
    for pattern in only:
        if not any(matches_glob(cell.id, pattern) for cell in cells):
            raise NothingToRunError(f"--only {pattern}: no cell matches{did_you_mean(pattern, [c.id for c in cells])}")
    return [cell for cell in cells if not only or any(matches_glob(cell.id, pattern) for pattern in only)]


def _cell(model: ModelEntry, threat: ThreatEntry, dataset: str) -> Cell:
    lacking = sorted(threat.info.requires - with_derived(model.info.capabilities))
    skip = ""
    if lacking:
        skip = f"threat '{threat.info.name}' needs {', '.join(lacking)}, which model '{model.name}' does not have"
    return Cell(f"{model.name}/{threat.label}/{dataset}", model, threat, dataset, skip)


def resolve(
    suite: Suite,
    cells: Sequence[Cell],
    host: Host,
    *,
    device: str,
    data_root: Path | None,
    limit: int | None = None,
) -> Plan:
    """Open the data, build each model once for its digest, and lay out the shards.

    A model that cannot be built takes down its own cells only.

    Raises:
        HarnessError: the data set cannot be opened.
    """
    slices = _Slices(suite, host, data_root, limit)
    whole = slices.get(None)
    entries = {cell.model.name: cell.model for cell in cells if not cell.skip}
    digests, broken = _model_digests(entries, whole.facts, device, suite.folder)
    inputs, unbuilt = _threat_inputs(suite, cells, whole.facts, host, data_root)
    planned, failed = [], []
    microbatch = microbatch_of(suite, whole.facts)
    reader = code_version(host.datasets.get(suite.dataset.name).factory)
    common = {**_common_key(suite, device, microbatch), "reader": reader}
    for cell in cells:
        if cell.skip:
            continue
        fault = broken.get(cell.model.name) or unbuilt.get(cell.threat.label)
        if fault:
            failed.append((cell, *fault))
            continue
        key = {**common, "model": digests[cell.model.name], "inputs": inputs[cell.threat.label]}
        planned.append(_planned(suite, cell, slices, key))
    return Plan(
        suite=suite,
        facts=whole.facts,
        cells=tuple(planned),
        skipped=tuple(cell for cell in cells if cell.skip),
        failed=tuple(failed),
        order=tuple(cell.id for cell in cells),
        microbatch=microbatch,
        identity=_identity(suite, slices),
    )


_Faults = dict[str, tuple[str, str]]  # name -> one line, and a traceback where it is of use


def _model_digests(
    entries: Mapping[str, ModelEntry], facts: DatasetFacts, device: str, folder: Path
) -> tuple[dict[str, str], _Faults]:
    """Digest of each model by name, and what is wrong with those that cannot be built."""
    digests: dict[str, str] = {}
    faults: _Faults = {}
    for name, entry in entries.items():
        try:
            digests[name] = model_digest(entry, build_model(entry, facts, device, folder), facts, device)
        except Exception as error:
            faults[name] = _fault(f"model '{name}'", error)
    return digests, faults


def _threat_inputs(
    suite: Suite, cells: Sequence[Cell], facts: DatasetFacts, host: Host, data_root: Path | None
) -> tuple[dict[str, str], _Faults]:
    """Digest of what each threat reads, by label, and what is wrong with those that cannot be built."""
    inputs: dict[str, str] = {}
    faults: _Faults = {}
    for label, entry in {cell.threat.label: cell.threat for cell in cells if not cell.skip}.items():
        try:
            inputs[label] = build_threat(entry, facts, host, data_root, suite.folder).inputs
        except Exception as error:
            faults[label] = _fault(f"threat '{label}'", error)
    return inputs, faults


def _fault(what: str, error: Exception) -> tuple[str, str]:
    if isinstance(error, HarnessError):
        return str(error), traceback.format_exc() if needs_trace(error) else ""
    return f"{what}: {one_line(error)}", traceback.format_exc()


class _Slices:
    """The data set at each limit that threats ask for."""

    def __init__(self, suite: Suite, host: Host, data_root: Path | None, limit: int | None) -> None:
        self._suite, self._host, self._root, self._limit = suite, host, data_root, limit
        self._slices: dict[int | None, tuple[DatasetSlice, str]] = {}

    def get(self, threat_limit: int | None) -> DatasetSlice:
        return self._at(threat_limit)[0]

    def digest(self, threat_limit: int | None) -> str:
        return self._at(threat_limit)[1]

    def _at(self, threat_limit: int | None) -> tuple[DatasetSlice, str]:
        limits = [n for n in (threat_limit, self._limit) if n is not None]
        key = min(limits) if limits else None
        if key not in self._slices:
            found = open_dataset(self._suite.dataset, self._host, self._root, key)
            self._slices[key] = (found, found.digest())
        return self._slices[key]


def _planned(suite: Suite, cell: Cell, slices: _Slices, common: dict[str, Any]) -> PlannedCell:
    threat = cell.threat
    version = code_version(threat.info.factory)
    attack = {k: v for k, v in threat.params.items() if k != threat.info.budget_option}
    key = {**common, "data": slices.digest(threat.limit), "threat": threat.info.name, "code": version}
    family = digest_of({**key, "params": attack}) if threat.info.budget_option else ""
    return PlannedCell(
        cell=cell,
        digest=digest_of({**key, "params": threat.params}),
        model_digest=common["model"],
        ids=slices.get(threat.limit).ids,
        shard_size=suite.settings.shard_size,
        family=family,
    )


def microbatch_of(suite: Suite, facts: DatasetFacts) -> int:
    """Samples evaluated at a time: as the suite says, or as many as the shard and the size of the images allow."""
    settings = suite.settings
    return settings.microbatch or min(settings.shard_size, max(1, MICROBATCH_VALUES // math.prod(facts.shape)))


def _common_key(suite: Suite, device: str, microbatch: int) -> dict[str, Any]:
    import torch

    settings = suite.settings
    return {
        "rows": ROWS_VERSION,
        "engine": [file_digest(Path(__file__).with_name(name)) for name in _ENGINE],
        "seed": settings.seed,
        "shard_size": settings.shard_size,
        "microbatch": microbatch,
        "images": settings.store_images,
        "torch": torch.__version__,
        "pillow": importlib.metadata.version("pillow"),  # decodes and resizes images
        "device": device.partition(":")[0],
        "dtype": "float32",
    }


def _identity(suite: Suite, slices: _Slices) -> dict[str, str]:
    """What a baseline and a candidate must share: data, seed, threats and model names, not the models themselves."""
    parts = {
        "dataset": slices.digest(None),
        "seed": str(suite.settings.seed),
        "threats": digest_of([[t.label, t.info.name, t.limit, t.params] for t in suite.threats]),
        "models": digest_of(sorted(m.name for m in suite.models)),
    }
    return {**parts, "hash": digest_of(parts)}
