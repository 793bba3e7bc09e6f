"""Robust accuracy against eps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from harness.report import svg
from harness.report.wording import split_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRIC = "robust_accuracy"
_CURVE = "robust_accuracy_at"  # one variant for each eps, all from one cell


@dataclass(frozen=True)
class Point:
    """Robust accuracy (of 1) at one eps, with its interval; at eps 0 it is the clean accuracy."""

    eps: float
    text: str
    value: float
    low: float
    high: float
    reliable: bool = True


@dataclass(frozen=True)
class Curve:
    model: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """The curves of one attack: cells that differ in model and eps alone."""

    plugin: str
    dataset: str
    params: Mapping[str, Any]  # what the cells have in common, without eps
    curves: tuple[Curve, ...]


def panels(cells: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Group attack cells into panels; one appears where robust accuracy of at least one model is known at two eps."""
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for cell in cells:
        if cell.get("status") == "ok" and _points_of(cell):
            rest = {name: value for name, value in cell["params"].items() if name != "eps"}
            key = json.dumps([cell["plugin"], cell["dataset"], rest], sort_keys=True, default=str)
            groups.setdefault(key, {}).setdefault(cell["model"], []).append(cell)
    out = []
    for models in groups.values():
        if max(sum(len(_points_of(cell)) for cell in members) for members in models.values()) >= 2:
            first = next(iter(models.values()))[0]
            rest = {name: value for name, value in first["params"].items() if name != "eps"}
            curves = tuple(Curve(model, _points(members)) for model, members in models.items())
            out.append(Panel(first["plugin"], first["dataset"], rest, curves))
    return out


def _points(members: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    points = [point for cell in members for point in _points_of(cell)]
    clean = _estimate(members[0], "clean_accuracy")
    if clean is not None and all(point.eps > 0 for point in points):
        points.append(Point(0.0, "0", *clean))
    return tuple(sorted(points, key=lambda point: point.eps))


def _points_of(cell: Mapping[str, Any]) -> list[Point]:
    """What a cell says: robust accuracy at its eps, or at each eps of its security curve."""
    texts = {str((cell.get("params") or {}).get("eps", "")): _METRIC}
    for name in cell.get("metrics") or {}:
        base, eps = split_metric(name)
        if base == _CURVE:
            texts[eps] = name
    reliable = cell.get("reliable") is not False
    points = []
    for text, metric in texts.items():
        estimate, number = _estimate(cell, metric), _number(text)
        if estimate is not None and number is not None:
            points.append(Point(number, text, *estimate, reliable=reliable))
    return points


def _number(text: str) -> float | None:
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _estimate(cell: Mapping[str, Any], metric: str) -> tuple[float, float, float] | None:
    estimate = (cell.get("metrics") or {}).get(metric) or {}
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    return None if value is None else (value, value if low is None else low, value if high is None else high)


def draw(panel: Panel, identity: str) -> tuple[str, str]:
    """The panel as an SVG element without style attributes, and the CSS its classes need: see `svg.draw`."""
    label = f"Robust accuracy against eps for {len(panel.curves)} models"
    return svg.draw(lambda axes: _plot(axes, panel), identity, label)


def _plot(axes: Axes, panel: Panel) -> None:
    for index, curve in enumerate(panel.curves):
        colour, marker = svg.style_of(index)
        line = "-" if index < svg.COLOURS else "--"
        eps = [point.eps for point in curve.points]
        values = [100 * point.value for point in curve.points]
        below = [100 * max(point.value - point.low, 0.0) for point in curve.points]
        above = [100 * max(point.high - point.value, 0.0) for point in curve.points]
        axes.errorbar(eps, values, yerr=[below, above], color=colour, linestyle=line, linewidth=1.4, capsize=2.5)
        for point in curve.points:
            face = colour if point.reliable else "none"
            axes.plot(point.eps, 100 * point.value, marker, color=colour, markerfacecolor=face, markersize=4.5)
    axes.set_ylim(-3, 103)
    norm = str(panel.params.get("norm", ""))
    _tick_at_eps(axes, {point.eps: point.text for curve in panel.curves for point in curve.points})
    svg.finish(axes, f"eps ({norm})" if norm.isalnum() else "eps", "robust accuracy, %")


def _tick_at_eps(axes: Axes, texts: Mapping[float, str]) -> None:
    """Name the eps as the suite wrote them (8/255), where they don't crowd each other."""
    places = sorted(texts)
    room = (places[-1] - places[0]) / 9
    if all(b - a > room for a, b in itertools.pairwise(places)) and max(map(len, texts.values())) < 8:
        axes.set_xticks(places)
        axes.set_xticklabels([texts[place] for place in places], parse_math=False)
