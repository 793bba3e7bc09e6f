"""`harness run --dry-run`: what would be run, and what is missing for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.datasets import DatasetFacts
from harness.errors import ExitCode, HarnessError, MissingDataError
from harness.gate_options import GateOptions
from harness.host import Host
from harness.loading import build_model, build_threat, open_dataset
from harness.plan import Cell, unmet
from harness.runner import RunOptions, data_root
from harness.suite import Suite

# Stands for data that are not there: enough to find out which checkpoints are not there either.
_UNKNOWN = DatasetFacts("unknown", (3, 32, 32), 256, ("unknown",))


def print_plan(suite: Suite, cells: Sequence[Cell], host: Host, options: RunOptions, console: Console) -> int:
    """Print the cells with their samples and shards, what is left out, and every data set and checkpoint missing."""
    missing: list[str] = []
    notes: list[str] = []
    samples = _samples(suite, cells, host, options, missing, notes)
    table = Table(title=f"plan of {escape(suite.name)}: {len(cells)} cells", title_justify="left")
    for heading in ("model", "threat", "samples", "shards", "note"):
        table.add_column(heading, justify="right" if heading in ("samples", "shards") else "left", overflow="fold")
    for cell in cells:
        count = samples.get(cell.id)
        shards = "?" if count is None else str(-(-count // suite.settings.shard_size))
        number = "?" if count is None else str(count)
        table.add_row(
            escape(cell.model.name),
            escape(cell.threat.label),
            "-" if cell.skip else number,
            "-" if cell.skip else shards,
            escape(f"skipped: {cell.skip}") if cell.skip else "",
        )
    console.print(table)
    for line in notes:
        console.print(f"note: {escape(line)}", highlight=False, soft_wrap=True)
    for line in missing:
        console.print(f"missing: {escape(line)}", highlight=False, soft_wrap=True)
    for line in _power_warnings(suite, samples):
        console.print(f"warning: {escape(line)}", highlight=False, soft_wrap=True)
    return ExitCode.OK if any(not cell.skip for cell in cells) else ExitCode.NOTHING_TO_RUN


def _samples(
    suite: Suite, cells: Sequence[Cell], host: Host, options: RunOptions, missing: list[str], notes: list[str]
) -> dict[str, int]:
    """Samples of each cell; empty, with what is missing said, where the data cannot be opened."""
    root = None
    try:
        root = data_root(options.data_root)
        whole = open_dataset(suite.dataset, host, root, options.limit)
    except HarnessError as error:
        missing.append(str(error))
        _name_missing_models(suite, cells, _UNKNOWN, MissingDataError, missing)
        _look_at_threats(suite, cells, host, root, _UNKNOWN, MissingDataError, missing, notes)
        return {}
    if whole.facts.readout is not None:
        among = f"{len(whole.facts.readout.groups)} classes of data set '{whole.name}'"
        what = f"the {among} alone" if whole.facts.readout.restricted else f"the {among} and one of all others"
        notes.append(f"predictions are among {what}")
    _name_missing_models(suite, cells, whole.facts, HarnessError, missing)
    _look_at_threats(suite, cells, host, root, whole.facts, HarnessError, missing, notes)
    return {c.id: min(len(whole), c.threat.limit or len(whole)) for c in cells if not c.skip}


def _name_missing_models(
    suite: Suite, cells: Sequence[Cell], facts: DatasetFacts, kind: type[HarnessError], missing: list[str]
) -> None:
    """Build each model and say what stands in the way; of errors, only `kind` says something about the model."""
    for entry in {cell.model.name: cell.model for cell in cells if not cell.skip}.values():
        try:
            built = build_model(entry, facts, "cpu", suite.folder)
        except HarnessError as error:
            if isinstance(error, kind):
                missing.append(str(error))
            continue
        threats = [cell.threat for cell in cells if cell.model.name == entry.name and not cell.skip]
        lacking = [(t.label, unmet(t, built.capabilities)) for t in threats]
        missing += [f"threat '{label}' on model '{entry.name}': {reason}" for label, reason in lacking if reason]


def _look_at_threats(
    suite: Suite,
    cells: Sequence[Cell],
    host: Host,
    root: Path | None,
    facts: DatasetFacts,
    kind: type[HarnessError],
    missing: list[str],
    notes: list[str],
) -> None:
    """Build each threat and say what it leaves out, or what stands in its way (as of models)."""
    for entry in {cell.threat.label: cell.threat for cell in cells if not cell.skip}.values():
        try:
            built = build_threat(
                entry, facts, host, root, suite.folder, partial(open_dataset, suite.dataset, host, root)
            )
        except HarnessError as error:
            if isinstance(error, kind) and not any(line in str(error) for line in missing):
                missing.append(str(error))
            continue
        if built.left_out:
            notes.append(f"threat '{entry.label}' leaves out: {built.left_out}")


def _power_warnings(suite: Suite, samples: dict[str, int]) -> list[str]:
    """Cells too small for the gate to say anything but "inconclusive", said before the run."""
    from harness.gating.verdicts import unchanged_samples
    from harness.statistics import paired_proportions

    gate = suite.gate or GateOptions()
    smallest = min(samples.values(), default=0)
    if not smallest:
        return []
    unchanged = paired_proportions(0, 0, smallest, gate.alpha)
    if unchanged.low > -gate.max_drop:
        return []
    needed = unchanged_samples(unchanged.low, gate.max_drop, smallest)
    return [
        f"{smallest} samples cannot show that less than max_drop = {gate.max_drop:g} was lost, even by a model that did"
        f" not change: a gate would be inconclusive, and needs about {needed}"
    ]
