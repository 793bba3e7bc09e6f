"""Worker processes on one machine. A worker that dies takes nothing down but the shard it was working on."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for

from harness.arithmetic import fixed_arithmetic
from harness.errors import HarnessError, one_line
from harness.evaluate import ShardOutcome, ShardTask, Workbench, run_shard, workbench
from harness.executors.base import ExecutorContext

RESTARTS = 2
"""How often a shard is tried again after the pool broke with it in flight."""

_bench: Workbench | None = None  # of a worker; made with its first shard, so that what goes wrong is told


class ProcessesExecutor:
    """Runs shards in a pool of spawned processes, one torch thread each."""

    def __init__(self, context: ExecutorContext) -> None:
        self._setting = context.setting
        self._workers = max(1, context.workers)

    def run(self, tasks: Sequence[ShardTask], wanted: Callable[[ShardTask], bool]) -> Iterator[ShardOutcome]:
        queue = deque(tasks)
        suspects: deque[ShardTask] = deque()  # in flight when the pool broke: run alone, so that the culprit shows
        tries: dict[tuple[str, int], int] = {}
        while queue or suspects:
            pool = self._pool()
            running: dict[Future[ShardOutcome], ShardTask] = {}
            try:
                while queue or suspects or running:
                    self._fill(pool, running, queue, suspects, wanted)
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        outcome = future.result()
                        del running[future]
                        yield outcome
            except BrokenProcessPool:
                for future, task in running.items():
                    if future.done() and not future.cancelled() and future.exception() is None:
                        yield future.result()
                        continue
                    key = (task.cell, int(task.ids[0]))
                    tries[key] = tries.get(key, 0) + 1
                    if tries[key] <= RESTARTS:
                        suspects.append(task)
                    else:
                        yield _died(task)
            finally:
                _stop(pool)

    def _fill(
        self,
        pool: ProcessPoolExecutor,
        running: dict[Future[ShardOutcome], ShardTask],
        queue: deque[ShardTask],
        suspects: deque[ShardTask],
        wanted: Callable[[ShardTask], bool],
    ) -> None:
        """Hand out work, keeping one shard a worker in waiting; a suspect runs with nothing beside it."""
        room = 1 if suspects else 2 * self._workers
        source = suspects or queue
        while source and len(running) < room:
            if wanted(source[0]):
                with _interrupts_held():  # the first submission starts the workers, which inherit the mask
                    running[pool.submit(_work, source[0])] = source[0]
            source.popleft()

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"), initializer=_start)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back for a moment. A process started meanwhile never sees one: ending it is the parent's to do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    """First thing in a worker: see to it that it ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for work for ever, also when its parent was killed; this ends it then."""
    parent = parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _work(task: ShardTask) -> ShardOutcome:
    global _bench
    try:
        _bench = _bench or workbench(task.setting)
    except Exception as error:
        text = str(error) if isinstance(error, HarnessError) else f"a worker cannot start: {one_line(error)}"
        return ShardOutcome(task.cell, int(task.ids[0]), len(task.ids), 0.0, error=text, trace=traceback.format_exc())
    with fixed_arithmetic():
        return run_shard(task, _bench)


def _died(task: ShardTask) -> ShardOutcome:
    text = (
        f"the worker process died {RESTARTS + 1} times on samples {task.ids[0]} to {task.ids[-1]}"
        " (killed, or out of memory: try a smaller microbatch)"
    )
    return ShardOutcome(task.cell, int(task.ids[0]), len(task.ids), 0.0, error=text)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers now: what they were doing is written whole or not at all."""
    workers = list((getattr(pool, "_processes", None) or {}).values())
    manager = getattr(pool, "_executor_manager_thread", None)
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        if worker.is_alive():
            worker.terminate()
    for worker in workers:
        worker.join()
    if manager is not None:
        manager.join(timeout=10)  # it closes what Python would still write to at exit
