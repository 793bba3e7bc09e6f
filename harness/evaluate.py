"""One shard: model x threat x samples -> rows. What a threat returns is checked here, whatever it says of itself."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.datasets import DatasetFacts, DatasetSlice, Ints
from harness.errors import HarnessError, ModelError, ThreatError, needs_trace, one_line
from harness.host import Host, load_host
from harness.judge import OF_CLEAN, OF_IMAGES, Judge
from harness.loading import (
    BuiltModel,
    BuiltThreat,
    build_model,
    build_threat,
    model_digest,
    on_import_path,
    open_dataset,
)
from harness.models import Reference
from harness.randomness import draws_for
from harness.store import read_shards, shard_path, write_shard
from harness.suite import dataset_entry, model_entry, threat_entry
from harness.threats import Batch, Budget

if TYPE_CHECKING:
    from torch import Tensor

_OF_HOST = (*OF_CLEAN, "forwards", "backwards")


@dataclass(frozen=True)
class Setting:
    """What all shards of a run share; JSON-able, so that a worker on any machine can start from it."""

    folder: str  # of the run
    suite_folder: str
    data_root: str | None
    plugins: tuple[str, ...]
    device: str
    seed: int
    microbatch: int
    store_images: bool


@dataclass(frozen=True)
class ShardTask:
    """One shard to run. Models and threats travel as the tables the user wrote, and are validated again on arrival."""

    setting: Setting
    cell: str
    digest: str
    dataset: str | Mapping[str, Any]  # as the suite has it
    model: tuple[str, str, Mapping[str, Any]]  # name, plugin and options as written
    threat: tuple[str, str, Mapping[str, Any]]  # label, plugin and options as written
    ids: Ints
    model_digest: str = ""  # what the plan found; a model that turns out to be another is refused
    reference: tuple[str, tuple[int, ...]] | None = None  # the cell of held-out scores: digest, first ids of its shards
    keep_images: bool = True


@dataclass(frozen=True)
class ShardOutcome:
    """What became of a shard. `error` is one line; `trace` is kept when the fault is not the user's to mend."""

    cell: str
    first_id: int
    samples: int
    seconds: float
    error: str = ""
    trace: str = ""
    fatal: bool = False  # nothing else can succeed either, such as on a full disk


@dataclass
class Workbench:
    """What one process keeps between shards: plugins, the data set, and the models it has built."""

    host: Host
    slices: dict[str, DatasetSlice] = field(default_factory=dict)
    models: dict[str, BuiltModel] = field(default_factory=dict)
    threats: dict[str, BuiltThreat] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)

    def dataset(self, task: ShardTask) -> DatasetSlice:
        key = repr(task.dataset)
        if key not in self.slices:
            entry = dataset_entry(task.dataset, self.host, "dataset")
            self.slices = {key: open_dataset(entry, self.host, _path(task.setting.data_root))}
        return self.slices[key]

    def model(self, task: ShardTask, facts: DatasetFacts) -> BuiltModel:
        setting = task.setting
        key = repr((task.model, setting.suite_folder, setting.device))
        if key not in self.models:
            # One model at a time: tasks come ordered by model, and two large ones need not fit in memory together.
            self.models.clear()
            entry = model_entry(*task.model, self.host)
            built = build_model(entry, facts, setting.device, Path(setting.suite_folder))
            if task.model_digest and model_digest(entry, built, facts, setting.device) != task.model_digest:
                raise ModelError(f"model '{entry.name}' is no longer what it was when the run began; run again")
            self.models[key] = built
        return replace(self.models[key], readout=facts.readout)  # held-out data may have other classes

    def threat(self, task: ShardTask, facts: DatasetFacts) -> BuiltThreat:
        key = repr((task.threat, task.dataset))
        if key not in self.threats:
            entry = threat_entry(*task.threat, self.host)
            root, folder = _path(task.setting.data_root), Path(task.setting.suite_folder)
            own = partial(self.dataset, task)
            self.threats = {key: build_threat(entry, facts, self.host, root, folder, own)}
        return self.threats[key]

    def reference(self, task: ShardTask) -> Reference | None:
        """The held-out scores that the task's threat asked for, as an earlier cell wrote them."""
        if task.reference is None:
            return None
        digest, shards = task.reference
        if digest not in self.references:
            paths = [shard_path(Path(task.setting.folder), digest, first) for first in shards]
            self.references = {digest: Reference(read_shards(paths))}
        return self.references[digest]


