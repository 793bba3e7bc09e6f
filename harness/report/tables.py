"""The table of a run's results, as `harness run` ends with and `harness report` prints again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.report.wording import audit_state, failing_checks, heading, headline_metrics, interval, scored_by, visible

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 100
_NAME_LIMIT = 200
_METRICS_A_CELL = 6
_AUDIT_STYLE = {"reliable": "green", "UNRELIABLE": "bold red", "failed": "bold red", "skipped": "yellow"}


def results_table(results: Mapping[str, Any]) -> Table:
    """One row for each cell, with a further line for each further number that its other numbers do not tell.

    Args:
        results: what results.json holds.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("model", overflow="fold", max_width=20)
    table.add_column("threat", overflow="fold", max_width=36)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("metric", overflow="fold", max_width=19)
    table.add_column("value [interval]", no_wrap=True)
    table.add_column("audit", no_wrap=True)
    model = None
    cells = results.get("cells") or []
    several = len({cell.get("dataset") for cell in cells}) > 1
    for cell in cells:
        for row in _cell_rows(cell, several, repeated=cell.get("model") == model):
            table.add_row(*row)
        model = cell.get("model")
    return table


def _cell_rows(cell: Mapping[str, Any], several_datasets: bool, *, repeated: bool) -> Iterator[Sequence[Text]]:
    threat = str(cell.get("threat", ""))
    if several_datasets:
        threat += f" on {cell.get('dataset', '')}"
    status = cell.get("status", "ok")
    state = audit_state(cell) if status == "ok" else status
    first = [
        Text("" if repeated else visible(cell.get("model", ""), _NAME_LIMIT)),
        Text(visible(threat, _NAME_LIMIT)),
        Text(str(cell.get("n") or "")),
    ]
    metrics = cell.get("metrics") or {}
    names = headline_metrics(metrics) if status == "ok" else []
    numbers = [
        [Text(heading(n, scored_by(n, cell) if "[" not in n else "")), Text(interval(n, metrics[n]))]
        for n in names[:_METRICS_A_CELL]
    ]
    if len(names) > _METRICS_A_CELL:
        numbers.append([Text(f"and {len(names) - _METRICS_A_CELL} more"), Text("in the report")])
    last = Text(state, style=_AUDIT_STYLE.get(state, ""))
    yield [*first, *(numbers[0] if numbers else [Text(""), Text("")]), last]
    for number in numbers[1:]:
        yield [Text(""), Text(""), Text(""), *number, Text("")]


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Print `results_view`; a log whose width nobody gave gets the hundred columns that the table is made for."""
    width = console.width
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(width, _WIDTH)
    console.print(results_view(results))
    console.width = width


def results_view(results: Mapping[str, Any]) -> RenderableType:
    """The table, followed by failed cells, what makes a number unreliable, and the numbers over several cells."""
    parts: list[RenderableType] = [results_table(results)]
    cells = results.get("cells") or []
    for status, style in (("failed", "red"), ("skipped", "yellow")):
        those = [cell for cell in cells if cell.get("status") == status]
        parts += _block(status, style, _by_reason(those))
    unreliable = [cell for cell in cells if cell.get("status") == "ok" and cell.get("reliable") is False]
    parts += _block("unreliable", "red", [(c["id"], "; ".join(failing_checks(c))) for c in unreliable])
    left_out = [{**cell, "error": cell["left_out"]} for cell in cells if cell.get("left_out")]
    parts += _block("left out", "yellow", _by_reason(left_out))
    for title, defined in (("undefined", False), ("incomplete", True)):
        parts += _block(title, "yellow", _grouped(entry for cell in cells for entry in _reasons(cell, defined=defined)))
    summaries = results.get("summaries") or []
    if summaries:
        parts += [Text(""), Text("over several cells", style="bold"), _summary_table(summaries)]
        parts += [Text(f"  {line}", overflow="fold") for line in _reasons_of_summaries(summaries)]
    note = "Accuracies, rates and AUROC in %; intervals in brackets."
    firsts = dict.fromkeys(str(cell["score"]) for cell in cells if cell.get("score"))
    if firsts:
        note += f" Detection numbers that name no score are of {' or '.join(map(visible, firsts))}."
    parts += [Text(""), Text(note, style="dim")]
    return Group(*parts)


def _by_reason(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """One line for each reason, named by the first of its cells: a model that cannot be built fails all of its."""
    return _grouped((cell["id"], cell.get("error") or "no reason given") for cell in cells)


def _grouped(entries: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Subjects and reasons, each reason once, with the first of its subjects."""
    groups: dict[str, list[str]] = {}
    for subject, reason in entries:
        groups.setdefault(reason, []).append(subject)
    return [(of[0] if len(of) == 1 else f"{of[0]} and {len(of) - 1} more", reason) for reason, of in groups.items()]


def _reasons(cell: Mapping[str, Any], *, defined: bool) -> Iterator[tuple[str, str]]:
    """Why headline numbers are undefined; or of `defined` ones what they leave out."""
    metrics = cell.get("metrics") or {}
    for name in headline_metrics(metrics):
        reason = metrics[name].get("reason") or ("" if defined else "no reason given")
        if (metrics[name].get("value") is not None) == defined and reason:
            yield f"{heading(name)} of {cell['id']}", reason


def _reasons_of_summaries(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why numbers over several cells are undefined, or what they leave out; each reason once."""
    reasons: dict[tuple[str, str], None] = {}
    for summary in summaries:
        reason = summary.get("reason") or ("no reason given" if summary.get("value") is None else "")
        if reason:
            reasons[heading(summary["metric"]), visible(reason)] = None
    return [f"{metric}: {reason}" for metric, reason in reasons]


def _block(title: str, style: str, entries: Sequence[tuple[str, str]]) -> list[RenderableType]:
    if not entries:
        return []
    lines: list[RenderableType] = [Text(""), Text(title, style=f"bold {style}")]
    for subject, reason in entries:
        lines.append(Text(f"  {visible(subject, _NAME_LIMIT)}: {visible(reason)}", overflow="fold"))
    return lines


def _summary_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for summary in summaries:
        table.add_row(
            Text(visible(summary.get("subject", ""), _NAME_LIMIT)),
            Text(heading(summary["metric"])),
            Text(interval(summary["metric"], summary)),
            Text(f"of {len(summary.get('cells') or [])} cells, n = {summary.get('n', 0)}", style="dim"),
            Text("UNRELIABLE" if summary.get("reliable") is False else "", style=_AUDIT_STYLE["UNRELIABLE"]),
        )
    return table
