"""What every executor offers, and is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from harness.evaluate import Setting, ShardOutcome, ShardTask
    from harness.host import Host


@dataclass(frozen=True)
class ExecutorContext:
    """What the host gives an executor's factory."""

    setting: Setting
    workers: int
    host: Host  # of this process; a worker elsewhere loads its own from `setting.plugins`


class Executor(Protocol):
    """Runs shards in any order and place.

    Tasks come ordered by model. Each is JSON-able apart from an array of sample ids, so it can be sent anywhere;
    whoever gets it calls ``run_shard(task, workbench(task.setting))`` (`harness.evaluate`) under `fixed_arithmetic`,
    keeping the bench for the next task.
    """

    def run(self, tasks: Sequence[ShardTask], wanted: Callable[[ShardTask], bool]) -> Iterator[ShardOutcome]:
        """Yield one outcome for each task as it is done.

        A task for which ``wanted(task)`` is false when its turn comes is dropped without an outcome (its cell has
        failed). Closing the iterator (as an interrupt does) stops the workers.
        """
        ...
