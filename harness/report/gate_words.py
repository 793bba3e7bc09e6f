"""How a gate's rows are written: the same words in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.wording import heading, interval, is_percentage, split_metric, visible

_SHOWN_EACH = 4
COLUMNS = ("verdict", "model", "threat", "metric", "baseline", "candidate", "change", "detectable", "why")


def columns_of(row: Mapping[str, Any], several_datasets: bool) -> tuple[str, ...]:
    """One row of gate.json as text, in the order of `COLUMNS`."""
    threat = str(row["threat"]) + (f" on {row['dataset']}" if several_datasets else "")
    metric = row["metric"]
    return (
        verdict_of(row),
        visible(row["model"], 80),
        visible(threat, 120),
        heading(metric) if metric else "all",
        interval(metric, row["baseline"]) if row["baseline"] else "none",
        interval(metric, row["candidate"]) if row["candidate"] else "none",
        change(row),
        "" if row["minimal_detectable_effect"] is None else amount(metric, row["minimal_detectable_effect"]),
        visible(row["reason"], 600),
    )


def merged(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | list[Mapping[str, Any]]]:
    """The rows in their order, but for many of one metric and cell that are all ok: those in one list, where the first
    of them stood."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    out: list[Mapping[str, Any] | list[Mapping[str, Any]]] = []
    for row in rows:
        key = _group(row)
        if row["verdict"] != "ok":
            out.append(row)
        elif key in groups:
            groups[key].append(row)
        else:
            groups[key] = [row]
            out.append(groups[key])
    parts = (found if isinstance(found, list) and len(found) <= _SHOWN_EACH else [found] for found in out)
    return [found for part in parts for found in part]


def _group(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["cell"], split_metric(row["metric"])[0], row["severity"]


def columns_of_many(rows: Sequence[Mapping[str, Any]], several_datasets: bool) -> tuple[str, ...]:
    """Rows that are all ok as one line, with the change that is furthest to the worse side."""
    sign = -1 if rows[0]["direction"] == "lower" else 1
    compared = [row for row in rows if row["difference"] is not None]
    worst = min(compared, key=lambda row: sign * row["difference"], default=rows[0])
    texts = columns_of(worst, several_datasets)
    return (*texts[:3], f"{texts[3]}, the worst of {len(rows)}", *texts[4:])


def verdict_of(row: Mapping[str, Any]) -> str:
    """The verdict, with a remark where the rule only warns."""
    only_warns = row["severity"] == "warn" and row["verdict"] != "ok"
    return f"{row['verdict']} (warning only)" if only_warns else str(row["verdict"])


def change(row: Mapping[str, Any]) -> str:
    """Candidate minus baseline with its one-sided bounds: ``-2.1 [-3.0, -1.2]``, in points for shares."""
    if row["difference"] is None:
        return ""
    value, low, high = (amount(row["metric"], row[key], signed=True) for key in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]"


def amount(metric: str, value: float, *, signed: bool = False) -> str:
    """A size in the metric's units, or in points for shares."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f}" if is_percentage(metric) else f"{value:{sign}.4g}"


def headline(report: Mapping[str, Any]) -> str:
    """The outcome in a line: ``regressed: 1 regressed, 39 ok (detect, alpha 0.05, Holm over 40 comparisons)``."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report["counts"].items()) or "only warnings"
    many = report["comparisons"] > 1
    family = f", Holm over {report['comparisons']} comparisons" if many and report["correction"] == "holm" else ""
    return f"{report['verdict']}: {counts} ({report['mode']}, alpha {report['alpha']:g}{family})"
