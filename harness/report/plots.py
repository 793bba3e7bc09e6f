"""Robust accuracy against eps, drawn as inline SVG that takes its colours and fonts from the page."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from harness.report.wording import split_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 8
MARKERS = "●■◆▲▼✚✖★"
_MARKERS = "osD^vPX*"
# Stand-ins that matplotlib can draw with and that no figure uses otherwise; the page's variables replace them.
_INK, _FAINT = "#010101", "#020202"
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
    """The panel as an SVG element without style attributes, and the CSS its classes need.

    Args:
        identity: prefix of the element ids, unlike those of the page's other drawings.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "harness", "font.size": 10, "font.family": "sans-serif"}
    out = io.StringIO()
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.3, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        _plot(figure.add_subplot(), panel)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _embed(out.getvalue(), identity, _label(panel))


def _plot(axes: Axes, panel: Panel) -> None:
    for index, curve in enumerate(panel.curves):
        colour = _series(index % COLOURS)
        marker = _MARKERS[index % len(_MARKERS)]
        line = "-" if index < COLOURS else "--"
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
    axes.set_xlabel(f"eps ({norm})" if norm.isalnum() else "eps", color=_INK)
    axes.set_ylabel("robust accuracy, %", color=_INK)
    _tick_at_eps(axes, {point.eps: point.text for curve in panel.curves for point in curve.points})
    axes.grid(color=_FAINT, linewidth=0.5)
    axes.tick_params(colors=_FAINT, labelcolor=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)


def _tick_at_eps(axes: Axes, texts: Mapping[float, str]) -> None:
    """Name the eps as the suite wrote them (8/255), where they don't crowd each other."""
    places = sorted(texts)
    room = (places[-1] - places[0]) / 9
    if all(b - a > room for a, b in itertools.pairwise(places)) and max(map(len, texts.values())) < 8:
        axes.set_xticks(places)
        axes.set_xticklabels([texts[place] for place in places], parse_math=False)


def _label(panel: Panel) -> str:
    return f"Robust accuracy against eps for {len(panel.curves)} models"


def _series(index: int) -> str:
    return f"#0303{index + 16:02x}"


def _embed(svg: str, identity: str, label: str) -> tuple[str, str]:
    """Make matplotlib's file a part of the page: styles become classes, colours variables, ids its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    rules: dict[str, str] = {}

    def to_class(match: re.Match[str]) -> str:
        rule = match[1]
        name = rules.setdefault(rule, f"{identity}-{len(rules)}")
        return f'class="{name}"'

    svg = re.sub(r'style="([^"]*)"', to_class, svg)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{identity}-\1"', svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{identity}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{identity}-\1)", svg)
    svg = re.sub(r'<svg\b[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 class="plot" role="img" aria-label="{label}">', svg)
    svg = svg.replace("xlink:href", "href")
    css = "\n".join(f".{name}{{{rule}}}" for rule, name in rules.items())
    return svg, _colours(css)


def _colours(css: str) -> str:
    css = css.replace(_INK, "var(--ink)").replace(_FAINT, "var(--faint)")
    for index in range(COLOURS):
        css = css.replace(_series(index), f"var(--series-{index})")
    css = re.sub(r"font: ([\d.]+px)[^;}]*", r"font-size: \1; font-family: x", css)
    return re.sub(r"font-family: [^;}]*", "font-family: system-ui, sans-serif", css)
