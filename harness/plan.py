"""Suite -> cells -> shards, with the digests by which finished shards are found again."""

from __future__ import annotations

import importlib.metadata
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness import auxiliary
from harness.capabilities import with_derived
from harness.checkpoints import file_digest
from harness.datasets import DatasetFacts, DatasetSlice, Ints
from harness.errors import HarnessError, NothingToRunError, did_you_mean, needs_trace, one_line
from harness.gate_options import matches_glob
from harness.host import Host
from harness.info import Probe
from harness.loading import build_model, build_threat, code_version, digest_of, model_digest, open_dataset
from harness.store import CellManifest, ProbeManifest
from harness.suite import DatasetEntry, ModelEntry, Suite, ThreatEntry, threat_entry

ROWS_VERSION = 1
"""Raised when rows of the same cell would come out differently; shards of an older version are then not reused."""
MICROBATCH_VALUES = 4_000_000
"""By default a microbatch holds at most so many pixel values: 256 images of CIFAR's size, 26 of ImageNet's."""
_ENGINE = tuple(
    f"{name}.py"
    for name in (
        *("arithmetic", "bpda", "datasets", "evaluate", "judge", "label_map", "models", "randomness", "readout"),
        "typicality",
    )
)
_ENGINE_ROOMS = ("backends",)


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
    """A cell whose samples and digest are known.

    Attributes:
        family: cells of one attack that differ in budget alone share it.
        data: the data set, as the suite has it.
        role: "cell" for what the suite lists, or what an auxiliary one is for.
        reference: the cell of held-out scores that it reads.
        probes: the probes that audit it.
        serves: of an auxiliary cell, the cell that it was first planned for.
        left_out: what the threat cannot show here, and why, in a line.
        classes: how many the data have.
    """

    cell: Cell
    digest: str
    model_digest: str
    ids: Ints
    shard_size: int
    family: str
    data: str | Mapping[str, Any]
    role: Literal["cell", "reference", "probe"] = "cell"
    reference: PlannedCell | None = None
    probes: tuple[ProbeManifest, ...] = ()
    serves: str = ""
    left_out: str = ""
    classes: int = 0

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
            role=self.role,
            probes=self.probes,
            left_out=self.left_out,
            classes=self.classes,
        )


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        auxiliary: cells that the suite does not list: held-out scores first, then probes.
        failed: the cells of models or threats that could not be built: (cell, one line, traceback).
    """

    suite: Suite
    facts: DatasetFacts
    cells: tuple[PlannedCell, ...]
    auxiliary: tuple[PlannedCell, ...]
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
    threats = (*suite.threats, *suite.replays)
    cells = [_cell(model, threat, suite.dataset.name) for model in suite.models for threat in threats]
    for pattern in only:
        if not any(matches_glob(cell.id, pattern) for cell in cells):
            raise NothingToRunError(f"--only {pattern}: no cell matches{did_you_mean(pattern, [c.id for c in cells])}")
    return [cell for cell in cells if not only or any(matches_glob(cell.id, pattern) for pattern in only)]


def _cell(model: ModelEntry, threat: ThreatEntry, dataset: str) -> Cell:
    lacking = sorted(threat.info.requires - with_derived(model.info.capabilities))
    skip = ""
    if lacking:
        skip = f"threat '{threat.info.name}' needs {', '.join(lacking)}, which model '{model.name}' does not have"
    elif reason := unmet(threat, model.info.capabilities):
        skip = f"threat '{threat.info.name}' on model '{model.name}': {reason}"
    return Cell(f"{model.name}/{threat.label}/{dataset}", model, threat, dataset, skip)


def unmet(threat: ThreatEntry, capabilities: frozenset[str]) -> str:
    """What a model of these capabilities of its own lacks for the threat's options, in a line; empty where nothing."""
    return threat.info.lacking(threat.options, capabilities) if threat.info.lacking else ""


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
    runnable = [cell for cell in cells if not cell.skip]
    entries = {cell.model.name: cell.model for cell in runnable}
    digests, broken, capabilities = _model_digests(entries, whole.facts, device, suite.folder)
    builder = _ThreatInputs(suite, whole.facts, host, data_root)
    microbatch = microbatch_of(suite, whole.facts)
    layout = _Layout(suite, host, slices, _common_key(suite, host, device, microbatch), digests, builder, data_root)
    planned, failed = [], []
    for cell in runnable:
        fault = broken.get(cell.model.name)
        try:
            if fault is None and (reason := unmet(cell.threat, capabilities[cell.model.name])):
                fault = f"threat '{cell.threat.label}' on model '{cell.model.name}': {reason}", ""
            if fault is None:
                planned.append(layout.cell(cell))
        except Exception as error:
            fault = _fault(f"threat '{cell.threat.label}'", error)
        if fault is not None:
            failed.append((cell, *fault))
    return Plan(
        suite=suite,
        facts=whole.facts,
        cells=tuple(_audited_by_replays(cell, planned) for cell in planned),
        auxiliary=(*layout.references.values(), *layout.probes.values()),
        skipped=tuple(cell for cell in cells if cell.skip),
        failed=tuple(failed),
        order=tuple(cell.id for cell in cells),
        microbatch=microbatch,
        identity=_identity(suite, slices),
    )


