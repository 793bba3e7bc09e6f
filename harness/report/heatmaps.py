"""Heat maps of any model with the capability `Explainer`, over the image that they belong to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.drawing import as_png, bare, draw_image, draw_map, new_figure, style
from harness.explanations import ExplainedSample, Picture, class_name

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelView

_SIDE = 1.9  # inches of one panel
_MOST_CLASSES = 3


@dataclass(frozen=True, eq=False)
class Shown:
    """An image with its heat maps.

    Attributes:
        title: what it is: "as it is", or the attack's name.
        x: (1, C, H, W).
        prediction: the class that the model names, None where it is no classifier.
        maps: (n, H', W'), one for each of the classes shown.
    """

    title: str
    x: Tensor
    prediction: int | None
    maps: Tensor


def heatmap_pictures(view: ModelView, sample: ExplainedSample, unit: str = "") -> list[Picture]:
    """One picture of the image as it is, and one for each attack of the image beside what the attack made of it.

    Shown are the maps of the label, of what the model predicts and, where those are one class, of the runner-up; on
    one scale, so that they can be compared.

    Args:
        view: of a model with the capability `Explainer`, for a batch of one.
        unit: what the maps hold.
    """
    logits = _logits(view, sample.x)
    ranking = [] if logits is None else logits[0].argsort(descending=True).tolist()
    clean_classes = _classes([sample.label, *ranking[:1]], ranking)
    clean = _shown(view, "as it is", sample.x, clean_classes)
    pictures = [_picture("heatmap", "Heat map", [clean], clean_classes, sample, unit)]
    for attacked in sample.attacked:
        after = _logits(view, attacked.x)
        named = [] if after is None else [int(after[0].argmax())]
        classes = _classes([sample.label, *named], ranking)
        rows = [_shown(view, "as it is", sample.x, classes), _shown(view, "attacked", attacked.x, classes)]
        title = f"Heat map before and after {attacked.threat}"
        pictures.append(_picture(f"heatmap {attacked.threat}", title, rows, classes, sample, unit))
    return pictures


def _logits(view: ModelView, x: Tensor) -> Tensor | None:
    import torch

    if "Classifier" not in view.capabilities:
        return None
    with torch.no_grad():
        return view.logits(x)


def _classes(wanted: Sequence[int], ranking: Sequence[int]) -> list[int]:
    """The classes to show: those wanted, and the next best where that is one only."""
    found = list(dict.fromkeys(wanted))
    further = [k for k in ranking if k not in found]
    return [*found, *further[:1]][:_MOST_CLASSES] if len(found) < 2 else found[:_MOST_CLASSES]


def _shown(view: ModelView, title: str, x: Tensor, classes: Sequence[int]) -> Shown:
    import torch

    logits = _logits(view, x)
    with torch.no_grad():
        maps = torch.cat([view.heatmap(x, torch.tensor([k], device=x.device)) for k in classes])
    prediction = None if logits is None else int(logits[0].argmax())
    return Shown(title, x, prediction, maps.detach().double().cpu())


@style()
def _picture(
    name: str, title: str, rows: Sequence[Shown], classes: Sequence[int], sample: ExplainedSample, unit: str
) -> Picture:
    low = min(float(row.maps.min()) for row in rows)
    high = max(float(row.maps.max()) for row in rows)
    figure = new_figure(_SIDE * (1 + len(classes)) + 0.9, (_SIDE + 0.45) * len(rows))
    axes = figure.subplots(len(rows), 1 + len(classes), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        draw_image(line[0], row.x[0])
        said = "" if row.prediction is None else f"\npredicted: {class_name(sample.class_names, row.prediction)}"
        line[0].set_title(row.title + said)
        for panel, k, values in zip(line[1:], classes, row.maps, strict=True):
            drawn = draw_map(panel, values, row.x[0], low, high)
            bare(panel)
            panel.set_title(f"class {class_name(sample.class_names, k)}\nsum {_number(float(values.sum()))}")
    bar = figure.colorbar(drawn, ax=axes[:, -1].tolist(), fraction=0.08)
    bar.set_label(unit or "heat")
    label = class_name(sample.class_names, sample.label)
    caption = (
        f"Sample {sample.sample_id}, class {label}. The heat map of each class over the image, all on one scale"
        f"{' in ' + unit if unit else ''}; the sum is over the {rows[0].maps.shape[1]} x {rows[0].maps.shape[2]} fields"
        " of a map."
    )
    numbers = {
        "classes": list(classes),
        "sums": [[_finite(float(m.sum())) for m in row.maps] for row in rows],
        "predictions": [row.prediction for row in rows],
    }
    return Picture(name, title, caption, as_png(figure), numbers)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
