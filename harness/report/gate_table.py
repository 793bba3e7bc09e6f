"""A gate's verdicts in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.report.gate_words import COLUMNS, columns_of, columns_of_many, headline, merged
from harness.report.wording import visible

_STYLES = {
    "regressed": "bold red",
    "missing": "bold red",
    "error": "bold red",
    "unreliable": "yellow",
    "inconclusive": "yellow",
    "new": "cyan",
    "ok": "green",
}


def gate_view(report: Mapping[str, Any]) -> RenderableType:
    """The table, worst first, then the reasons of what is not ok, and the outcome in a line.

    Many numbers of one metric and cell that are all ok are one line.

    Args:
        report: what gate.json holds.
    """
    rows = report["rows"]
    several = len({row["dataset"] for row in rows}) > 1
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for name in COLUMNS[:-1]:
        table.add_column(name, overflow="fold", no_wrap=name in ("verdict", "change"))
    parts: list[RenderableType] = [table]
    reasons: list[RenderableType] = []
    for found in merged(rows):
        row = found[0] if isinstance(found, list) else found
        style = _STYLES.get(row["verdict"], "")
        texts = columns_of_many(found, several) if isinstance(found, list) else columns_of(found, several)
        table.add_row(Text(texts[0], style=style), *(Text(text) for text in texts[1:-1]))
        if row["verdict"] != "ok":
            subject = f" {visible(row['cell'], 200)} {texts[3]}: "
            reasons.append(Text.assemble((f"{texts[0]}", style), subject, texts[-1]))
    if reasons:
        parts += [Text(""), *reasons]
    note = "Shares in %, changes in points; change is candidate minus baseline with one-sided bounds."
    parts += [Text(""), Text(note, style="dim")]
    return Group(*parts, Text(f"gate: {headline(report)}", style=f"bold {_STYLES.get(report['verdict'], '')}"))