_Faults = dict[str, tuple[str, str]]  # name -> one line, and a traceback where it is of use


def _audited_by_replays(cell: PlannedCell, cells: Sequence[PlannedCell]) -> PlannedCell:
    """An attack with the replays of the same suite, in its own ball, as further probes.

    An image that was found on another model and fools this one, where the attack on it found none, shows that the
    attack failed: a gain in robust accuracy is then none.
    """
    threat = cell.cell.threat
    if threat.budget is None or threat.info.name == auxiliary.REPLAY:
        return cell
    inside = [
        other.cell
        for other in cells
        if other.cell.threat.info.name == auxiliary.REPLAY
        and other.cell.model.name == cell.cell.model.name
        and other.cell.threat.params["norm"] == threat.params.get("norm")
        and (other.cell.threat.budget or 0.0) <= threat.budget
    ]
    # Of one run the largest ball holds all that the smaller ones do.
    largest = {c.threat.params["run"]: c for c in sorted(inside, key=lambda c: c.threat.budget or 0.0)}
    added = [
        ProbeManifest("probe_transfer", "stronger", auxiliary.TRANSFER_ADVICE, cell=c.id) for c in largest.values()
    ]
    return replace(cell, probes=(*cell.probes, *added))


def _model_digests(
    entries: Mapping[str, ModelEntry], facts: DatasetFacts, device: str, folder: Path
) -> tuple[dict[str, str], _Faults, dict[str, frozenset[str]]]:
    """By name the digest of each model, what is wrong with those that cannot be built, and what the others can do."""
    digests: dict[str, str] = {}
    faults: _Faults = {}
    capabilities: dict[str, frozenset[str]] = {}
    for name, entry in entries.items():
        try:
            built = build_model(entry, facts, device, folder)
            digests[name], capabilities[name] = model_digest(entry, built, facts, device), built.capabilities
        except Exception as error:
            faults[name] = _fault(f"model '{name}'", error)
    return digests, faults, capabilities


class _ThreatInputs:
    """Digests of a threat's code, and of what it reads beside its options."""

    def __init__(self, suite: Suite, facts: DatasetFacts, host: Host, data_root: Path | None) -> None:
        self._suite, self._facts, self._host, self._root = suite, facts, host, data_root
        self._built: dict[str, tuple[str, str]] = {}  # by label: inputs, and what is left out
        self._code: dict[str, str] = {}  # by plugin: hashing a package takes milliseconds, and a suite has many cells

    def left_out(self, entry: ThreatEntry) -> str:
        """
        Raises:
            HarnessError: the threat cannot be built.
        """
        return self._facts_of(entry)[1]

    def _facts_of(self, entry: ThreatEntry) -> tuple[str, str]:
        if entry.label not in self._built:
            built = build_threat(entry, self._facts, self._host, self._root, self._suite.folder, self._own)
            self._built[entry.label] = (built.inputs, built.left_out)
        return self._built[entry.label]

    def of(self, entry: ThreatEntry) -> dict[str, str]:
        """
        Raises:
            HarnessError: the threat cannot be built.
        """
        inputs, _ = self._facts_of(entry)
        if entry.info.name not in self._code:
            self._code[entry.info.name] = code_version(entry.info.factory)
        return {"code": self._code[entry.info.name], "inputs": inputs}

    def _own(self) -> DatasetSlice:
        return open_dataset(self._suite.dataset, self._host, self._root)


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


