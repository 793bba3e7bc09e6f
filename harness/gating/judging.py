"""Two runs -> verdicts: is the candidate worse than its baseline?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness.errors import ExitCode, HarnessError
from harness.gate_options import GateOptions
from harness.gating.comparability import check_comparable
from harness.gating.pairing import RunPair
from harness.gating.subjects import DEFAULT_RULES, Sides, Subject, selects, subjects_of
from harness.gating.verdicts import (
    WORST_FIRST,
    Finding,
    Limits,
    Verdict,
    gain,
    judge,
    judge_floor,
    minimal_detectable_effect,
    worst,
)
from harness.host import Host, load_host
from harness.info import Direction
from harness.metrics.base import Estimate, PairedDifference
from harness.statistics import holm

if TYPE_CHECKING:
    from harness.store import Run

SCHEMA = 1


@dataclass(frozen=True)
class GateRow:
    """One judged number. `difference`, `low` and `high` are candidate minus baseline, in the metric's own units.

    `low` and `high` are one-sided bounds, each at level 1 - alpha; `p` is the p-value of a loss, `p_adjusted` the same
    corrected over the family. `detectable` is the smallest true loss found in four of five such comparisons.
    """

    cell: str
    metric: str
    model: str
    threat: str
    dataset: str
    direction: Direction
    severity: str
    limits: Limits
    verdict: Verdict
    reason: str
    baseline: Estimate | None = None
    candidate: Estimate | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    n: int = 0
    detectable: float | None = None
    samples_needed: int | None = None

    def to_json(self) -> dict[str, Any]:
        plain = {k: v for k, v in vars(self).items() if k not in ("limits", "baseline", "candidate", "detectable")}
        limits = {k: getattr(self.limits, k) for k in ("max_drop", "tolerance", "floor")}
        estimates = {k: e and e.to_json() for k, e in (("baseline", self.baseline), ("candidate", self.candidate))}
        return {**plain, **estimates, "minimal_detectable_effect": self.detectable, **limits}


@dataclass(frozen=True)
class GateReport:
    """Verdicts of a candidate against a baseline, worst first."""

    suite: str
    candidate: str
    baseline: str
    options: GateOptions
    comparisons: int
    rows: tuple[GateRow, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have each verdict, worst first; rules that only warn are left out."""
        found = Counter(row.verdict for row in self.rows if row.severity == "fail")
        return {verdict: found[verdict] for verdict in WORST_FIRST if found[verdict]}

    @property
    def verdict(self) -> str:
        """regressed, error, inconclusive or ok, over the rules that do not only warn."""
        found = self.counts
        if found.keys() & {"regressed", "missing"}:
            return "regressed"
        if "error" in found:
            return "error"
        return "inconclusive" if found.keys() & {"unreliable", "inconclusive"} else "ok"

    @property
    def exit_code(self) -> ExitCode:
        codes = {
            "regressed": ExitCode.REGRESSED,
            "error": ExitCode.FAILED,
            "inconclusive": ExitCode.INCONCLUSIVE,
        }
        return codes.get(self.verdict, ExitCode.OK)

    def to_json(self) -> dict[str, Any]:
        """The contract for other programs: what gate.json holds."""
        return {
            "schema": SCHEMA,
            "suite": self.suite,
            "candidate": self.candidate,
            "baseline": self.baseline,
            "mode": self.options.mode,
            "alpha": self.options.alpha,
            "correction": self.options.correction,
            "comparisons": self.comparisons,
            "verdict": self.verdict,
            "exit_code": int(self.exit_code),
            "counts": self.counts,
            "rows": [row.to_json() for row in self.rows],
        }


