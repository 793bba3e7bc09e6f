"""Accuracy against bits/dim, a point a model: what a generative classifier pays for being one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRICS = ("bits_per_dim", "clean_accuracy")


@dataclass(frozen=True)
class Measured:
    """A value with its interval."""

    value: float
    low: float
    high: float

    @property
    def bars(self) -> list[list[float]]:
        """Lengths of the error bars below and above, as matplotlib takes them."""
        return [[max(self.value - self.low, 0.0)], [max(self.high - self.value, 0.0)]]


@dataclass(frozen=True)
class Scatter:
    """One data set's models, each with bits/dim and accuracy (of 1). Figure 2 of Mackowiak et al. 2021."""

    dataset: str
    points: Mapping[str, tuple[Measured, Measured]]


def scatters(cells: Sequence[Mapping[str, Any]]) -> list[Scatter]:
    """One for each data set on which both numbers are known of at least two models."""
    by_dataset: dict[str, dict[str, tuple[Measured, Measured]]] = {}
    for cell in cells:
        found = [_measured(cell, metric) for metric in _METRICS] if cell.get("status") == "ok" else [None, None]
        if found[0] is not None and found[1] is not None:
            by_dataset.setdefault(cell["dataset"], {}).setdefault(cell["model"], (found[0], found[1]))
    return [Scatter(dataset, points) for dataset, points in by_dataset.items() if len(points) > 1]


def _measured(cell: Mapping[str, Any], metric: str) -> Measured | None:
    estimate = (cell.get("metrics") or {}).get(metric) or {}
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    return None if value is None or low is None or high is None else Measured(value, low, high)


def draw(scatter: Scatter, identity: str) -> tuple[str, str]:
    """The scatter as an SVG element without style attributes, and the CSS its classes need: see `svg.draw`."""
    label = f"Accuracy against bits per dimension for {len(scatter.points)} models"
    return svg.draw(lambda axes: _plot(axes, scatter), identity, label)


def _plot(axes: Axes, scatter: Scatter) -> None:
    for index, (bits, accuracy) in enumerate(scatter.points.values()):
        colour, marker = svg.style_of(index)
        below, above = accuracy.bars
        axes.errorbar(
            [bits.value],
            [100 * accuracy.value],
            xerr=bits.bars,
            yerr=[[100 * below[0]], [100 * above[0]]],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2.5,
            linewidth=1.4,
        )
    svg.finish(axes, "bits/dim (lower is the better density)", "clean accuracy, %")