def workbench(setting: Setting, host: Host | None = None) -> Workbench:
    """A fresh bench for a process that runs shards of this setting, with the plugins it names unless given a host."""
    on_import_path(Path(setting.suite_folder))
    return Workbench(host or load_host(setting.plugins))


def run_shard(task: ShardTask, bench: Workbench) -> ShardOutcome:
    """Evaluate a shard and write its rows. Never raises: what goes wrong is in the outcome."""
    start = time.perf_counter()
    error, trace, fatal = "", "", False
    try:
        columns = evaluate_shard(task, bench)
        facts = {"cell": task.digest, "samples": samples_digest(task.ids)}
        try:
            write_shard(shard_path(Path(task.setting.folder), task.digest, int(task.ids[0])), columns, facts)
        except HarnessError:
            fatal = True
            raise
    except HarnessError as problem:
        error = str(problem)
        if needs_trace(problem):
            trace = traceback.format_exc()
    except (Exception, SystemExit) as problem:  # a model that calls sys.exit() ends its cell, not the run
        error = one_line(problem)
        trace = traceback.format_exc()
    return ShardOutcome(task.cell, int(task.ids[0]), len(task.ids), time.perf_counter() - start, error, trace, fatal)


def evaluate_shard(task: ShardTask, bench: Workbench) -> dict[str, NDArray[Any]]:
    """The rows of one shard, microbatch by microbatch."""
    data = bench.dataset(task)
    built = bench.model(task, data.facts)
    threat = bench.threat(task, data.facts)
    reference = bench.reference(task)
    size = task.setting.microbatch
    parts = []
    for start in range(0, len(task.ids), size):
        ids = task.ids[start : start + size]
        x, y = data.load(ids)
        columns = evaluate_batch(built, threat, x, y, ids, task, reference)
        if not (task.setting.store_images and task.keep_images):
            columns.pop("adversarial", None)
        parts.append(columns)
    every = set().union(*parts)
    uneven = sorted(name for name in every if not all(name in part for part in parts))
    if uneven:
        raise ThreatError(f"column '{uneven[0]}' is in some batches and not in others")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evaluate_batch(
    built: BuiltModel,
    threat: BuiltThreat,
    x: Tensor,
    y: Tensor,
    ids: Ints,
    task: ShardTask,
    reference: Reference | None = None,
) -> dict[str, NDArray[Any]]:
    """The rows of one batch: the threat's columns, checked, with those that the host adds (see `harness.threats`)."""
    import torch

    setting = task.setting
    x, y = x.to(setting.device), y.to(setting.device)
    sample_ids = torch.from_numpy(ids).to(setting.device)
    judge = Judge(built, x, y, sample_ids, setting.seed, reference)
    host_columns = {"sample_id": ids, "label": _array("label", y)}
    clean = None
    with _unchanged("the model changes its input in place; let it work on a copy (x = x.clone())", ModelError, x):
        if "Classifier" in judge.model.capabilities:
            clean, answers = judge.clean()
            host_columns |= {name: _array(name, values) for name, values in answers.items()}
    view = built.view(sample_ids, setting.seed, "attack", reference)
    draws = draws_for(sample_ids, setting.seed, "threat", task.threat[1])
    shifts = Judge(built, x, y, sample_ids, setting.seed, reference) if threat.budget is None else None
    batch = Batch(
        x,
        y,
        sample_ids,
        draws,
        clean_logits=clean.logits if clean else None,
        clean_prediction=clean.prediction if clean else None,
        judge=shifts.shifted if shifts else None,
    )
    given = [t for t in (x, y, sample_ids, batch.clean_logits, batch.clean_prediction) if t is not None]
    with _unchanged("the threat changed what it was given in place; let it work on copies", ThreatError, *given):
        columns = _returned(threat.threat.run(view, batch), threat.budget)
    if "adversarial" in columns:
        if clean is None:
            raise ThreatError("a threat that returns adversarial images needs a classifier; let it require one")
        columns["adversarial"] = images = torch.as_tensor(columns["adversarial"], device=x.device)
        columns.update(judge.attacked(images, threat.budget, clean))
    arrays = {name: _array(name, values) for name, values in columns.items()}
    forwards = view.forwards + shifts.model.forwards if shifts else view.forwards
    cost = {"forwards": _array("forwards", forwards), "backwards": _array("backwards", view.backwards)}
    if "sample_id" in arrays:
        return _with_own_ids(arrays, cost, ids)
    # Twice, so that these columns come first, and are the host's own whatever the threat returned.
    rows = {**host_columns, **arrays, **host_columns, **cost}
    _check_lengths(rows, len(ids))
    return rows


