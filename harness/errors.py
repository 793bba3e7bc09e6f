"""Errors that a user can mend, and the exit codes of the program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """What the program's exit status means; the first six as in pytest."""

    OK = 0
    REGRESSED = 1
    INTERRUPTED = 2
    FAILED = 3
    USAGE = 4
    NOTHING_TO_RUN = 5
    INCONCLUSIVE = 6


class HarnessError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, what to do."""

    exit_code = ExitCode.USAGE


class PluginError(HarnessError):
    """A plugin that cannot be loaded or used; the text names the plugin and its origin."""


class SuiteError(HarnessError):
    """One or more problems in a suite file, all found at once, one line each."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = f"{len(problems)} problem" + ("" if len(problems) == 1 else "s")
        super().__init__("\n".join([f"{source}: {count}", *(f"  {p}" for p in problems)]))


class MissingDataError(HarnessError):
    """A data set, checkpoint or other file that is not where it was looked for."""


class NothingToRunError(HarnessError):
    """A choice of cells that leaves none."""

    exit_code = ExitCode.NOTHING_TO_RUN


class ModelError(HarnessError):
    """A model that broke its contract: wrong shape, NaN, a factory that raised."""

    exit_code = ExitCode.FAILED


class ThreatError(HarnessError):
    """A threat that broke its contract: an image outside the budget, a missing column."""

    exit_code = ExitCode.FAILED


class StoreError(HarnessError):
    """A run folder that cannot be read or written."""

    exit_code = ExitCode.FAILED


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The phrase "; did you mean 'x'?" for the nearest known name, or an empty string."""
    near = get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def needs_trace(error: BaseException) -> bool:
    """Whether the cause is a fault of someone's code, whose traceback is worth keeping."""
    cause = error.__cause__
    while isinstance(cause, HarnessError):
        cause = cause.__cause__
    return cause is not None and not isinstance(cause, OSError)


def one_line(error: BaseException) -> str:
    """An exception as type and text, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
