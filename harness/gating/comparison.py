"""Runs side by side: their numbers, and the paired differences to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.gating.pairing import RunPair
from harness.metrics.base import PairedDifference

if TYPE_CHECKING:
    from harness.host import Host
    from harness.store import Run

SCHEMA = 1


@dataclass(frozen=True)
class ComparedRun:
    """One run's number; `difference` is to the first run, None for the first itself or with a `reason`.

    `doubts`: what the audit holds against the run's cell, one sentence a check. `note`: what the difference is not of,
    where one run has rows that the other has not.
    """

    estimate: dict[str, Any] | None
    difference: PairedDifference | None
    reason: str = ""
    doubts: tuple[str, ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        d = self.difference
        found = None if d is None else {key: getattr(d, key) for key in ("value", "low", "high", "n")}
        reason = {"reason": self.reason} if self.reason else {}
        doubts = {"doubts": list(self.doubts)} if self.doubts else {}
        note = {"note": self.note} if self.note else {}
        return {"estimate": self.estimate, "difference": found, **reason, **doubts, **note}


@dataclass(frozen=True)
class ComparedNumber:
    """One metric of one cell in every run, in the order of the runs."""

    cell: str
    model: str
    threat: str
    dataset: str
    metric: str
    runs: tuple[ComparedRun, ...]


@dataclass(frozen=True)
class RunComparison:
    """`level` is the confidence of the differences' two-sided intervals."""

    folders: tuple[str, ...]
    level: float
    numbers: tuple[ComparedNumber, ...]

    def to_json(self) -> dict[str, Any]:
        """The contract for other programs."""
        rows = [
            {**{k: v for k, v in vars(number).items() if k != "runs"}, "runs": [run.to_json() for run in number.runs]}
            for number in self.numbers
        ]
        return {"schema": SCHEMA, "runs": list(self.folders), "level": self.level, "rows": rows}


def compare(
    runs: Sequence[Run], host: Host, choose: Callable[[Iterable[str]], list[str]] = list, level: float = 0.95
) -> RunComparison:
    """Compare runs, by sample id, with the first of them.

    The runs need not be of one suite: what one of them lacks stays empty, and runs over other samples are shown without
    differences.

    Args:
        runs: finished runs.
        host: knows the metrics.
        choose: which of a cell's metrics to compare, of their names.
        level: confidence of the differences' intervals.
    """
    pairs = [RunPair(runs[0], run, (1 - level) / 2) for run in runs[1:]]
    sides = [{cell["id"]: cell for cell in run.cells()} for run in runs]
    numbers = []
    for cell in dict.fromkeys(id for side in sides for id in side):  # noqa: A001
        about = next(side[cell] for side in sides if cell in side)
        metrics = [side.get(cell, {}).get("metrics", {}) for side in sides]
        doubts = [_doubts(side.get(cell, {})) for side in sides]
        for name in choose(dict.fromkeys(name for known in metrics for name in known)):
            first, *others = (known.get(name) for known in metrics)
            compared = [ComparedRun(first, None, doubts=doubts[0])]
            for pair, estimate, held in zip(pairs, others, doubts[1:], strict=True):
                both = first is not None and estimate is not None
                difference, reason, note = _difference(pair, host, cell, name) if both else (None, "", "")
                compared.append(ComparedRun(estimate, difference, reason, held, note))
            facts = {key: str(about[key]) for key in ("model", "threat", "dataset")}
            numbers.append(ComparedNumber(cell=cell, metric=name, runs=tuple(compared), **facts))
    return RunComparison(tuple(str(run.folder) for run in runs), level, tuple(numbers))


def _doubts(cell: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes a cell's numbers unreliable."""
    if cell.get("reliable", True):
        return ()
    failed = [str(check["message"]) for check in cell.get("audit") or [] if not check["ok"]]
    return tuple(failed) or (str(cell.get("error") or "unreliable"),)


def _difference(pair: RunPair, host: Host, cell: str, metric: str) -> tuple[PairedDifference | None, str, str]:
    """The difference, or the reason why there is none; and which rows it is not of."""
    if pair.baseline.info["identity"]["dataset"] != pair.candidate.info["identity"]["dataset"]:
        return None, "over other samples than the first run", ""
    name, _, variant = metric.partition("[")
    try:
        compared = pair.compare(cell, host.metrics.get(name), with_unchanged=False)
    except HarnessError as error:
        return None, str(error), ""
    found = compared.differences.get(variant.removesuffix("]"))
    if found is None or found.value is None:
        return None, found.reason if found else "the metric gives no difference", ""
    return found, "", compared.unlike
