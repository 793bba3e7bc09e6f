"""A conformance check bound to what it checks, and ways of running many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import did_you_mean

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Check:
    """One check of one subject. Calling it raises AssertionError, in a sentence that says what to fix."""

    name: str
    subject: str
    function: Callable[[], None]

    @property
    def id(self) -> str:
        return f"{self.subject}-{self.name}"

    def __call__(self) -> None:
        try:
            self.function()
        except AssertionError as error:
            # pytest appends the values compared to the sentence; the sentence is what the author needs.
            sentence = (str(error).splitlines() or ["an assertion failed"])[0]
            raise AssertionError(f"{self.id}: {sentence}") from error
        except Exception as error:
            text = " ".join(str(error).split())
            raise AssertionError(f"{self.id}: raised {type(error).__name__}: {text}") from error


def run_checks(checks: Sequence[Check], expected_failures: Mapping[str, str]) -> None:
    """Run all checks.

    Args:
        expected_failures: check name (or id) -> why it is known to fail.

    Raises:
        AssertionError: one line for each check that failed, and for each expected failure that did not happen.
        ValueError: `expected_failures` names no check.
    """
    _refuse_unknown(checks, expected_failures)
    failed: dict[str, list[str]] = {}  # sentence -> checks; what cannot be built fails them all alike
    for check in checks:
        reason = _reason(check, expected_failures)
        try:
            check()
        except AssertionError as error:
            if reason is None:
                failed.setdefault(str(error).removeprefix(f"{check.id}: "), []).append(check.id)
        else:
            if reason is not None:
                sentence = f"passes, but was expected to fail ({reason}); remove the expectation"
                failed.setdefault(sentence, []).append(check.id)
    if failed:
        count = sum(len(ids) for ids in failed.values())
        lines = [f"{ids[0]}{_others(ids)}: {sentence}" for sentence, ids in failed.items()]
        raise AssertionError("\n".join([f"{count} of {len(checks)} conformance checks failed:", *lines]))


def parametrize_with_checks(
    checks: Iterable[Check], expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Decorator of a test function with one argument `check`: one test for each check.

    Args:
        checks: from `model_checks`, `threat_checks`, or both.
        expected_failures: check name (or id) -> why it is known to fail. The test is then expected to fail, strictly:
            passing is an error too.

    Raises:
        ValueError: `expected_failures` names no check.
    """
    import pytest

    found = list(checks)
    expected = expected_failures or {}
    _refuse_unknown(found, expected)
    params: list[Any] = []
    for check in found:
        reason = _reason(check, expected)
        marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)]
        params.append(pytest.param(check, id=check.id, marks=marks))
    return pytest.mark.parametrize("check", params)


def _others(ids: Sequence[str]) -> str:
    return f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""


def _reason(check: Check, expected_failures: Mapping[str, str]) -> str | None:
    return expected_failures.get(check.id, expected_failures.get(check.name))


def _refuse_unknown(checks: Sequence[Check], expected_failures: Mapping[str, str]) -> None:
    known = {check.name for check in checks} | {check.id for check in checks}
    for name in expected_failures:
        if name not in known:
            raise ValueError(f"expected_failures: '{name}' is no check here{did_you_mean(name, known)}")
