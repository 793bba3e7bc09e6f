"""A gate's verdicts as JUnit XML, as Markdown and in the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness.errors import StoreError
from harness.report.gate_table import gate_view
from harness.report.junit import junit_xml
from harness.report.markdown import append_step_summary, gate_markdown


def estimate(value: float | None) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 400, "reason": "no attack succeeded"}
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 400}


def row(verdict: str, **more: Any) -> dict[str, Any]:
    return {
        "cell": "cnn/pgd[eps=8/255]/digits", "metric": "robust_accuracy", "model": "cnn", "threat": "pgd[eps=8/255]",
        "dataset": "digits", "direction": "higher", "severity": "fail", "verdict": verdict,
        "reason": f"because {verdict}", "difference": -0.021, "low": -0.034, "high": -0.009, "p": 0.0004,
        "p_adjusted": 0.016, "n": 400, "samples_needed": None, "baseline": estimate(0.81), "candidate": estimate(0.789),
        "minimal_detectable_effect": 0.013, "max_drop": 0.01, "tolerance": 0.01, "floor": None, **more,
    }  # fmt: skip


def report(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for entry in rows:
        counts[entry["verdict"]] = counts.get(entry["verdict"], 0) + 1
    return {
        "schema": 1, "suite": "release", "candidate": "runs/new", "baseline": "baselines/release", "mode": "detect",
        "alpha": 0.05, "correction": "holm", "comparisons": 40, "verdict": "regressed", "exit_code": 1,
        "counts": counts, "rows": list(rows), **more,
    }  # fmt: skip


ABSENT = dict.fromkeys(("difference", "low", "high", "p", "p_adjusted", "minimal_detectable_effect"))
ALL = (
    row("regressed"), row("missing", candidate=None, **ABSENT), row("error", candidate=None, metric="", **ABSENT),
    row("unreliable"), row("inconclusive", samples_needed=2100), row("new", baseline=None, **ABSENT), row("ok"),
    row("regressed", severity="warn"),
)  # fmt: skip


def cases(document: dict[str, Any]) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(junit_xml(document)).iter("testcase"))


def outcome(case: ElementTree.Element) -> str:
    found = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
    assert len(found) <= 1
    return found[0] if found else "passed"


def test_junit_maps_verdicts_to_outcomes() -> None:
    found = cases(report(*ALL))
    assert [outcome(case) for case in found] == [
        "failure", "failure", "error", "skipped", "skipped", "passed", "passed", "passed"
    ]  # fmt: skip
    assert found[0].get("classname") == "release.cnn"
    assert found[0].get("name") == "pgd[eps=8/255]/digits/robust_accuracy"
    failure = found[0].find("failure")
    assert failure is not None
    assert failure.get("message") == "regressed: because regressed"
    skipped = found[4].find("skipped")
    assert skipped is not None
    assert "because inconclusive" in str(skipped.get("message"))


def test_junit_counts_and_numbers() -> None:
    root = ElementTree.fromstring(junit_xml(report(*ALL)))
    for element in (root, root[0]):
        counted = {key: element.get(key) for key in ("tests", "failures", "errors", "skipped")}
        assert counted == {"tests": "8", "failures": "2", "errors": "1", "skipped": "2"}
    case = next(root.iter("testcase"))
    numbers = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert float(str(numbers["difference"])) == -0.021
    assert float(str(numbers["candidate_value"])) == 0.789
    assert numbers["verdict"] == "regressed"


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z", "Cc", "Cf", "Cs", "Co", "Cn"]), max_size=40))
def test_junit_is_valid_xml_whatever_the_names_hold(text: str) -> None:
    named = row("regressed", model=text, threat=text, reason=text, dataset=text)
    document = report(named, suite=text, candidate=text)
    root = ElementTree.fromstring(junit_xml(document))
    assert len(list(root.iter("testcase"))) == 1


def test_junit_keeps_names_that_xml_can_hold() -> None:
    (case,) = cases(report(row("regressed", model='a<b>&"c"', threat="ü∞\x1b[31m")))
    assert case.get("classname") == 'release.a<b>&"c"'
    assert "ü∞\\x1b[31m" in str(case.get("name"))


def table_lines(markdown: str) -> list[str]:
    return [line for line in markdown.splitlines() if line.startswith("| ")][2:]


def test_markdown_has_a_line_for_each_row() -> None:
    text = gate_markdown(report(*ALL))
    lines = table_lines(text)
    assert len(lines) == len(ALL)
    assert "80.1" not in lines[0]
    assert "81.0" in lines[0]
    assert r"\-2.10" in lines[0]
    assert r"regressed \(warning only\)" in lines[-1]


@given(st.text(max_size=60))
def test_names_make_no_markup(text: str) -> None:
    plain = gate_markdown(report(row("regressed")))
    tricky = gate_markdown(report(row("regressed", model=text, reason=text)))
    (line,) = table_lines(tricky)
    assert line.count("|") == table_lines(plain)[0].count("|")
    assert "<" not in tricky
    assert "`" not in tricky


def test_markdown_is_cut_at_the_end_which_is_the_best() -> None:
    rows = [row("regressed", reason=f"worst {i} " + "x" * 200) for i in range(50)] + [
        row("ok", cell=f"c{i}") for i in range(5000)
    ]
    text = gate_markdown(report(*rows), limit=60_000)
    assert len(text.encode()) < 60_000
    assert len(text.encode()) > 55_000
    kept = len(table_lines(text))
    assert sum("worst" in line for line in table_lines(text)) == 50
    assert f"{5050 - kept} more rows" in text
    assert "more rows" not in gate_markdown(report(*rows[:60]))


def test_many_numbers_of_a_metric_that_are_all_ok_are_one_line() -> None:
    names = [f"fog,{i}" for i in range(1, 6)]
    good = [row("ok", metric=f"corruption_accuracy[{name}]", difference=-0.01 * i) for i, name in enumerate(names)]
    document = report(row("regressed", metric="corruption_accuracy[snow]"), *good, row("ok"))
    lines = table_lines(gate_markdown(document))
    assert len(lines) == 3
    assert "corruption accuracy fog,5, the worst of 5" in lines[1]
    assert "4.00" in lines[1]
    shown = printed(document)
    assert shown.count("fog,") == 1
    assert "corruption accuracy fog,5, the worst of 5" in shown
    assert len(cases(document)) == 7
    lower = report(*({**one, "direction": "lower"} for one in good))
    assert "corruption accuracy fog,1, the worst of 5" in printed(lower)
    assert len(table_lines(gate_markdown(report(*good[:4])))) == 4


def test_the_step_summary_is_appended_to_and_never_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    file.write_text("what an earlier command wrote")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    assert append_step_summary(report(*ALL)) == file
    once = file.read_text()
    assert once.startswith("what an earlier command wrote\n\n## Gate of release")
    many = report(*[row("ok", cell=f"c{i}") for i in range(6000)])
    append_step_summary(many)
    append_step_summary(many)
    assert file.read_text().startswith(once)
    assert 1_000_000 < file.stat().st_size < 1024 * 1024


def test_no_step_summary_without_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert append_step_summary(report(*ALL)) is None
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "such" / "folder"))
    with pytest.raises(StoreError, match="GITHUB_STEP_SUMMARY"):
        append_step_summary(report(*ALL))


def printed(document: dict[str, Any], *, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=220, force_terminal=terminal, color_system="standard" if terminal else None)
    console.print(gate_view(document))
    return out.getvalue()


def test_the_table_gives_numbers_reasons_and_the_outcome() -> None:
    text = printed(report(*ALL))
    assert "\x1b" not in text
    assert "-2.10 [-3.40, -0.90]" in text
    assert "regressed cnn/pgd[eps=8/255]/digits robust accuracy: because regressed" in text
    assert text.rstrip().endswith("(detect, alpha 0.05, Holm over 40 comparisons)")
    assert "because ok" not in text
    assert "\x1b[" in printed(report(*ALL), terminal=True)


def test_the_table_shows_names_as_they_are() -> None:
    text = printed(report(row("regressed", model="[red]cnn[/red]", reason="says \x1b[2J :boom:")))
    assert "[red]cnn[/red]" in text
    assert "\\x1b[2J :boom:" in text


def test_reports_take_what_gate_json_holds() -> None:
    document = json.loads(json.dumps(report(*ALL, row("inconclusive", candidate=estimate(None), **ABSENT))))
    assert "undefined" in gate_markdown(document)
    assert "undefined" in printed(document)
    assert len(cases(document)) == 9
