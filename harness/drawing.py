"""Pictures of explanations: one look, colours that colour-blind readers tell apart, PNG without a display.

matplotlib is imported by the functions, so that importing this costs nothing.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
"""The colours of Okabe and Ito (2008), yellow replaced by grey: yellow cannot be read on white."""
SEQUENTIAL = "cividis"
DIVERGING = "PuOr_r"
INK, FAINT = "#1b1f24", "#8a939d"
_DPI = 144
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, laid out when it is drawn. It belongs to no window and no global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def new_axes(figure: Figure, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """A grid of axes (rows, columns) in the style of these pictures, as an array; options as of `Figure.subplots`."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        return figure.subplots(rows, columns, squeeze=False, **options)


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    with mpl.rc_context(_STYLE):
        canvas: Any = FigureCanvasAgg(figure)
        canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def draw_image(axes: Axes, image: Tensor) -> None:
    """An image (C, H, W) in [0, 1], in colour or in grey, without interpolation; its pixels are the axes' units."""
    shown = image.detach().float().cpu().clamp(0, 1)
    if shown.shape[0] == 3:
        axes.imshow(shown.permute(1, 2, 0).numpy(), interpolation="nearest")
    else:
        axes.imshow(shown.mean(dim=0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    bare(axes)


def draw_map(axes: Axes, values: Tensor, image: Tensor, low: float, high: float, cmap: str = SEQUENTIAL) -> Any:
    """A map (H', W') over the image (C, H, W) that it belongs to; returns what a colour bar is made of."""
    height, width = image.shape[1:]
    draw_image(axes, image)
    return axes.imshow(
        values.detach().double().cpu().numpy(),
        cmap=cmap, vmin=low, vmax=high, alpha=0.7, interpolation="nearest",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )  # fmt: skip


def bare(axes: Axes) -> None:
    """Take ticks and frame away."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
