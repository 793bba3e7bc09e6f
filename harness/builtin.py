"""What the harness itself registers, as any plugin would: executors, metrics and one threat."""

from __future__ import annotations

from collections.abc import Callable

from harness.hookspecs import hookimpl
from harness.info import ExecutorInfo, MetricInfo, ThreatInfo


@hookimpl
def register_executors(register: Callable[[ExecutorInfo], None]) -> None:
    register(
        ExecutorInfo(
            name="inline",
            summary="one shard after the other in this process",
            factory="harness.executors.inline:InlineExecutor",
        )
    )
    register(
        ExecutorInfo(
            name="processes",
            summary="worker processes on this machine, one torch thread each",
            factory="harness.executors.processes:ProcessesExecutor",
        )
    )


@hookimpl
def register_threats(register: Callable[[ThreatInfo], None]) -> None:
    register(
        ThreatInfo(
            name="held-out-scores",
            summary="a model's scores of clean images, for thresholds; planned by the harness itself",
            factory="harness.auxiliary:build_held_out_scores",
            requires=frozenset({"Detector"}),
            internal=True,
        )
    )


@hookimpl
def register_metrics(register: Callable[[MetricInfo], None]) -> None:
    from harness.metrics.registered import METRICS

    for info in METRICS:
        register(info)
