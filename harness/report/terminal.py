"""What a run says in the terminal: the plan, progress, and the results at the end."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.text import Text

from harness.hookspecs import hookimpl
from harness.report import REPORT_FILE
from harness.report.tables import print_results
from harness.report.wording import audit_state, heading, headline_metrics, interval, visible

if TYPE_CHECKING:
    from rich.console import Console

    from harness.events import CellFinished, RunFinished, RunStarted, ShardFinished
    from harness.report.bars import Bars

_NAME_LIMIT = 120
_PLAIN_PERIOD = 10.0


@dataclass
class CellProgress:
    """How far a cell is. Shards reused from an earlier run count as done, not into the rate."""

    id: str
    total: int
    clock: Callable[[], float]
    done: int = 0
    fresh: int = 0
    started: float | None = None
    ended: float | None = None
    status: str = ""

    def advance(self, samples: int, seconds: float, *, reused: bool) -> None:
        self.done += samples
        if reused:
            return
        now = self.clock()
        self.started = now - seconds if self.started is None else min(self.started, now - seconds)
        self.fresh += samples

    @property
    def rate(self) -> float | None:
        """Images a second since the first shard of this run began, workers together; None before one is finished."""
        if self.started is None:
            return None
        return self.fresh / max((self.ended or self.clock()) - self.started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end; None when nothing is known."""
        rate = self.rate
        return (self.total - self.done) / rate if rate else None

    @property
    def pace(self) -> str:
        """ "123 images/s, 0:42 left", the second part while the cell is unfinished."""
        if self.rate is None:
            return "reused" if self.done and self.done >= self.total else ""
        left = self.seconds_left
        speed = f"{self.rate:.3g}" if self.rate < 100 else f"{self.rate:.0f}"
        return f"{speed} images/s" + (f", {clock_time(left)} left" if left and not self.status else "")


def shorter(path: Path) -> Path:
    """`path` from the current folder, where that is above it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def clock_time(seconds: float) -> str:
    """3661 as ``1:01:01``, 42 as ``0:42``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


@dataclass
class TerminalReporter:
    """Prints the plan, a progress bar for each cell, and the results; an observer for `Host.observe`.

    Where the console is no terminal, or the environment sets CI or NO_COLOR, it prints lines: one for each finished
    cell, and at most one every ten seconds in between. Use it as a context manager, so that an interrupted run
    leaves the terminal as it was.
    """

    console: Console
    clock: Callable[[], float] = time.monotonic
    _cells: dict[str, CellProgress] = field(default_factory=dict)
    _bars: Bars | None = None
    _last_line: float = 0.0

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the bars; called by `run_finished` too."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        self._cells = {c.id: CellProgress(c.id, c.samples, self.clock) for c in event.cells}
        self._last_line = self.clock()
        for line in plan_lines(event):
            self._print(line)
        if self.uses_bars:
            from harness.report.bars import Bars

            self._bars = Bars(self.console, list(self._cells.values()))

    @hookimpl
    def shard_finished(self, event: ShardFinished) -> None:
        cell = self._cells.get(event.cell)
        if cell is None:
            return
        cell.advance(event.samples, event.seconds, reused=event.reused)
        if self._bars is not None:
            self._bars.update(cell)
        elif self.clock() - self._last_line >= _PLAIN_PERIOD:
            self._last_line = self.clock()
            pace = f", {cell.pace}" if cell.pace else ""
            self._print(f"{visible(cell.id, _NAME_LIMIT)}: {cell.done} of {cell.total} images{pace}")

    @hookimpl
    def cell_finished(self, event: CellFinished) -> None:
        cell = self._cells.get(event.cell)
        if cell is not None:
            cell.status, cell.ended = event.status, self.clock()
        if self._bars is not None and cell is not None:
            self._bars.update(cell)
        elif self._bars is None and event.status != "skipped":  # those stand in the plan
            self._last_line = self.clock()
            self._print(f"{visible(event.cell, _NAME_LIMIT)}: {_outcome(event)}")

    @hookimpl
    def run_finished(self, event: RunFinished) -> None:
        self.close()
        self.console.print()
        print_results(self.console, event.results)
        report = event.folder / REPORT_FILE
        paths = [*event.paths, *([report] if report.is_file() and report not in event.paths else [])]
        if paths:
            self.console.print()
        for path in paths:
            self._print(f"wrote {visible(shorter(path))}")

    @property
    def uses_bars(self) -> bool:
        """Whether the console is a terminal and nothing in the environment asks for plain lines."""
        asked_plain = any(os.environ.get(name) for name in ("CI", "NO_COLOR"))
        return self.console.is_terminal and not self.console.is_dumb_terminal and not asked_plain

    def _print(self, line: str) -> None:
        """Print `line` as it is: names may hold what rich would take for markup, an emoji or something to colour."""
        self.console.print(Text(line), soft_wrap=True)


def plan_lines(event: RunStarted) -> list[str]:
    """The plan in words: how many cells and samples, what is reused, what is skipped and why, where it runs."""
    samples = sum(cell.samples for cell in event.cells)
    shards, done = sum(c.shards for c in event.cells), sum(c.shards_done for c in event.cells)
    workers = _count(event.workers, "worker")
    lines = [
        f"{visible(event.suite, _NAME_LIMIT)}: {_count(len(event.cells), 'cell')}, {_count(samples, 'sample')}"
        f" in {_count(shards, 'shard')}, on {visible(event.device)} with {workers}"
    ]
    if done:
        lines.append(f"{done} of {_count(shards, 'shard')} reused from an earlier run")
    reasons: Counter[str] = Counter(event.skipped.values())
    for reason, count in reasons.items():
        ids = [visible(cell, _NAME_LIMIT) for cell, why in event.skipped.items() if why == reason]
        names = ids[0] if count == 1 else f"{count} cells ({', '.join(ids[:3])}{', ...' if count > 3 else ''})"
        lines.append(f"skipped {names}: {visible(reason)}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _outcome(event: CellFinished) -> str:
    if event.status != "ok":
        return f"{event.status}: {visible(event.error)}" if event.error else event.status
    metrics = event.result.get("metrics") or {}
    numbers = [f"{heading(name)} {interval(name, metrics[name])}" for name in headline_metrics(metrics)[:3]]
    if audit_state(event.result) == "UNRELIABLE":
        numbers.append("UNRELIABLE")
    return ", ".join(numbers) or "ok"
