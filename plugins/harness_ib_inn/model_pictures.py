"""Pictures of an IB-INN itself: its classes, what it sees, and what decides (paper B.1, B.2, C.1, C.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from harness.drawing import FAINT, INK, PALETTE, SEQUENTIAL, as_png, new_figure, style
from harness.explanations import Picture, class_name
from harness_ib_inn.crops import centre_crop
from harness_ib_inn.decision_space import FLAT, fitted_plane, plane_of
from harness_ib_inn.receptive_field import ReceptiveField, receptive_field, width_at_half
from harness_ib_inn.sample_pictures import codes, draw_cells
from harness_ib_inn.similarity import confidence_density, expected_confidence, mean_distances, similarity_order
from harness_ib_inn.spread import accuracy_by_components, components, mean_spread

if TYPE_CHECKING:
    from harness.datasets import DatasetSlice, Ints
    from harness_ib_inn.model import IBINN

_IMAGES = 1000
"""Images that accuracies and the decision space are made of, at most."""
_FIELD_IMAGES = 64
"""Images that the receptive field is averaged over."""
_MARKERS = "oD^svP"
_LABEL = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
_WRITTEN = 12  # classes whose numbers still fit into the fields of a matrix
_NAMED = 30  # classes whose names still fit beside a matrix


def pictures_of_model(model: IBINN, data: DatasetSlice) -> Iterator[Picture]:
    """Similarity of the classes, spread of the means, receptive field; the decision space, where it is a plane."""
    # Evenly spaced: folders of images are sorted by class.
    images, labels = data.load(_spaced(data.ids, _IMAGES))
    images = images.to(model.log_prior.device)
    z, _ = codes(model, images)
    names = data.facts.class_names
    if model.num_classes >= 2:
        yield _similarity(model, names)
        yield _components(model, z, labels.to(z.device))
    if model.num_classes >= 3 and fitted_plane(model.means)[1] <= FLAT:
        yield _space(model, z, labels.to(z.device), names)
    few, _ = data.load(_spaced(data.ids, _FIELD_IMAGES))
    yield _field(model, few.to(model.log_prior.device))


def _spaced(ids: Ints, count: int) -> Ints:
    """At most `count` ids, evenly spaced among all."""
    chosen: Ints = ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(np.int64)]
    return chosen


@style()
def _similarity(model: IBINN, names: Sequence[str]) -> Picture:
    """Figure 16, and what a distance means for the confidence."""
    distances = mean_distances(model.means)
    order = similarity_order(distances)
    confidence = expected_confidence(distances)
    doubt = 100 * (1 - confidence[order][:, order])
    shown = [class_name(names, int(k)) for k in order]
    figure = new_figure(8.2, 3.9)
    (matrix, curves) = figure.subplots(1, 2, width_ratios=(1.25, 1))
    off = ~torch.eye(len(order), dtype=torch.bool, device=confidence.device)
    matrix.set_facecolor("#d5d9de")  # the diagonal, where there is nothing to decide
    drawn = matrix.imshow(doubt.where(off, torch.nan).cpu().numpy(), cmap=SEQUENTIAL)
    if len(shown) <= _WRITTEN:
        middle = float(doubt[off].min() + doubt[off].max()) / 2
        for i, j in off.nonzero().tolist():
            colour = "w" if float(doubt[i, j]) < middle else INK
            matrix.text(j, i, f"{float(doubt[i, j]):.2g}", ha="center", va="center", fontsize=6.5, color=colour)
    ticks = list(range(len(shown))) if len(shown) <= _NAMED else []
    matrix.set_xticks(ticks, shown if ticks else [], rotation=90)
    matrix.set_yticks(ticks, shown if ticks else [])
    bar = figure.colorbar(drawn, ax=matrix, shrink=0.9)
    bar.set_label("expected uncertainty between the two, %")
    pairs = _pairs(distances, names)
    c = torch.linspace(0.5, 0.999, 600, dtype=torch.float64)
    for (label, distance), colour, dash in zip(pairs, PALETTE, ("-", "--", ":"), strict=False):
        curves.plot(c.tolist(), confidence_density(c, distance).tolist(), dash, color=colour, label=label)
    curves.set_yscale("log")
    curves.set_xlabel("confidence in the likelier of the two")
    curves.set_ylabel("density p(c)")
    curves.legend(fontsize=8)
    caption = (
        "How much doubt the distance of two class means builds into a decision between them: the expected uncertainty"
        " is 1 - Phi(distance / 2) (equations 20 to 24). Similar classes stand side by side. Right: the distribution of"
        " the confidence for the closest, the median and the farthest pair."
    )
    numbers = {
        "order": order.tolist(),
        "distances": distances.tolist() if len(order) <= _NAMED else [],
        "expected_confidence": confidence.tolist() if len(order) <= _NAMED else [],
        "closest": float(distances[off].min()),
        "farthest": float(distances[off].max()),
    }
    return Picture("similarity", "How alike the classes are", caption, as_png(figure), numbers)


def _pairs(distances: Tensor, names: Sequence[str]) -> list[tuple[str, float]]:
    """The closest, the median and the farthest pair of classes, in words, with their distances."""
    rows, columns = torch.triu_indices(len(distances), len(distances), offset=1).tolist()
    by_distance = sorted((float(distances[i, j]), i, j) for i, j in zip(rows, columns, strict=True))
    chosen = {"closest": by_distance[0], "median": by_distance[len(by_distance) // 2], "farthest": by_distance[-1]}
    return [
        (f"{word}: {class_name(names, i)} and {class_name(names, j)}, {d:.2f} apart", d)
        for word, (d, i, j) in chosen.items()
        if d > 0
    ]


@style()
def _components(model: IBINN, z: Tensor, labels: Tensor) -> Picture:
    """Figure 12, and the accuracy without mu_rest."""
    of_means = components(model.to_spatial(model.means.double()))
    of_codes = components(model.to_spatial(z.double()))
    spread = mean_spread(of_means)
    accuracy = accuracy_by_components(of_codes, of_means, model.log_prior, labels)
    figure = new_figure(7.4, 3.3)
    (panel, curve) = figure.subplots(1, 2, width_ratios=(1, 1.4))
    drawn = panel.imshow(spread.cpu().numpy(), cmap=SEQUENTIAL, vmin=0)
    panel.set_xticks(range(spread.shape[1]))
    panel.set_yticks(range(spread.shape[0]))
    panel.set_xlabel("horizontal frequency")
    panel.set_ylabel("vertical frequency")
    if spread.numel() <= 16:
        for i in range(spread.shape[0]):
            for j in range(spread.shape[1]):
                light = float(spread[i, j]) < 0.6 * float(spread.max())
                panel.text(j, i, f"{float(spread[i, j]):.2g}", ha="center", va="center", color="w" if light else INK)
    figure.colorbar(drawn, ax=panel, shrink=0.85).set_label("spread of the class means")
    steps = list(range(1, len(accuracy) + 1))
    curve.plot(steps, (100 * accuracy).tolist(), "o-", color=PALETTE[0], markersize=4)
    chance = 100 * float(labels.bincount().max()) / len(labels)
    curve.axhline(chance, color=FAINT, linestyle="--", linewidth=0.9)
    curve.annotate("most frequent class", (steps[-1], chance), (0, 3), textcoords="offset points", ha="right")
    curve.set_ylim(0, 103)
    curve.xaxis.get_major_locator().set_params(integer=True)
    curve.set_xlabel("DCT components used, lowest frequencies first")
    curve.set_ylabel(f"accuracy on {len(labels)} images, %")
    rest = 100 * (float(accuracy[-1]) - float(accuracy[0]))
    caption = (
        "Left: for each DCT component the standard deviation of mu_y over classes, mean over channels: what it"
        " contributes to the decision. Right: the accuracy when only some components decide. The first point is the"
        f" mean-pooled component alone, without mu_rest: {100 * float(accuracy[0]):.1f} %, {abs(rest):.1f} points"
        f" {'less' if rest >= 0 else 'more'} than with all. The model was trained with all; the paper's"
        " figure for training without mu_rest is another experiment."
    )
    numbers = {"spread": spread.tolist(), "accuracy": accuracy.tolist(), "images": len(labels)}
    return Picture("components", "What the DCT components contribute", caption, as_png(figure), numbers)


@style()
def _space(model: IBINN, z: Tensor, labels: Tensor, names: Sequence[str]) -> Picture:
    """Figure 15: the whole decision space of a model with means in a plane."""
    plane = plane_of(model.means)
    places, means = plane.coordinates(z), plane.coordinates(model.means)
    right = float((model.joint(z).argmax(dim=1) == labels).double().mean())
    figure = new_figure(5.6, 5.2)
    axes = figure.subplots()
    points = torch.cat([places, means])
    low, high = points.amin(dim=0) - 0.5, points.amax(dim=0) + 0.5
    bounds = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    draw_cells(axes, means, model.log_prior, bounds)
    for k, place in enumerate(means.tolist()):
        marker = _MARKERS[k // len(PALETTE) % len(_MARKERS)]
        x, y = places[labels == k].T.tolist()
        axes.scatter(x, y, s=7, marker=marker, color=PALETTE[k % len(PALETTE)], alpha=0.75, linewidths=0)
        axes.text(place[0], place[1], class_name(names, k), ha="center", va="center", fontweight="bold", bbox=_LABEL)
    axes.set_xlim(bounds[:2])
    axes.set_ylim(bounds[2:])
    axes.set_aspect("equal")
    axes.set_xlabel("first direction of the plane (standard deviations)")
    axes.set_ylabel("second direction")
    caption = (
        "The whole decision space: all class means lie in this plane, so the place of a code in it decides, and the"
        f" cells are where a class is the likeliest. Marked are {len(labels)} images of the data, coloured by label;"
        f" {100 * right:.1f} % lie in their own cell. The name of a class stands at its mean."
    )
    numbers = {"accuracy": right, "means": means.tolist(), "images": len(labels)}
    return Picture("decision space", "The whole decision space", caption, as_png(figure), numbers)


@style()
def _field(model: IBINN, images: Tensor) -> Picture:
    """Figure 13."""
    from matplotlib.ticker import LogFormatter, ScalarFormatter

    def features(x: Tensor) -> Tensor:
        return model.to_spatial(model.encode(x)[0])

    found = receptive_field(features, centre_crop(images, model.layout.shape[1:]))
    rows, columns = found.profile()
    figure = new_figure(7.4, 3.3)
    (panel, curve) = figure.subplots(1, 2, width_ratios=(1, 1.4))
    drawn = panel.imshow(found.sensitivity.cpu().numpy(), cmap=SEQUENTIAL)
    panel.set_xlabel("pixel column")
    panel.set_ylabel("pixel row")
    figure.colorbar(drawn, ax=panel, shrink=0.85).set_label("sensitivity")
    for profile, word, colour, dash in ((rows, "down", PALETTE[0], "-"), (columns, "across", PALETTE[1], "--")):
        label = f"{word}: {width_at_half(profile):.1f} px wide at half maximum"
        curve.plot(range(len(profile)), profile.tolist(), dash, color=colour, label=label)
    start = found.column[0] * found.block[0] - 0.5
    curve.axvspan(start, start + found.block[0], color=FAINT, alpha=0.25, linewidth=0, label="downsampling alone")
    curve.set_yscale("log")
    curve.yaxis.set_major_formatter(ScalarFormatter())
    curve.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    curve.set_xlabel("pixel")
    curve.set_ylabel("sensitivity (mean of the other direction)")
    curve.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    numbers = {
        "sensitivity": found.sensitivity.tolist() if found.sensitivity.numel() <= 4096 else [],
        "width_down": width_at_half(rows),
        "width_across": width_at_half(columns),
        "block": list(found.block),
        "column": list(found.column),
        "features": found.features,
    }
    caption = _field_caption(found, len(images))
    return Picture("receptive field", "Effective receptive field", caption, as_png(figure), numbers)


def _field_caption(found: ReceptiveField, images: int) -> str:
    return (
        f"How far the pixels move field {found.column} of the last feature maps: the sum over its features and all"
        f" colours of |du/dx|, mean over {images} images (equation 16). Shaded: the {found.block[0]} pixels that the"
        " field would see by downsampling alone, without a convolution."
    )
