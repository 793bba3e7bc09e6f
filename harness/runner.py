"""Runs a suite: plan, shards, estimates, results. The order of events is here; the work is elsewhere."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from harness._version import __version__
from harness.auxiliary import replays
from harness.errors import HarnessError, StoreError, needs_trace, one_line
from harness.estimates import Estimator, cell_entry
from harness.evaluate import Setting, ShardOutcome, ShardTask, samples_digest
from harness.events import CellFinished, CellPlanned, RunFinished, RunStarted, ShardFinished
from harness.executors import Executor, ExecutorContext
from harness.host import Host, load_host
from harness.info import resolve as resolve_path
from harness.plan import Cell, Plan, PlannedCell, expand, resolve
from harness.store import SCHEMA, CellManifest, RowReader, Run, RunFolder, load_run, shard_facts, shard_path
from harness.suite import Suite, load_suite


@dataclass(frozen=True)
class RunOptions:
    """How to run a suite; none of it changes a number, except that `limit` takes fewer samples.

    Attributes:
        out: the run folder; ``runs/NAME`` by default.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        workers: processes; by default one a core on the CPU, one on a GPU.
        executor: name of a registered executor; "inline" for one worker, else "processes", by default.
        limit: use only so many samples of each cell; such a run cannot gate.
        only: run the cells whose id matches one of these patterns; all of them by default.
        fresh: forget what was computed before in this folder.
        plugins: as after `-p`; workers load them too.
        data_root: folder of the data sets; ``$HARNESS_DATA`` by default.
        replay: folders of runs whose adversarial images are shown to the models too, within the suite's budgets.
    """

    out: Path | str | None = None
    device: str = "auto"
    workers: int | None = None
    executor: str | None = None
    limit: int | None = None
    only: tuple[str, ...] = ()
    fresh: bool = False
    plugins: tuple[str, ...] = ()
    data_root: Path | str | None = None
    replay: tuple[Path | str, ...] = ()


def with_replays(suite: Suite, options: RunOptions, host: Host) -> Suite:
    """The suite with the replays that `options` ask for; as it is, where they ask for none."""
    if not options.replay:
        return suite
    folders = [Path(folder) for folder in options.replay]
    for folder in folders:
        load_run(folder)  # said before anything is run
    alike = {folder.name for folder in folders if sum(other.name == folder.name for other in folders) > 1}
    names = [f"{f.name}#{number}" if f.name in alike else f.name for number, f in enumerate(folders, 1)]
    added = [entry for f, name in zip(folders, names, strict=True) for entry in replays(suite, f, name, host)]
    return replace(suite, replays=tuple(added))


def run(
    suite: str | Path | Suite,
    options: RunOptions | None = None,
    *,
    overrides: Sequence[str] = (),
    host: Host | None = None,
    **changes: Any,
) -> Run:
    """Run a suite and return the finished run.

    Args:
        suite: a suite file, the name of one that ships with the harness, or a `Suite`.
        options: how to run it; or its fields as keyword arguments (``run("quickstart", workers=1)``).
        overrides: ``key=value`` as after `--set`.
        host: the plugins; loaded from `options.plugins` by default. Observers hang here. Worker processes load theirs
            from `options.plugins`: what was added to a host by hand runs with one worker only.

    Raises:
        HarnessError: the suite, the data or the run folder cannot be used. A cell that fails is in the results instead.
        KeyboardInterrupt: interrupted; finished shards are kept, and the same call goes on from there.
    """
    options = RunOptions(**changes) if options is None else options
    host = host or load_host(options.plugins)
    suite = suite if isinstance(suite, Suite) else load_suite(suite, host, overrides)
    suite = with_replays(suite, options, host)
    cells = expand(suite, options.only)
    device = pick_device(options.device)
    root = data_root(options.data_root)
    if options.executor is not None:
        host.executors.get(options.executor)  # said before anything is written
    folder = RunFolder(Path(options.out or Path("runs") / safe_name(suite.name)).absolute())
    plan = resolve(suite, cells, host, device=device, data_root=root, limit=options.limit)
    folder.create()
    with folder.locked():
        if options.fresh:
            folder.clear()
        setting = Setting(
            folder=str(folder.path),
            suite_folder=str(suite.folder),
            data_root=None if root is None else str(root),
            plugins=tuple(_absolute(p) for p in options.plugins),
            device=device,
            seed=suite.settings.seed,
            microbatch=plan.microbatch,
            store_images=suite.settings.store_images,
        )
        return _Driver(plan, setting, folder, host, options).drive()


def pick_device(name: str) -> str:
    """The device meant by `--device`.

    Raises:
        HarnessError: there is no such device here.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if count else "cpu"
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index.isdigit() or not index):
        raise HarnessError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if int(index or 0) >= count:
        raise HarnessError(f"--device {name}: there {'is' if count == 1 else 'are'} {count} CUDA devices here; use cpu")
    return f"cuda:{int(index or 0)}"


