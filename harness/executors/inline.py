"""Shards one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from harness.evaluate import ShardOutcome, ShardTask, run_shard, workbench
from harness.executors.base import THREADS, ExecutorContext


class InlineExecutor:
    """Runs every shard in the calling process; torch's thread count is as before afterwards."""

    def __init__(self, context: ExecutorContext) -> None:
        self._setting = context.setting

    def run(self, tasks: Sequence[ShardTask], wanted: Callable[[ShardTask], bool]) -> Iterator[ShardOutcome]:
        import torch

        bench = workbench(self._setting)
        before = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        try:
            for task in tasks:
                if wanted(task):
                    yield run_shard(task, bench)
        finally:
            torch.set_num_threads(before)