def gate(candidate: Run, baseline: Run, rules: GateOptions | None = None, host: Host | None = None) -> GateReport:
    """Judge a candidate run against a baseline run of the same suite.

    Args:
        candidate, baseline: finished runs, paired by sample id.
        rules: the `[gate]` table; that of the candidate's suite by default. Without rules in it clean and robust
            accuracy of every model are judged.
        host: knows the metrics; the installed plugins by default.

    Raises:
        IncompleteRunError: shards are missing.
        HarnessError: the runs cannot be compared, or a rule is wrong or selects nothing.
    """
    rules = rules_of(candidate, {}) if rules is None else rules
    host = host or load_host()
    check_comparable(candidate, baseline)
    sides = Sides({c["id"]: c for c in candidate.cells()}, {c["id"]: c for c in baseline.cells()})
    subjects = list(subjects_of(rules, sides, host))
    pair = RunPair(baseline, candidate, rules.alpha)
    differences = {(s.cell, s.key): found for s in subjects if (found := _difference(pair, sides, s)) is not None}
    adjusted, comparisons = _adjusted_p(subjects, differences, rules)
    rows = []
    for subject in subjects:
        found = differences.get((subject.cell, subject.key))
        rows.append(_row(subject, sides, found, adjusted, _limits(subject, rules, comparisons)))
    rows += _crashed(sides, rules, {row.cell for row in rows}, comparisons)
    rows.sort(key=lambda row: (row.severity != "fail", WORST_FIRST.index(row.verdict)))
    suite = str(candidate.results["suite"])
    return GateReport(suite, str(candidate.folder), str(baseline.folder), rules, comparisons, tuple(rows))


def rules_of(run: Run, overrides: Mapping[str, Any]) -> GateOptions:
    """The `[gate]` table of a run's suite, with what `overrides` says instead (None says nothing).

    Raises:
        HarnessError: a value is out of range.
    """
    table = run.info["suite"].get("gate") or {}
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return GateOptions.model_validate({**table, **given})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise HarnessError(f"gate option {key.replace('_', '-')}: {first['msg']}, not {first['input']!r}") from error


def _difference(pair: RunPair, sides: Sides, subject: Subject) -> tuple[PairedDifference, PairedDifference] | None:
    """The candidate's difference and the baseline's with itself, where both runs have the number."""
    have = [subject.key in side.get(subject.cell, {}).get("metrics", {}) for side in sides]
    if not all(have):
        return None
    compared = pair.compare(subject.cell, subject.info)
    if compared.unmatched:
        raise HarnessError(
            f"cell {subject.cell}: {compared.unlike}; the runs did not see the same samples, or show them the same"
        )
    variant = subject.key.removeprefix(subject.info.name).removeprefix("[").removesuffix("]")
    if variant not in compared.differences:
        raise HarnessError(f"cell {subject.cell}: metric '{subject.info.name}' gave no difference of {subject.key}")
    return compared.differences[variant], compared.unchanged[variant]


_Pairs = Mapping[tuple[str, str], tuple[PairedDifference, PairedDifference]]


def _adjusted_p(
    subjects: Sequence[Subject], differences: _Pairs, options: GateOptions
) -> tuple[dict[tuple[str, str], float], int]:
    """p-values of a loss corrected over the suite, and how many share alpha. A number that two rules ask for is one."""
    raw: dict[tuple[str, str], float] = {}
    for subject in subjects:
        key = (subject.cell, subject.key)
        if key in differences and (change := gain(differences[key][0], subject.info.direction)) is not None:
            raw[key] = change.p_loss
    if options.mode == "noninferior" or options.correction == "none":
        return ({} if options.mode == "noninferior" else raw), 1
    return dict(zip(raw, holm(list(raw.values())), strict=True)), max(len(raw), 1)


def _limits(subject: Subject, options: GateOptions, comparisons: int) -> Limits:
    rule = subject.rule
    max_drop = options.max_drop if rule.max_drop is None else rule.max_drop
    tolerance = options.tolerance if rule.tolerance is None else rule.tolerance
    for name, limit in (("max_drop", max_drop), ("tolerance", tolerance)):
        if not subject.info.unit and limit >= 1:
            hint = f"; {limit:g} points are {limit / 100:g}" if limit < 100 else ""
            raise HarnessError(f"gate {name} = {limit:g}: {subject.info.name} is a share, from 0 to 1{hint}")
    return Limits(
        mode=options.mode,
        alpha=options.alpha,
        max_drop=max_drop,
        tolerance=tolerance,
        floor=rule.floor,
        comparisons=comparisons,
    )


