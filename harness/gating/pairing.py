"""Rows of two runs brought into one order, sample by sample, and compared by a metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.info import MetricInfo, resolve
from harness.metrics.base import Metric, PairedDifference

if TYPE_CHECKING:
    from harness.store import Run

Columns = Mapping[str, NDArray[Any]]


class Paired(NamedTuple):
    """Rows that both runs have, in one order, and how many rows only one of them has."""

    baseline: dict[str, NDArray[Any]]
    candidate: dict[str, NDArray[Any]]
    unmatched: int


def pair_rows(baseline: Columns, candidate: Columns, keys: Iterable[str]) -> Paired:
    """Bring the rows of one cell in two runs into one order.

    Args:
        baseline, candidate: columns of one length each, `keys` among them.
        keys: the columns that tell rows apart: sample_id and the variants.

    Raises:
        HarnessError: the keys do not tell the rows apart, so that they cannot be paired.
    """
    keys = tuple(keys)
    if all(np.array_equal(baseline[key], candidate[key]) for key in keys):
        return Paired(dict(baseline), dict(candidate), 0)
    places = {row: i for i, row in enumerate(_key_rows(candidate, keys))}
    rows = _key_rows(baseline, keys)
    if len(places) < candidate[keys[0]].size or len(set(rows)) < len(rows):
        raise HarnessError(f"rows cannot be paired: {', '.join(keys)} do not tell them apart")
    both = [(i, places[row]) for i, row in enumerate(rows) if row in places]
    first = np.array([i for i, _ in both], dtype=np.int64)
    second = np.array([j for _, j in both], dtype=np.int64)
    return Paired(
        {name: values[first] for name, values in baseline.items()},
        {name: values[second] for name, values in candidate.items()},
        len(rows) + len(places) - 2 * len(both),
    )


def _key_rows(columns: Columns, keys: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return list(zip(*(columns[key].tolist() for key in keys), strict=True))


class Comparison(NamedTuple):
    """A metric's paired differences by variant, and the baseline's with itself (empty unless asked for).

    `unmatched` counts the rows that one run alone has, which no difference speaks of; `unlike` says so in words.
    """

    differences: Mapping[str, PairedDifference]
    unchanged: Mapping[str, PairedDifference]
    unmatched: int
    unlike: str = ""


@dataclass
class RunPair:
    """Two runs whose cells are compared; each comparison is made once."""

    baseline: Run
    candidate: Run
    alpha: float
    _known: dict[tuple[str, str], Comparison] = field(default_factory=dict)

    def compare(self, cell: str, info: MetricInfo, *, with_unchanged: bool = True) -> Comparison:
        """Compare one metric of a cell that both runs have.

        Raises:
            HarnessError: the rows cannot be read or paired; names the cell.
        """
        key = (cell, info.name)
        if key not in self._known:
            self._known[key] = self._compare(cell, info, with_unchanged)
        return self._known[key]

    def _compare(self, cell: str, info: MetricInfo, with_unchanged: bool) -> Comparison:
        metric: Metric = resolve(info.metric, f"metric '{info.name}'")
        keys = ("sample_id", *self.baseline.variants(cell))
        there = self.baseline.columns(cell) & self.candidate.columns(cell)
        given = (*info.columns, *(name for name in info.optional if name in there))
        wanted = dict.fromkeys((*keys, *given))
        try:
            ours, theirs = (run.rows(cell, wanted) for run in (self.baseline, self.candidate))
            pair = pair_rows(ours, theirs, keys)
        except HarnessError as error:
            raise type(error)(f"cell {cell}: {error}") from error
        before, after = _only(pair.baseline, given), _only(pair.candidate, given)
        still = metric.difference(before, before, self.alpha) if with_unchanged else {}
        unlike = _unlike(ours, theirs, keys[1:], pair.unmatched) if pair.unmatched else ""
        return Comparison(metric.difference(before, after, self.alpha), still, pair.unmatched, unlike)


def _unlike(ours: Columns, theirs: Columns, variants: Iterable[str], unmatched: int) -> str:
    """``1,795 rows are in one run only (corruption frost)``."""
    told = []
    for name in variants:
        own, others = (set(rows[name].tolist()) for rows in (ours, theirs))
        only = sorted(map(str, own ^ others))
        if only:
            told.append(f"{name} {', '.join(only[:4])}" + (f" and {len(only) - 4} more" if len(only) > 4 else ""))
    return f"{unmatched:,} rows are in one run only" + (f" ({'; '.join(told)})" if told else "")


def _only(rows: Columns, columns: Iterable[str]) -> dict[str, NDArray[Any]]:
    return {name: rows[name] for name in columns}
