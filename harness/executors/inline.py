"""Shards one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from harness.arithmetic import fixed_arithmetic
from harness.evaluate import ShardOutcome, ShardTask, run_shard, workbench
from harness.executors.base import ExecutorContext


class InlineExecutor:
    """Runs every shard in the calling process, with the plugins it has."""

    def __init__(self, context: ExecutorContext) -> None:
        self._context = context

    def run(self, tasks: Sequence[ShardTask], wanted: Callable[[ShardTask], bool]) -> Iterator[ShardOutcome]:
        bench = workbench(self._context.setting, self._context.host)
        for task in tasks:
            if wanted(task):
                with fixed_arithmetic():
                    outcome = run_shard(task, bench)
                yield outcome