def _row(
    subject: Subject,
    sides: Sides,
    pair: tuple[PairedDifference, PairedDifference] | None,
    adjusted: Mapping[tuple[str, str], float],
    limits: Limits,
) -> GateRow:
    entry = sides.entry(subject.cell)
    ours, theirs = (side.get(subject.cell, {}).get("metrics", {}).get(subject.key) for side in sides)
    p_adjusted = adjusted.get((subject.cell, subject.key))
    finding = _finding(subject, sides, pair, p_adjusted, limits)
    row = GateRow(
        cell=subject.cell,
        metric=subject.key,
        model=entry["model"],
        threat=entry["threat"],
        dataset=entry["dataset"],
        direction=subject.info.direction,
        severity=subject.rule.severity,
        limits=limits,
        verdict=finding.verdict,
        reason=finding.reason,
        baseline=_estimate(theirs),
        candidate=_estimate(ours),
        n=(ours or theirs or {}).get("n", 0),
        samples_needed=finding.samples_needed,
    )
    if pair is None:
        return row
    difference, unchanged = pair
    change = gain(difference, subject.info.direction)
    return replace(
        row,
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        p=change and change.p_loss,
        p_adjusted=p_adjusted,
        n=difference.n,
        detectable=minimal_detectable_effect(difference, unchanged, limits),
    )


def _finding(
    subject: Subject,
    sides: Sides,
    pair: tuple[PairedDifference, PairedDifference] | None,
    p_adjusted: float | None,
    limits: Limits,
) -> Finding:
    ours = sides.candidate.get(subject.cell)
    number = (ours or {}).get("metrics", {}).get(subject.key)
    if ours is None or number is None:
        return _absent(ours)
    if pair is None:
        past = sides.baseline.get(subject.cell, {})
        why = "the baseline's cell failed" if past.get("status") == "failed" else "the baseline does not have it"
        findings = [Finding("new", f"not compared: {why}")]
    else:
        findings = [judge(*pair, subject.info.direction, limits, p_adjusted)]
    if limits.floor is not None:
        findings.append(judge_floor(_require(number), subject.info.direction, limits.floor))
    for side, entry in (("candidate", ours), ("baseline", sides.baseline.get(subject.cell, {}))):
        if entry.get("reliable") is False and entry.get("status") == "ok":
            failing = "; ".join(c["message"] or c["check"] for c in entry.get("audit", ()) if not c["ok"])
            findings.append(Finding("unreliable", f"the audit of the {side} says: {failing or 'unreliable'}"))
    return worst(findings)


def _absent(entry: Mapping[str, Any] | None) -> Finding:
    """Why the candidate does not have a number that the baseline has."""
    if entry is None:
        return Finding("missing", "the candidate does not have this cell")
    if entry["status"] == "failed":
        return Finding("error", f"the cell failed: {entry['error']}")
    if entry["status"] == "skipped":
        return Finding("missing", f"the candidate skipped this cell: {entry['error']}")
    return Finding("missing", "the candidate's cell does not have this metric")


def _crashed(sides: Sides, options: GateOptions, covered: set[str], comparisons: int) -> Iterator[GateRow]:
    """Failed cells of the candidate that no row speaks of, because the baseline has no number for them either."""
    for cell, entry in sides.candidate.items():
        rule = next((r for r in options.rules or DEFAULT_RULES if selects(r, entry)), None)
        if entry["status"] != "failed" or cell in covered or rule is None:
            continue
        limits = Limits(options.mode, options.alpha, options.max_drop, options.tolerance, None, comparisons)
        yield GateRow(
            cell=cell,
            metric="",
            model=entry["model"],
            threat=entry["threat"],
            dataset=entry["dataset"],
            direction="none",
            severity=rule.severity,
            limits=limits,
            verdict="error",
            reason=f"the cell failed: {entry['error']}",
        )


def _estimate(entry: Mapping[str, Any] | None) -> Estimate | None:
    return None if entry is None else _require(entry)


def _require(entry: Mapping[str, Any]) -> Estimate:
    return Estimate(entry["value"], entry["low"], entry["high"], entry["n"], entry.get("reason", ""))
