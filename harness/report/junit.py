"""A gate's verdicts as JUnit XML, which every CI reads.

One test case a row: regressed or missing is a failure, a crashed cell an error, inconclusive or unreliable a skip with
its reason. Numbers are properties of the test case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as Xml

from harness.report.gate_words import headline

# What XML 1.0 (section 2.2) does not allow, escaped or not.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OUTCOME = {
    "regressed": "failure",
    "missing": "failure",
    "error": "error",
    "inconclusive": "skipped",
    "unreliable": "skipped",
}
_NUMBERS = ("difference", "low", "high", "p", "p_adjusted", "n", "minimal_detectable_effect", "samples_needed")


def junit_xml(report: Mapping[str, Any]) -> bytes:
    """JUnit XML of a gate report.

    Args:
        report: what gate.json holds.
    """
    rows = report["rows"]
    outcomes = [_outcome(row) for row in rows]
    counts = {
        "tests": str(len(rows)),
        "failures": str(outcomes.count("failure")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skipped")),
    }
    root = Xml.Element("testsuites", {"name": "harness gate", **counts})
    suite = Xml.SubElement(root, "testsuite", {"name": _legal(report["suite"]), **counts})
    properties = Xml.SubElement(suite, "properties")
    for name in ("candidate", "baseline", "mode", "alpha", "correction", "comparisons", "verdict"):
        _property(properties, name, report[name])
    for row, outcome in zip(rows, outcomes, strict=True):
        _test_case(suite, report, row, outcome)
    Xml.SubElement(suite, "system-out").text = _legal(headline(report))
    Xml.indent(root, " ")
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _outcome(row: Mapping[str, Any]) -> str:
    """failure, error, skipped, or empty for what passes: a rule that only warns always does."""
    return "" if row["severity"] == "warn" else _OUTCOME.get(row["verdict"], "")


def _test_case(suite: Xml.Element, report: Mapping[str, Any], row: Mapping[str, Any], outcome: str) -> None:
    name = f"{row['threat']}/{row['dataset']}/{row['metric'] or 'cell'}"
    case = Xml.SubElement(
        suite, "testcase", classname=_legal(f"{report['suite']}.{row['model']}"), name=_legal(name), time="0"
    )
    properties = Xml.SubElement(case, "properties")
    _property(properties, "verdict", row["verdict"])
    for key in _NUMBERS:
        if row[key] is not None:
            _property(properties, key, row[key])
    for side in ("baseline", "candidate"):
        for key, value in (row[side] or {}).items():
            if value is not None:
                _property(properties, f"{side}_{key}", value)
    message = _legal(f"{row['verdict']}: {row['reason']}")
    if outcome:
        Xml.SubElement(case, outcome, message=message, type=row["verdict"]).text = message
    elif row["verdict"] != "ok":
        Xml.SubElement(case, "system-out").text = message


def _property(parent: Xml.Element, name: str, value: object) -> None:
    text = repr(value) if isinstance(value, float) else str(value)
    Xml.SubElement(parent, "property", name=name, value=_legal(text))


def _legal(text: object) -> str:
    """`text` with the characters that XML cannot hold spelled out."""
    return _ILLEGAL.sub(lambda found: ascii(found[0])[1:-1], str(text))
