"""What observers of a run are told. Frozen; fields may be added, never removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CellStatus = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class CellPlanned:
    """A cell as announced: its id, the number of its samples and shards, how many of the shards are there already."""

    id: str
    samples: int
    shards: int
    shards_done: int


@dataclass(frozen=True)
class RunStarted:
    suite: str
    folder: Path
    cells: Sequence[CellPlanned]
    skipped: Mapping[str, str]  # cell id -> reason
    workers: int
    device: str


@dataclass(frozen=True)
class ShardFinished:
    cell: str
    samples: int
    seconds: float
    reused: bool


@dataclass(frozen=True)
class CellFinished:
    """`result` is the cell's entry in results.json."""

    cell: str
    status: CellStatus
    result: Mapping[str, Any]
    error: str = ""


@dataclass(frozen=True)
class RunFinished:
    """`results` is the whole of results.json."""

    folder: Path
    results: Mapping[str, Any]
    paths: Sequence[Path] = field(default_factory=tuple)
