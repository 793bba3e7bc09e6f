"""Pictures of explanations: one look, colours that colour-blind readers tell apart, PNG without a display.

A function that draws is decorated with ``@style()``. matplotlib is imported when it is called, so that importing this
costs nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#7F7F7F", "#000000", "#882255", "#6B4C1E"),
)
"""The colours of Okabe and Ito (2008), yellow replaced by grey (yellow cannot be read on white), and two more."""
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


@contextmanager
def style() -> Iterator[None]:
    """The look of these pictures, for what is drawn meanwhile; settings of the process stay as they are."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, laid out when it is drawn. It belongs to no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
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
    """A map (H', W') over the image (C, H, W) that it belongs to; returns what a colour bar is made of.

    The image is paled, so that its dark parts do not change the colours of the map much.
    """
    height, width = image.shape[1:]
    draw_image(axes, 0.55 + 0.45 * image)
    return axes.imshow(
        values.detach().double().cpu().numpy(),
        cmap=cmap, vmin=low, vmax=high, alpha=0.65, interpolation="nearest",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )  # fmt: skip


def bare(axes: Axes) -> None:
    """Take ticks and frame away."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