def data_root(given: Path | str | None) -> Path | None:
    """The folder of the data sets: as given, or $HARNESS_DATA.

    Raises:
        HarnessError: it is no folder.
    """
    named = given or os.environ.get("HARNESS_DATA")
    if not named:
        return None
    if not Path(named).is_dir():
        raise HarnessError(f"data root {named} is not a folder (--data-root, or HARNESS_DATA)")
    return Path(named).absolute()


def safe_name(name: str) -> str:
    """A folder name for any suite name: nothing that could leave the runs folder."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-")[:80]
    return plain or "suite"


@dataclass
class _Progress:
    """How far a cell is."""

    planned: PlannedCell
    manifest: CellManifest
    missing: set[int]  # first sample ids of shards still to come
    error: str = ""
    settled: bool = False


@dataclass
class _Driver:
    """One run from plan to results."""

    plan: Plan
    setting: Setting
    folder: RunFolder
    host: Host
    options: RunOptions
    started: float = field(default_factory=time.time)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)  # why auxiliary cells have no rows
    seconds: dict[str, float] = field(default_factory=dict)

    def drive(self) -> Run:
        self.progress = {c.cell.id: self._survey(c) for c in (*self.plan.auxiliary, *self.plan.cells)}
        manifests = [p.manifest for p in self.progress.values()]
        suite = self.plan.suite
        self.estimator = Estimator(
            RowReader(self.folder.path, manifests), self.host, suite.settings.level, suite.metrics
        )
        for name in ("results.json", "run.json"):
            (self.folder.path / name).unlink(missing_ok=True)
        tasks = [task for p in self._by_model() for task in self._tasks(p)]
        self._announce(tasks)
        self._settle_known()
        self._settle_ready()
        self._execute([task for task in tasks if self._role(task) == "reference"])  # others read what they write
        self._execute([task for task in tasks if self._role(task) != "reference" and self._has_reference(task)])
        for progress in self.progress.values():
            if not progress.settled:  # an executor's fault: it owes an outcome for each task
                progress.settled = True
                lost = f"{len(progress.missing)} of {len(progress.manifest.shards)} shards were never evaluated"
                self._fail(progress.manifest, progress.error or lost, "")
        return self._finish(manifests)

    def _by_model(self) -> list[_Progress]:
        """The cells, those of a model together: a worker holds one model at a time."""
        names = {model.name: place for place, model in enumerate(self.plan.suite.models)}
        return sorted(self.progress.values(), key=lambda p: names[p.planned.cell.model.name])

    def _survey(self, planned: PlannedCell) -> _Progress:
        """Which shards are there already, whole and of these very samples."""
        missing = set()
        for ids in planned.shards():
            facts = shard_facts(shard_path(self.folder.path, planned.digest, int(ids[0])))
            if facts != {"cell": planned.digest, "samples": samples_digest(ids)}:
                missing.add(int(ids[0]))
        return _Progress(planned, planned.manifest(), missing)

    def _tasks(self, progress: _Progress) -> list[ShardTask]:
        planned, cell = progress.planned, progress.planned.cell
        reference = None
        if planned.reference is not None:
            reference = (planned.reference.digest, planned.reference.manifest().shards)
        return [
            ShardTask(
                setting=self.setting,
                cell=cell.id,
                digest=planned.digest,
                dataset=planned.data,
                model=(cell.model.name, cell.model.info.name, cell.model.table),
                model_digest=planned.model_digest,
                threat=(cell.threat.label, cell.threat.info.name, cell.threat.table),
                ids=ids,
                reference=reference,
                keep_images=planned.role == "cell",
            )
            for ids in planned.shards()
            if int(ids[0]) in progress.missing
        ]

    def _role(self, task: ShardTask) -> str:
        return self.progress[task.cell].planned.role

    def _has_reference(self, task: ShardTask) -> bool:
        """Whether the held-out scores that a task reads are there; its cell fails where they could not be made."""
        progress = self.progress[task.cell]
        reference = progress.planned.reference
        error = "" if reference is None else self.lost.get(reference.cell.id, "")
        if error and not progress.settled:
            progress.error = f"its held-out scores failed: {error}"
            progress.settled = True
            self._fail(progress.manifest, progress.error, "")
        return not error

    def _shown(self, cell_id: str) -> str:
        """The cell of the suite that observers are told of: work on an auxiliary one counts for what it serves."""
        return self.progress[cell_id].planned.serves or cell_id

    def _workers(self, tasks: Sequence[ShardTask]) -> int:
        wanted = self.options.workers
        if wanted is None:
            wanted = 1 if self.setting.device != "cpu" else len(os.sched_getaffinity(0))
        return max(1, min(wanted, len(tasks)))

    def _announce(self, tasks: Sequence[ShardTask]) -> None:
        cells = [self._planned_work(cell.cell.id) for cell in self.plan.cells]
        skipped = {cell.id: cell.skip for cell in self.plan.skipped}
        workers = self._workers(tasks)
        self.folder.journal("run_started", suite=self.plan.suite.name, cells=len(cells), shards=len(tasks))
        self.host.emit(
            "run_started",
            RunStarted(self.plan.suite.name, self.folder.path, cells, skipped, workers, self.setting.device),
        )

    def _planned_work(self, cell_id: str) -> CellPlanned:
        work = [p for other, p in self.progress.items() if self._shown(other) == cell_id]
        shards = sum(len(p.manifest.shards) for p in work)
        missing = sum(len(p.missing) for p in work)
        return CellPlanned(cell_id, sum(p.manifest.samples for p in work), shards, shards - missing)

    def _execute(self, tasks: Sequence[ShardTask]) -> None:
        if not tasks:
            return
        workers = self._workers(tasks)
        name = self.options.executor or ("inline" if workers == 1 else "processes")
        info = self.host.executors.get(name)
        context = ExecutorContext(self.setting, workers, self.host)
        executor: Executor = resolve_path(info.factory, f"executor '{name}'")(context)
        outcomes = executor.run(tasks, lambda task: not self.progress[task.cell].error)
        try:
            with _interrupts_noticed() as interrupted:
                for outcome in outcomes:
                    self._take(outcome)
                    if interrupted():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.folder.journal("interrupted")
            raise
        finally:
            if hasattr(outcomes, "close"):
                outcomes.close()

    def _take(self, outcome: ShardOutcome) -> None:
        """Book one shard's outcome."""
        progress = self.progress[outcome.cell]
        self.seconds[outcome.cell] = self.seconds.get(outcome.cell, 0.0) + outcome.seconds
        facts = {"cell": outcome.cell, "first_id": outcome.first_id, "seconds": round(outcome.seconds, 3)}
        self.folder.journal("shard_failed" if outcome.error else "shard_finished", **facts)
        if outcome.fatal:
            raise StoreError(outcome.error)
        if not outcome.error:
            progress.missing.discard(outcome.first_id)
            self.host.emit(
                "shard_finished",
                ShardFinished(self._shown(outcome.cell), outcome.samples, outcome.seconds, reused=False),
            )
        elif not progress.error:
            progress.error = outcome.error
            self._fail(progress.manifest, outcome.error, outcome.trace)
            progress.settled = True
        self._settle_ready()

    def _settle_known(self) -> None:
        """Cells of which the outcome is known before anything runs."""
        for cell in self.plan.skipped:
            self._settle(cell_entry(_facts(cell), status="skipped", error=cell.skip))
        for cell, error, trace in self.plan.failed:
            self._fail(_facts(cell), error, trace)
        for progress in self.progress.values():
            for ids in progress.planned.shards():
                if int(ids[0]) not in progress.missing:
                    reused = ShardFinished(self._shown(progress.manifest.id), len(ids), 0.0, reused=True)
                    self.host.emit("shard_finished", reused)

    def _settle_ready(self) -> None:
        """Estimate each cell whose rows are whole, and so are those of its smaller budgets and probes."""
        for progress in self.progress.values():
            if progress.planned.role != "cell" and not progress.missing:
                progress.settled = True
        # What settles one may be all that another has been waiting for.
        while ready := [p for p in self.progress.values() if self._is_ready(p)]:
            for progress in ready:
                progress.settled = True
                self._estimate(progress.manifest)

    def _is_ready(self, progress: _Progress) -> bool:
        if progress.settled or progress.missing:
            return False
        cell = progress.manifest
        waits_for = [*self._smaller(cell), *(self.progress[p.cell] for p in cell.probes if p.cell)]
        return all(other.settled for other in waits_for)

    def _estimate(self, cell: CellManifest) -> None:
        try:
            found = self.estimator.cell(cell, self.lost)
        except HarnessError as error:
            self._fail(cell, str(error), traceback.format_exc() if needs_trace(error) else "")
        except Exception as error:
            self._fail(cell, one_line(error), traceback.format_exc())
        else:
            left_out = {"left_out": cell.left_out} if cell.left_out else {}
            self._settle(cell_entry(cell, n=cell.samples, **left_out, **found))

    def _smaller(self, cell: CellManifest) -> list[_Progress]:
        budget = cell.budget
        if not cell.family or budget is None:
            return []
        others = (p for p in self.progress.values() if p.manifest.family == cell.family)
        return [p for p in others if p.manifest.budget is not None and p.manifest.budget < budget]

    def _fail(self, cell: CellManifest | Mapping[str, Any], error: str, trace: str) -> None:
        entry = cell_entry(cell, status="failed", error=error, reliable=False)
        if trace:
            self.folder.write_error(entry["id"], trace)
        if isinstance(cell, CellManifest):
            self.lost[cell.id] = error  # those that it audits say so
        if isinstance(cell, CellManifest) and cell.role != "cell":
            self.folder.journal("auxiliary_failed", cell=cell.id, error=error)
        else:
            self._settle(entry)

    def _settle(self, entry: dict[str, Any]) -> None:
        self.results[entry["id"]] = entry
        self.folder.journal("cell_finished", cell=entry["id"], status=entry["status"], error=entry["error"])
        self.host.emit("cell_finished", CellFinished(entry["id"], entry["status"], entry, entry["error"]))

    def _finish(self, manifests: Sequence[CellManifest]) -> Run:
        whole = [m for m in manifests if m.role == "cell" and self.results[m.id]["status"] == "ok"]
        cells = [self.results[id] for id in self.plan.order]  # noqa: A001
        summaries = [
            {**summary, "reliable": all(self.results[cell]["reliable"] for cell in summary["cells"])}
            for summary in self.estimator.summaries(whole)
        ]
        results = {"schema": SCHEMA, "suite": self.plan.suite.name, "cells": cells, "summaries": summaries}
        paths = [
            self.folder.write_json("run.json", self._info(manifests)),
            self.folder.write_json("results.json", results),
        ]
        self.folder.journal("run_finished")
        self.host.emit("run_finished", RunFinished(self.folder.path, results, tuple(paths)))
        return load_run(self.folder.path)

    def _info(self, manifests: Sequence[CellManifest]) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "suite": self.plan.suite.resolved(),
            "suite_file": str(self.plan.suite.path or ""),
            "setting": vars(self.setting),
            "argv": sys.argv,
            "revision": revision(),
            "packages": packages(),
            "plugins": {p.name: p.origin for p in self.host.plugins if not p.error},
            "device": self.setting.device,
            "seed": self.setting.seed,
            "workers": self.options.workers,
            "limited": self.options.limit is not None,
            "only": list(self.options.only),
            "identity": self.plan.identity,
            "cells": [m.to_json() for m in manifests],
            "timings": {
                "started": self.started,
                "seconds": round(time.time() - self.started, 3),
                "cells": {cell: round(seconds, 3) for cell, seconds in self.seconds.items()},
            },
        }


@contextlib.contextmanager
def _interrupts_noticed() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed.

    Python drops a KeyboardInterrupt that it happens to raise inside a finaliser or a callback of the garbage collector,
    and the run would go on.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return
    pressed = threading.Event()

    def note(number: int, frame: FrameType | None) -> Any:
        pressed.set()
        return before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _facts(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "model": cell.model.name,
        "threat": cell.threat.label,
        "plugin": cell.threat.info.name,
        "dataset": cell.dataset,
        "params": cell.threat.params,
    }


def _absolute(plugin: str) -> str:
    """A plugin file by its full path, so that a worker finds it from any folder."""
    return str(Path(plugin).absolute()) if plugin.endswith(".py") else plugin


def revision() -> dict[str, Any]:
    """Commit and state of the git checkout the command was started in; empty outside one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain"))}
    return {}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def packages() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("torch", "numpy", "scipy", "scikit-learn", "pyarrow", "pydantic", "pluggy", "pillow", "safetensors")
    found = {"python": platform.python_version(), "harness": __version__}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
