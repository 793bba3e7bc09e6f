"""Drawings as inline SVG that takes its colours and fonts from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 8
MARKERS = "●■◆▲▼✚✖★"
_MARKERS = "osD^vPX*"
# Stand-ins that matplotlib can draw with and that no figure uses otherwise; the page's variables replace them.
_INK, _FAINT = "#010101", "#020202"


def draw(plot: Callable[[Axes], None], identity: str, label: str) -> tuple[str, str]:
    """What `plot` draws as an SVG element without style attributes, and the CSS its classes need.

    Args:
        identity: prefix of the element ids, unlike those of the page's other drawings.
        label: what the drawing shows, for those who cannot see it.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "harness", "font.size": 10, "font.family": "sans-serif"}
    out = io.StringIO()
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.3, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure.add_subplot())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _embed(out.getvalue(), identity, label)


def marker_of(index: int) -> int:
    """Which of `MARKERS` model number `index` has: another one when the colours begin again."""
    return (index + index // COLOURS) % len(MARKERS)


def style_of(index: int) -> tuple[str, str]:
    """Colour and marker, as matplotlib takes them, of the curve or point of one model."""
    return f"#0303{index % COLOURS + 16:02x}", _MARKERS[marker_of(index)]


def finish(axes: Axes, x: str, y: str) -> None:
    """Labels, grid and spines, in the page's ink."""
    axes.set_xlabel(x, color=_INK, parse_math=False)
    axes.set_ylabel(y, color=_INK, parse_math=False)
    axes.grid(color=_FAINT, linewidth=0.5)
    axes.tick_params(colors=_FAINT, labelcolor=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)


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
        css = css.replace(style_of(index)[0], f"var(--series-{index})")
    css = re.sub(r"font: ([\d.]+px)[^;}]*", r"font-size: \1; font-family: x", css)
    return re.sub(r"font-family: [^;}]*", "font-family: system-ui, sans-serif", css)