@dataclass
class _Layout:
    """Lays out cells, with the auxiliary ones that they need."""

    suite: Suite
    host: Host
    slices: _Slices
    common: Mapping[str, Any]
    models: Mapping[str, str]  # digests by name
    inputs: _ThreatInputs
    data_root: Path | None
    references: dict[str, PlannedCell] = field(default_factory=dict)  # by model
    probes: dict[str, PlannedCell] = field(default_factory=dict)  # by digest: cells may share one

    def cell(self, cell: Cell) -> PlannedCell:
        ids = self.slices.get(cell.threat.limit).ids
        planned = self._planned(cell, ids, self.slices.digest(cell.threat.limit))
        return replace(
            planned,
            probes=tuple(self._probe(planned, p) for p in self._probes_of(cell)),
            left_out=self.inputs.left_out(cell.threat),
            classes=self.slices.get(None).facts.num_classes,
        )

    def _probes_of(self, cell: Cell) -> Sequence[Probe]:
        return auxiliary.probes_of(cell.model, cell.threat, self.suite.settings.probes)

    def _probe(self, of: PlannedCell, probe: Probe) -> ProbeManifest:
        """Plan a probe; one that cannot be planned is told in the audit and takes nothing down."""
        told = ProbeManifest(probe.name, probe.judge, probe.advice)
        try:
            threat = auxiliary.probe_entry(probe, of.cell.threat, self.host)
            ids = auxiliary.evenly(of.ids, probe.samples)
            data = digest_of([self.slices.digest(None), ids.tolist()])
            cell = Cell(f"{of.cell.id} probe {probe.name}", of.cell.model, threat, of.cell.dataset)
            planned = replace(self._planned(cell, ids, data), family="", role="probe", serves=of.cell.id)
        except Exception as error:
            return replace(told, error=_fault(f"probe {probe.name}", error)[0])
        return replace(told, cell=self.probes.setdefault(planned.digest, planned).cell.id)

    def _planned(self, cell: Cell, ids: Ints, data: str) -> PlannedCell:
        reference = self._reference(cell)
        key = {**self._key(cell.model, cell.threat), "data": data}
        if reference is not None:
            key["reference"] = reference.digest
        params = cell.threat.params
        attack = {k: v for k, v in params.items() if k != cell.threat.info.budget_option}
        return PlannedCell(
            cell=cell,
            digest=digest_of({**key, "params": params}),
            model_digest=self.models[cell.model.name],
            ids=ids,
            shard_size=self.suite.settings.shard_size,
            family=digest_of({**key, "params": attack}) if cell.threat.info.budget_option else "",
            data=self.suite.settings.dataset,
            reference=reference,
        )

    def _key(self, model: ModelEntry, threat: ThreatEntry) -> dict[str, Any]:
        return {
            **self.common,
            "model": self.models[model.name],
            "threat": threat.info.name,
            **self.inputs.of(threat),
        }

    def _reference(self, cell: Cell) -> PlannedCell | None:
        """The held-out scores that a cell reads.

        Raises:
            HarnessError: it cannot do without them, and there are no held-out images.
        """
        wanted = auxiliary.needs_reference(cell.threat)
        if not wanted and not auxiliary.gains_by_reference(cell.model, cell.threat, self.suite):
            return None
        name = cell.model.name
        if name not in self.references:
            entry = auxiliary.held_out(self.suite, self.host)
            if entry is None and wanted:
                raise HarnessError(
                    f"threat '{cell.threat.label}' needs held-out images for its thresholds, and data set"
                    f" '{self.suite.dataset.name}' has no train split: name them in the suite,"
                    ' heldout = { name = "...", ... } under [suite]'
                )
            if entry is None:
                return None
            try:
                self.references[name] = self._held_out(cell, entry)
            except HarnessError:
                if wanted:
                    raise
                return None  # thresholds would be welcome, but the attack does without
        return self.references[name]

    def _held_out(self, cell: Cell, entry: DatasetEntry) -> PlannedCell:
        found = open_dataset(entry, self.host, self.data_root)
        auxiliary.check_disjoint(self.slices.get(None), found)
        threat = threat_entry(auxiliary.HELD_OUT_SCORES, auxiliary.HELD_OUT_SCORES, {}, self.host)
        key = {**self._key(cell.model, threat), "data": found.digest()}
        return PlannedCell(
            cell=Cell(f"{cell.model.name}/{threat.label}/{entry.name}", cell.model, threat, entry.name),
            digest=digest_of({**key, "params": {}}),
            model_digest=self.models[cell.model.name],
            ids=found.ids,
            shard_size=self.suite.settings.shard_size,
            family="",
            data=entry.table,
            role="reference",
            serves=cell.id,
        )


def microbatch_of(suite: Suite, facts: DatasetFacts) -> int:
    """Samples evaluated at a time: as the suite says, or as many as the shard and the size of the images allow."""
    settings = suite.settings
    return settings.microbatch or min(settings.shard_size, max(1, MICROBATCH_VALUES // math.prod(facts.shape)))


def _common_key(suite: Suite, host: Host, device: str, microbatch: int) -> dict[str, Any]:
    import torch

    settings = suite.settings
    return {
        "rows": ROWS_VERSION,
        "engine": [file_digest(file) for file in _engine_files()],
        "reader": code_version(host.datasets.get(suite.dataset.name).factory),
        "seed": settings.seed,
        "shard_size": settings.shard_size,
        "microbatch": microbatch,
        "images": settings.store_images,
        "torch": torch.__version__,
        "pillow": importlib.metadata.version("pillow"),  # decodes and resizes images
        "device": device.partition(":")[0],
        "dtype": "float32",
    }


def _engine_files() -> list[Path]:
    """The files of the harness itself that rows depend on."""
    here = Path(__file__).parent
    return [here / name for name in _ENGINE] + [f for room in _ENGINE_ROOMS for f in sorted((here / room).glob("*.py"))]


def _identity(suite: Suite, slices: _Slices) -> dict[str, str]:
    """What a baseline and a candidate must share: data, seed, threats and model names, not the models themselves."""
    parts = {
        "dataset": slices.digest(None),
        "seed": str(suite.settings.seed),
        "threats": digest_of([[t.label, t.info.name, t.limit, t.params] for t in suite.threats]),
        "models": digest_of(sorted(m.name for m in suite.models)),
    }
    return {**parts, "hash": digest_of(parts)}
