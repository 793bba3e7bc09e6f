"""Errors are one line, and exit codes those of the design."""

from __future__ import annotations

import pytest

from harness import errors
from harness.errors import ExitCode, HarnessError, SuiteError, did_you_mean


def test_exit_codes_are_those_of_pytest_and_the_gate() -> None:
    assert [(code.name, int(code)) for code in ExitCode] == [
        ("OK", 0),
        ("REGRESSED", 1),
        ("INTERRUPTED", 2),
        ("FAILED", 3),
        ("USAGE", 4),
        ("NOTHING_TO_RUN", 5),
        ("INCONCLUSIVE", 6),
    ]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("HarnessError", ExitCode.USAGE),
        ("PluginError", ExitCode.USAGE),
        ("MissingDataError", ExitCode.USAGE),
        ("ModelError", ExitCode.FAILED),
        ("ThreatError", ExitCode.FAILED),
        ("StoreError", ExitCode.FAILED),
    ],
)
def test_each_error_has_its_exit_code(kind: str, code: ExitCode) -> None:
    error = getattr(errors, kind)("one line")
    assert isinstance(error, HarnessError)
    assert error.exit_code == code


def test_a_suite_error_lists_every_problem() -> None:
    error = SuiteError("suite.toml", ["threats[1] (pgd) epz: unknown key", "models.mine plugin: missing"])
    assert str(error).splitlines() == [
        "suite.toml: 2 problems",
        "  threats[1] (pgd) epz: unknown key",
        "  models.mine plugin: missing",
    ]
    assert str(SuiteError("s", ["x"])).startswith("s: 1 problem\n")
    assert error.exit_code == ExitCode.USAGE


def test_the_nearest_known_name() -> None:
    assert did_you_mean("epz", ["eps", "steps"]) == "; did you mean 'eps'?"
    assert did_you_mean("colour", ["eps", "steps"]) == ""
    assert did_you_mean("x", []) == ""
