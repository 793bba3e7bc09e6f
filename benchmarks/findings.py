"""A paper's findings, tried on runs of its suites: effect, interval, smallest effect that would be found, verdict.

    harness run papers/ib-inn-table3 --out RUNS/ib-inn-table3          # each suite that the findings name
    python benchmarks/findings.py docs/results/ib-inn.toml RUNS        # as Markdown

A finding says that a number is more, less, not more or about equal in a first cell than in a second one; both are cells
of one run over the same samples, so the difference is paired. "reproduced": the interval lies where the finding says;
"contradicted": it lies wholly elsewhere; "undecided" otherwise. The detectable effect is the smallest true difference
that four of five such experiments would find.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.errors import HarnessError
from harness.gating.pairing import pair_rows
from harness.host import load_host
from harness.info import resolve
from harness.metrics.base import Metric, PairedDifference
from harness.options import Options
from harness.report.wording import is_percentage
from harness.statistics import detectable_effect
from harness.store import Run, load_run

ALPHA = 0.025  # one-sided, so that both bounds together are a 95 % interval
Expectation = Literal["more", "less", "not more", "equal"]
Verdict = Literal["reproduced", "contradicted", "undecided"]


class Cell(Options):
    """One cell of a run, by patterns as in a gate's `select`."""

    model: str
    threat: str = "*"


class Finding(Options):
    """What a paper says: `metric` of `first` is `expect` than that of `second`, up to `within`."""

    claim: str
    suite: str
    metric: str
    first: Cell
    second: Cell
    expect: Expectation = "more"
    within: float = Field(default=0.0, ge=0)
    paper: str = ""


def find_cell(run: Run, wanted: Cell) -> str:
    """Id of the one cell that fits.

    Raises:
        HarnessError: none does, or several do.
    """
    fitting = [
        cell["id"]
        for cell in run.cells()
        if fnmatchcase(cell["model"], wanted.model) and fnmatchcase(cell["threat"], wanted.threat)
    ]
    if len(fitting) != 1:
        raise HarnessError(f"{run.folder}: {len(fitting)} cells are {wanted.model} under {wanted.threat}; expected one")
    return str(fitting[0])


def difference(run: Run, finding: Finding, metrics: Any) -> PairedDifference:
    """The metric of the finding's first cell less that of its second, on the samples of both.

    Raises:
        HarnessError: a cell or the metric is not there.
    """
    name, _, variant = finding.metric.partition("[")
    info = metrics.get(name)
    metric: Metric = resolve(info.metric, f"metric '{name}'")
    first, second = find_cell(run, finding.first), find_cell(run, finding.second)
    keys = ("sample_id", *(column for column in run.variants(first) if column in run.variants(second)))
    after, before = (run.rows(cell, dict.fromkeys((*keys, *info.columns))) for cell in (first, second))
    pair = pair_rows(before, after, keys)
    found = metric.difference(pair.baseline, pair.candidate, ALPHA).get(variant.removesuffix("]"))
    if found is None:
        raise HarnessError(f"{finding.metric}: the cells have no such variant")
    return found


def verdict(low: float, high: float, expect: Expectation, within: float) -> Verdict:
    """Where the interval from `low` to `high` lies beside what is expected."""
    holds = {
        "more": low > within,
        "less": high < -within,
        "not more": high <= within,
        "equal": -within <= low and high <= within,
    }
    fails = {
        "more": high <= within,
        "less": low >= -within,
        "not more": low > within,
        "equal": low > within or high < -within,
    }
    return "reproduced" if holds[expect] else "contradicted" if fails[expect] else "undecided"


def row(run: Run, finding: Finding, metrics: Any) -> str:
    """One line of the table."""
    found = difference(run, finding, metrics)
    cells = f"{_named(finding.first)} less {_named(finding.second)}"
    if found.value is None or found.low is None or found.high is None or found.spread is None:
        reason = found.reason.replace("baseline:", f"{_named(finding.second)}:").replace(
            "candidate:", f"{_named(finding.first)}:"
        )
        measured = f"`{finding.metric}`, {cells}"
        return f"| {finding.claim} | {measured} | undefined: {reason} | | {found.n} | **undecided** | {finding.paper} |"
    scale, unit = (100, " points") if is_percentage(finding.metric) else (1, "")
    effect, low, high = (f"{scale * v:+.3g}" for v in (found.value, found.low, found.high))
    least = f"{scale * detectable_effect(found.spread, found.n, ALPHA):.2g}"
    said = verdict(found.low, found.high, finding.expect, finding.within)
    return (
        f"| {finding.claim} | `{finding.metric}`, {cells} | {effect}{unit} [{low}, {high}] | {least}{unit}"
        f" | {found.n} | **{said}** | {finding.paper} |"
    )


def _named(cell: Cell) -> str:
    return cell.model if cell.threat == "*" else f"{cell.model} under `{cell.threat}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("findings", type=Path, help="TOML file with [[finding]] tables")
    parser.add_argument("runs", type=Path, help="folder of the runs, each named as the last part of its suite's name")
    arguments = parser.parse_args()
    metrics = load_host().metrics
    print("| finding | measured | effect, 95 % interval | detectable | n | verdict | the paper |")
    print("|---|---|---|---|---|---|---|")
    try:
        tables = tomllib.loads(arguments.findings.read_text())["finding"]
        findings = [Finding.model_validate(table) for table in tables]
        runs = {name: load_run(arguments.runs / Path(name).name) for name in dict.fromkeys(f.suite for f in findings)}
        for finding in findings:
            print(row(runs[finding.suite], finding, metrics), flush=True)
    except (HarnessError, OSError, KeyError, ValueError) as error:
        sys.exit(f"{arguments.findings}: {error}")


if __name__ == "__main__":
    main()
