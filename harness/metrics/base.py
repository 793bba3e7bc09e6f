"""The values that metrics take and give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = Mapping[str, NDArray[Any]]
"""Columns of a cell's rows as NumPy arrays of one length, only those that the metric declared."""


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its interval; all three are None, with a reason, where it is undefined or infinite.

    Beside a value, `reason` says what the number leaves out.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        return {**out, "reason": self.reason} if self.reason else out


def undefined(n: int, reason: str) -> Estimate:
    """An estimate that has no finite value, and why."""
    return Estimate(None, None, None, n, reason)


@dataclass(frozen=True)
class PairedDifference:
    """Candidate minus baseline on the same samples.

    Attributes:
        value: the difference of the two estimates.
        low, high: one-sided confidence bounds, each at level 1 - alpha.
        p_decrease, p_increase: one-sided p-values against no change, for a true decrease and a true increase.
        n: samples that both runs share.
        spread: standard deviation of one sample's contribution, so that value has standard error spread / sqrt(n):
            what sample-size and detectable-effect statements are made from.
        baseline, candidate: the two estimates.
        reason: why there is no difference to report, where value is None.
    """

    value: float | None
    low: float | None
    high: float | None
    p_decrease: float | None
    p_increase: float | None
    n: int
    spread: float | None
    baseline: Estimate
    candidate: Estimate
    reason: str = ""


class Metric(Protocol):
    """A metric of one cell. The mapping's key is a variant ("uniform", "gaussian_noise,3") or "" for the whole."""

    def estimate(self, rows: Rows, level: float) -> Mapping[str, Estimate]:
        """Estimates with two-sided intervals of confidence `level`."""
        ...

    def difference(self, baseline: Rows, candidate: Rows, alpha: float) -> Mapping[str, PairedDifference]:
        """Paired comparison; row i of both is the same sample (and the same variant)."""
        ...


@dataclass(frozen=True)
class CellRows:
    """One cell as a group metric sees it."""

    id: str
    model: str
    threat: str  # the threat's label with its parameters
    plugin: str  # the threat plugin's name
    dataset: str
    rows: Rows
    budget: float | None = None  # value of the option that sets the attack's strength
    norm: str = ""  # of an attack's budget
    classes: int = 0  # of the data; 0: not known


@dataclass(frozen=True)
class Summary:
    """A number over several cells; `cells` are the ids of those it comes from."""

    subject: str  # what it is a number of, usually a model's name
    cells: tuple[str, ...]
    estimate: Estimate


class GroupMetric(Protocol):
    """A metric over several cells: given all finished cells whose rows have its columns."""

    def summarise(self, cells: Sequence[CellRows], level: float) -> Sequence[Summary]: ...


def finite_or_undefined(value: float, low: float, high: float, n: int, reason: str) -> Estimate:
    """An estimate, or an undefined one with `reason` where the value or a bound is not finite."""
    if all(math.isfinite(v) for v in (value, low, high)):
        return Estimate(float(np.float64(value)), float(low), float(high), n)
    return undefined(n, reason)


def part_of(rows: Rows, which: NDArray[Any]) -> Rows:
    """Some of the rows: their numbers, or a mask."""
    return {name: np.asarray(values)[which] for name, values in rows.items()}
