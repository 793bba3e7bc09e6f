"""The rules of a gate -> what is judged: metrics of cells, in either run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import HarnessError
from harness.gate_options import GateOptions, GateRule
from harness.info import MetricInfo

if TYPE_CHECKING:
    from harness.host import Host

DEFAULT_RULES = (GateRule(metric="clean_accuracy"), GateRule(metric="robust_accuracy"))

# A metric of these columns alone says the same in every cell of a model, whatever the threat.
_THREAT_FREE = frozenset({"sample_id", "label", "clean_prediction", "clean_correct"})


class Subject(NamedTuple):
    """What one row is about: a metric of a cell, and the rule that asks for it."""

    rule: GateRule
    info: MetricInfo
    cell: str
    key: str  # the metric's name in results.json


class Sides(NamedTuple):
    """The entries of both runs' results.json by cell id."""

    candidate: Mapping[str, Mapping[str, Any]]
    baseline: Mapping[str, Mapping[str, Any]]

    def entry(self, cell: str) -> Mapping[str, Any]:
        return self.candidate.get(cell) or self.baseline[cell]

    def cells(self) -> list[str]:
        return list({**self.candidate, **self.baseline})

    def metrics(self, cell: str) -> list[str]:
        """Names of the cell's metrics in either run."""
        both = (side.get(cell, {}).get("metrics", {}) for side in (self.candidate, self.baseline))
        return list(dict.fromkeys(name for metrics in both for name in metrics))


def subjects_of(options: GateOptions, sides: Sides, host: Host) -> Iterator[Subject]:
    """What the rules ask for, rule by rule.

    Raises:
        HarnessError: a metric is unknown or has no better direction, or a rule selects nothing.
    """
    any_found = False
    for number, rule in enumerate(options.rules or DEFAULT_RULES):
        name = rule.metric.partition("[")[0]
        info = host.metrics.get(name)
        where = f"gate.rules[{number}] (metric = '{rule.metric}')"
        if info.direction == "none":
            raise HarnessError(f"{where}: neither more nor less of {name} is better, so it cannot be gated")
        if info.scope == "group":
            raise HarnessError(f"{where}: {name} is a number over several cells; gate a metric of the cells themselves")
        found = list(_of_rule(rule, info, sides))
        any_found |= bool(found)
        crashed = any(e["status"] == "failed" and selects(rule, e) for e in sides.candidate.values())
        any_found |= crashed
        if options.rules and not found and not crashed:
            raise HarnessError(f"{where} selects nothing: {_why_nothing(rule, sides)}")
        yield from found
    if not any_found:
        raise HarnessError("no cell has clean_accuracy or robust_accuracy; say in a [gate] table what to judge")


def _of_rule(rule: GateRule, info: MetricInfo, sides: Sides) -> Iterator[Subject]:
    selected = [cell for cell in sides.cells() if selects(rule, sides.entry(cell))]
    found = [
        Subject(rule, info, cell, key)
        for cell in selected
        for key in sides.metrics(cell)
        if rule.metric in (key, key.partition("[")[0])
    ]
    if rule.select.threat == "*" and _THREAT_FREE.issuperset(info.columns):
        best: dict[tuple[str, str, str], Subject] = {}
        for subject in found:
            entry = sides.entry(subject.cell)
            group = (entry["model"], entry["dataset"], subject.key)
            if group not in best or _rank(entry) > _rank(sides.entry(best[group].cell)):
                best[group] = subject
        return iter(best.values())
    return iter(found)


def _rank(entry: Mapping[str, Any]) -> tuple[bool, int]:
    """Which of a model's cells stands for a number that they all share: the clean one, else the largest."""
    return entry["plugin"] == "clean", int(entry.get("n") or 0)


def selects(rule: GateRule, entry: Mapping[str, Any]) -> bool:
    return rule.select.matches(
        threat=entry["threat"], plugin=entry["plugin"], model=entry["model"], dataset=entry["dataset"]
    )


def _why_nothing(rule: GateRule, sides: Sides) -> str:
    entries = [sides.entry(cell) for cell in sides.cells()]
    for noun, pattern in rule.select.model_dump().items():
        alone = rule.model_copy(update={"select": type(rule.select)(**{noun: pattern})})
        if not any(selects(alone, entry) for entry in entries):
            names = sorted({str(entry[noun]) for entry in entries})
            listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            return f"no {noun} matches '{pattern}' (there are {listed})"
    known = sorted({name for e in entries if selects(rule, e) for name in sides.metrics(str(e["id"]))})
    return f"no selected cell has this metric (they have {', '.join(known) or 'none'})"