@contextmanager
def _unchanged(complaint: str, kind: type[HarnessError], *tensors: Tensor) -> Iterator[None]:
    """Raise `complaint` where one of the tensors was changed in place meanwhile."""
    versions = [tensor._version for tensor in tensors]
    yield
    if [tensor._version for tensor in tensors] != versions:
        raise kind(complaint)


def _returned(returned: Any, budget: Budget | None) -> dict[str, Any]:
    """A threat's columns; refused where they claim what only images can show."""
    if not isinstance(returned, Mapping) or not returned:
        raise ThreatError(f"the threat returned {type(returned).__name__}, not columns by name")
    columns = dict(returned)
    claimed = [name for name in OF_IMAGES if name in columns]
    if "adversarial" not in columns and (claimed or budget is not None):
        what = f"a column '{claimed[0]}'" if claimed else "a budget"
        raise ThreatError(f"the threat has {what} but returned no adversarial images that would show it")
    if "adversarial" in columns and "sample_id" in columns:
        raise ThreatError("adversarial images come in the batch's order, one a sample; leave out the column sample_id")
    return columns


def samples_digest(ids: Ints) -> str:
    """Which samples a shard holds, in a few characters."""
    return f"{len(ids)}:{int(ids[0])}-{int(ids[-1])}:{int(np.bitwise_xor.reduce(ids * 2654435761 % 2**32))}"


def _with_own_ids(
    arrays: dict[str, NDArray[Any]], cost: Mapping[str, NDArray[Any]], ids: Ints
) -> dict[str, NDArray[Any]]:
    """Rows that name their samples themselves: each carries the whole cost of its sample."""
    claimed = [name for name in _OF_HOST if name in arrays]
    if claimed:
        raise ThreatError(f"column '{claimed[0]}' is the host's; rows that name their samples cannot claim it")
    _check_lengths(arrays, len(arrays["sample_id"]))
    place = np.searchsorted(ids, arrays["sample_id"])
    place = np.minimum(place, len(ids) - 1)
    if not np.array_equal(ids[place], arrays["sample_id"]):
        raise ThreatError("rows name samples that are not in the batch")
    return {**arrays, **{name: values[place] for name, values in cost.items()}}


def _check_lengths(columns: Mapping[str, NDArray[Any]], rows: int) -> None:
    wrong = {name: len(values) for name, values in columns.items() if len(values) != rows}
    if wrong:
        name, length = next(iter(wrong.items()))
        raise ThreatError(f"column '{name}' has {length} entries for {rows} rows")


def _array(name: str, values: Any) -> NDArray[Any]:
    import torch

    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind == "O":
        raise ThreatError(f"column '{name}' holds Python objects, not numbers, booleans or text")
    if array.ndim == 0 or (array.ndim > 1 and name != "adversarial" and array.ndim != 2):
        raise ThreatError(
            f"column '{name}' has {array.ndim} dimensions; a column has one, or two for a fixed-length list"
        )
    return array


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
