"""Rows -> estimates and audit: what results.json says of a cell, and of several together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.checkpoints import write_atomically
from harness.errors import HarnessError, StoreError, one_line
from harness.host import Host
from harness.info import MetricInfo, resolve
from harness.loading import code_version, digest_of
from harness.metrics import CellRows, GroupMetric, Metric, Summary, undefined
from harness.store import CellManifest, ProbeManifest, RowReader

if TYPE_CHECKING:
    from pydantic import BaseModel


class Estimator:
    """Makes estimates from the rows of a run's cells; what was made before from the same rows is read back."""

    def __init__(self, reader: RowReader, host: Host, level: float, options: Mapping[str, BaseModel] | None = None):
        """
        Args:
            options: of the group metrics that have some, by name.
        """
        self._reader = reader
        self._level = level
        self._options = options or {}
        self._cell_metrics = [info for info in host.metrics if info.scope == "cell"]
        self._group_metrics = [info for info in host.metrics if info.scope == "group"]
        modules = sorted({_module(info) for info in host.metrics} | {"harness.audit"})
        self._version = digest_of([level, [i.name for i in host.metrics], [code_version(m) for m in modules]])
        self._chosen = {name: chosen.model_dump(mode="json") for name, chosen in self._options.items()}

    def cell(self, cell: CellManifest, lost: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Metrics, audit and reliability of a complete cell, as results.json lists them, and, where its rows have
        scores, the name of the first: what the numbers that name none are of.

        Args:
            lost: why auxiliary cells (by id) have no rows.

        Raises:
            HarnessError: a metric failed; names the metric.
        """
        smaller = self._reader.smaller_budgets(cell.id)
        probes = [replace(p, error=p.error or (lost or {}).get(p.cell, "")) for p in cell.probes]
        digests = [cell.digest, *(self._reader.cells[c].digest for c in smaller)]
        audited = [[*vars(p).values(), self._reader.cells[p.cell].digest if p.cell else ""] for p in probes]
        return self._remembered(["cell", *digests, audited], lambda: self._estimate(cell, smaller, probes))

    def summaries(self, cells: Sequence[CellManifest]) -> list[dict[str, Any]]:
        """The group metrics over all complete cells."""
        key = ["group", self._chosen, *sorted((c.digest, c.id, c.classes) for c in cells)]
        return self._remembered(key, lambda: {"summaries": self._summarise(cells)})["summaries"]  # type: ignore[no-any-return]

    def _estimate(self, cell: CellManifest, smaller: Sequence[str], probes: Sequence[ProbeManifest]) -> dict[str, Any]:
        columns = self._reader.columns(cell.id)
        metrics: dict[str, Any] = {}
        applicable = [info for info in self._cell_metrics if columns.issuperset(info.columns)]
        given = {
            info.name: (*info.columns, *(name for name in info.optional if name in columns)) for info in applicable
        }
        rows = self._reader.rows(cell.id, dict.fromkeys(name for names in given.values() for name in names))
        for info in applicable:
            metric: Metric = resolve(info.metric, f"metric '{info.name}'")
            try:
                estimates = metric.estimate({name: rows[name] for name in given[info.name]}, self._level)
            except HarnessError:
                raise
            except Exception as error:
                raise HarnessError(f"metric '{info.name}': {one_line(error)}") from error
            metrics.update({metric_name(info.name, variant): e.to_json() for variant, e in estimates.items()})
        checks = self._audit(cell, columns, smaller, probes)
        scores = rows["score"].tolist() if "score" in rows else []
        first = {"score": scores[0]} if scores and isinstance(scores[0], str) else {}
        return {**self._judged(metrics, checks), **first}

    def _judged(self, metrics: dict[str, Any], checks: list[dict[str, Any]]) -> dict[str, Any]:
        """Withhold the metrics that a failed check is about; any other failed check makes the whole cell unreliable."""
        from harness.audit import LIMITED

        failed = {check["check"]: check["message"] for check in checks if not check["ok"]}
        for name, message in failed.items():
            for metric in metrics:
                if split_name(metric) in LIMITED.get(name, ()):
                    metrics[metric] = undefined(metrics[metric]["n"], message).to_json()
        return {"metrics": metrics, "audit": checks, "reliable": not failed.keys() - LIMITED.keys()}

    def _audit(
        self, cell: CellManifest, columns: frozenset[str], smaller: Sequence[str], probes: Sequence[ProbeManifest]
    ) -> list[dict[str, Any]]:
        # Here, because it needs SciPy: a run whose numbers are all known goes without.
        from harness import audit

        checks = list(audit.audit(self._reader.raw(cell.id, columns & set(audit.COLUMNS))))
        if smaller and cell.budget is not None:
            members = [*((self._reader.cells[c].budget or 0.0, c) for c in smaller), (cell.budget, cell.id)]
            wanted = ("sample_id", "clean_correct", "success")
            checks.extend(audit.non_monotone([(eps, self._reader.raw(c, wanted)) for eps, c in sorted(members)]))
        for probe in probes:
            if probe.error:
                checks.append(audit.Check(probe.name, False, f"the probe could not be run: {probe.error}"))
                continue
            rows, found = (
                self._reader.raw(c, self._reader.columns(c) & set(audit.COLUMNS)) for c in (cell.id, probe.cell)
            )
            checks.append(audit.judge_probe(probe.name, probe.judge, probe.advice, rows, found))
        return [{"check": c.check, "ok": c.ok, "message": c.message} for c in checks]

    def _summarise(self, cells: Sequence[CellManifest]) -> list[dict[str, Any]]:
        found = []
        for info in self._group_metrics:
            chosen = [c for c in cells if self._reader.columns(c.id).issuperset(info.columns)]
            if not chosen:
                continue
            try:
                metric = self._group_metric(info)
                members = [self._member(c, info.columns) for c in chosen]
                summaries = metric.summarise(members, self._level)
            except Exception as error:  # a number over several cells takes down none of them
                summaries = [Summary("", tuple(c.id for c in chosen), undefined(0, one_line(error)))]
            for summary in summaries:
                facts = {"metric": info.name, "subject": summary.subject, "cells": list(summary.cells)}
                found.append({**facts, **summary.estimate.to_json()})
        return found

    def _group_metric(self, info: MetricInfo) -> GroupMetric:
        made: Any = resolve(info.metric, f"metric '{info.name}'")
        metric: GroupMetric = made if info.options is None else made(self._options[info.name])
        return metric

    def _member(self, c: CellManifest, columns: Sequence[str]) -> CellRows:
        rows = self._reader.rows(c.id, columns)
        norm = str(c.params.get("norm", ""))
        return CellRows(c.id, c.model, c.threat, c.plugin, c.dataset, rows, c.budget, norm, c.classes)

    def _remembered(self, key: Sequence[Any], make: Any) -> dict[str, Any]:
        path = self._reader.folder / "estimates" / f"{digest_of([self._version, *key])[:24]}.json"
        try:
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not made before, or not whole: make it now
            made = make()
            try:
                text = json.dumps(made, allow_nan=False)
                write_atomically(path, text.encode())
            except (TypeError, ValueError) as error:
                raise HarnessError(f"a metric or the audit gave what is no finite number ({error})") from error
            except OSError as error:
                raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
            known = json.loads(text)
        return known


def metric_name(name: str, variant: str) -> str:
    """`auroc[uniform]`: a metric's name in results.json."""
    return f"{name}[{variant}]" if variant else name


def split_name(name: str) -> str:
    """`auroc` of `auroc[uniform]`."""
    return name.partition("[")[0]


def cell_entry(cell: CellManifest | Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """A cell's entry in results.json, keys in the order of the schema."""
    about = cell if isinstance(cell, Mapping) else {k: getattr(cell, k) for k in _FACTS}
    entry = {key: about[key] for key in _FACTS}
    return {**entry, "status": "ok", "error": "", "n": 0, "metrics": {}, "audit": [], "reliable": True, **facts}


_FACTS = ("id", "model", "threat", "plugin", "dataset", "params")


def _module(info: MetricInfo) -> str:
    return info.metric.partition(":")[0] if isinstance(info.metric, str) else type(info.metric).__module__
