"""Every hook of the harness, on one page.

Registering hooks are called once, when the host starts, with a callback: the host knows who called, and two plugins
claiming one name is an error naming both. Observing hooks are called while a suite runs, with one frozen event object;
what they raise is logged and never fatal, and they cannot change a result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from harness.events import CellFinished, RunFinished, RunStarted, ShardFinished
    from harness.info import DatasetInfo, ExecutorInfo, MetricInfo, ModelInfo, ThreatInfo

API_VERSION = 1
"""Raised when a hook changes. A plugin that needs a certain version says so: `HARNESS_API = 1` in its module."""

hookspec = pluggy.HookspecMarker("harness")
hookimpl = pluggy.HookimplMarker("harness")


@hookspec
def register_models(register: Callable[[ModelInfo], None]) -> None:
    """Called when the host starts: register model plugins by calling `register` once for each."""


@hookspec
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    """Called when the host starts: register threats (attacks, shifts, sanity tests)."""


@hookspec
def register_datasets(register: Callable[[DatasetInfo], None]) -> None:
    """Called when the host starts: register data sets."""


@hookspec
def register_metrics(register: Callable[[MetricInfo], None]) -> None:
    """Called when the host starts: register metrics, which turn rows into estimates."""


@hookspec
def register_executors(register: Callable[[ExecutorInfo], None]) -> None:
    """Called when the host starts: register ways of running shards (`--executor NAME`)."""


@hookspec
def run_started(event: RunStarted) -> None:
    """Called once the plan stands and before the first shard runs."""


@hookspec
def shard_finished(event: ShardFinished) -> None:
    """Called after each shard, also one that was reused from an earlier run."""


@hookspec
def cell_finished(event: CellFinished) -> None:
    """Called once for each cell, when its estimates and audit are known, or when it failed or was skipped."""


@hookspec
def run_finished(event: RunFinished) -> None:
    """Called when the results are written, also after a run in which cells failed."""
