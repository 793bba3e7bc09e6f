"""A gate's verdicts as Markdown, for a pull request or the step summary of a CI."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import StoreError
from harness.report.gate_words import COLUMNS, columns_of, columns_of_many, headline, merged

STEP_SUMMARY_LIMIT = 1024 * 1024
"""Bytes of a GitHub step summary; what is larger is not shown at all."""

_SPECIAL = re.compile(r"[\\`*_{}\[\]<>()#+!|~@$:&-]")
_MARKS = {"ok": "✅", "new": "🆕", "inconclusive": "❔", "unreliable": "❔"}


def gate_markdown(report: Mapping[str, Any], limit: int = STEP_SUMMARY_LIMIT) -> str:
    """A heading, the outcome and a table, worst first.

    Args:
        report: what gate.json holds.
        limit: at most so many bytes of UTF-8; rows at the end, which are the best, are left out and counted.
    """
    rows = report["rows"]
    several = len({row["dataset"] for row in rows}) > 1
    head = "\n".join(
        [
            f"## Gate of {_escaped(report['suite'])}: {_escaped(report['verdict'])}",
            "",
            headline(report),
            "",
            f"| {' | '.join(COLUMNS)} |",
            f"|{' --- |' * len(COLUMNS)}",
            "",
        ]
    )
    foot = "\nShares in %, changes in points; change is candidate minus baseline with one-sided bounds.\n"
    lines = [_line(found, several) for found in merged(rows)]
    room = limit - len((head + foot).encode()) - 1
    if sum(len(line.encode()) for line in lines) <= room:
        return head + "".join(lines) + foot
    room -= len(_left_out(len(lines)).encode())
    kept = 0
    for line in lines:
        room -= len(line.encode())
        if room < 0:
            break
        kept += 1
    text = head + "".join(lines[:kept]) + _left_out(len(lines) - kept) + foot
    return text if len(text.encode()) < limit else ""


def append_step_summary(report: Mapping[str, Any]) -> Path | None:
    """Append to the file that $GITHUB_STEP_SUMMARY names, keeping it below its limit; None without the variable.

    Raises:
        StoreError: the file cannot be written.
    """
    named = os.environ.get("GITHUB_STEP_SUMMARY")
    if not named:
        return None
    path = Path(named)
    try:
        with path.open("ab") as file:
            used = file.tell()
            text = gate_markdown(report, STEP_SUMMARY_LIMIT - used - 2)
            file.write((("\n\n" if used else "") + text).encode() if text else b"")
    except OSError as error:
        raise StoreError(f"cannot write $GITHUB_STEP_SUMMARY {path}: {error.strerror or error}") from error
    return path


def _line(found: Mapping[str, Any] | list[Mapping[str, Any]], several: bool) -> str:
    row = found[0] if isinstance(found, list) else found
    texts = columns_of_many(found, several) if isinstance(found, list) else columns_of(found, several)
    cells = [f"{_MARKS.get(row['verdict'], '❌')} {_escaped(texts[0])}", *(_escaped(text) for text in texts[1:])]
    return f"| {' | '.join(cells)} |\n"


def _left_out(count: int) -> str:
    return f"\n{count} more rows, none of them worse, are left out; gate.json has them all.\n"


def _escaped(text: object) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no mention, no table column of its own."""
    one_line = " ".join(str(text).split())
    return _SPECIAL.sub(lambda found: _entity(found[0]), one_line)


def _entity(character: str) -> str:
    # Character references for what a backslash does not tame: HTML, table cells, mentions, emoji codes, links.
    return f"&#{ord(character)};" if character in "<>|@:&`" else "\\" + character
