"""Runs side by side in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.report.gate_words import amount
from harness.report.wording import heading, headline_metrics, interval, visible


def compare_view(comparison: Mapping[str, Any]) -> RenderableType:
    """One row a headline number, and for each run its value and the difference to the first run.

    Args:
        comparison: what `harness compare --json` writes.
    """
    rows = _headlines(comparison["rows"])
    several = len({row["dataset"] for row in rows}) > 1
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for name in ("model", "threat", "metric"):
        table.add_column(name, overflow="fold")
    for number, _ in enumerate(comparison["runs"], start=1):
        table.add_column(f"run {number}", no_wrap=True)
        if number > 1:
            table.add_column(f"{number} - 1", no_wrap=True)
    reasons: dict[str, None] = {}
    doubts: dict[str, None] = {}
    notes: dict[str, None] = {}
    for row in rows:
        threat = row["threat"] + (f" on {row['dataset']}" if several else "")
        texts = [visible(row["model"], 80), visible(threat, 120), heading(row["metric"])]
        for number, run in enumerate(row["runs"], start=1):
            number_text = interval(row["metric"], run["estimate"]) if run["estimate"] else "none"
            texts.append(number_text + " UNRELIABLE" * bool(run.get("doubts") and run["estimate"]))
            for doubt in run.get("doubts", ()):
                doubts[f"run {number}, {visible(row['cell'], 200)}: {visible(doubt)}"] = None
            if number > 1:
                texts.append(_difference(row["metric"], run["difference"]))
            if run.get("note"):
                notes[f"run {number}, {visible(row['cell'], 200)}: {visible(run['note'])}"] = None
            if run.get("reason"):
                reasons[
                    f"run {number}, {visible(row['cell'], 200)} {heading(row['metric'])}: {visible(run['reason'])}"
                ] = None
        table.add_row(*(Text(text) for text in texts))
    runs = [Text(f"run {number}: {visible(folder)}") for number, folder in enumerate(comparison["runs"], start=1)]
    note = f"Shares in %, differences in points, paired by sample, {100 * comparison['level']:g} % intervals."
    blocks = [
        *_block("differences of the rows that both runs have", notes, "yellow"),
        *_block("without a difference", reasons, "yellow"),
        *_block("unreliable", doubts, "red"),
    ]
    return Group(*runs, Text(""), table, *blocks, Text(""), Text(note, style="dim"))


def _block(title: str, lines: Iterable[str], colour: str) -> list[Text]:
    told = [Text(f"  {line}") for line in lines]
    return [Text(""), Text(title, style=f"bold {colour}"), *told] if told else []


def _headlines(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row["cell"], []).append(row["metric"])
    chosen = {cell: set(headline_metrics(of)) for cell, of in names.items()}
    return [row for row in rows if row["metric"] in chosen[row["cell"]]]


def _difference(metric: str, difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    value, low, high = (amount(metric, difference[key], signed=True) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
