"""Pictures of why an IB-INN decided as it did on one image (paper 4.2, C.3, C.4, D.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.drawing import (
    DIVERGING,
    FAINT,
    INK,
    PALETTE,
    SEQUENTIAL,
    as_png,
    draw_image,
    draw_map,
    new_figure,
    style,
)
from harness.explanations import AttackedImage, ExplainedSample, Picture, class_name
from harness_ib_inn.crops import centre_crop
from harness_ib_inn.decision_plane import DecisionPlane, decision_plane, mass_radius
from harness_ib_inn.decision_space import cells
from harness_ib_inn.posterior_maps import class_maps, likelihood_maps, saliency_maps
from harness_ib_inn.trajectory import Trajectory, trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harness_ib_inn.model import IBINN

_SIDE = 1.75  # inches of a panel with a map
_BATCH = 64


def pictures_of_sample(model: IBINN, sample: ExplainedSample) -> Iterator[Picture]:
    """The decision plane and the evidence maps of the image, and the evidence maps and the way of each attack on it."""
    if model.num_classes < 2:  # nothing is decided
        return
    clean, _ = codes(model, sample.x)
    yield _evidence("evidence", "Evidence by place", model, sample, [("as it is", sample.x)])
    yield _plane(model, sample, clean)
    for attacked in sample.attacked:
        rows = [("as it is", sample.x), ("attacked", attacked.x)]
        title = f"Evidence by place, before and after {attacked.threat}"
        yield _evidence(f"evidence {attacked.threat}", title, model, sample, rows)
        if len(attacked.iterates) and model.num_classes >= 3:
            yield _way(model, sample, attacked)


def codes(model: IBINN, images: Tensor) -> tuple[Tensor, Tensor]:
    """z (n, D) and log|det dz/dv| (n,) of images (n, C, H, W), of their centre where the model takes smaller ones.

    v is the dequantised image, whose density is the model's log p(x).
    """
    parts = []
    with torch.no_grad():
        for some in torch.split(images, _BATCH):
            parts.append(model.flow(model.dequantised(centre_crop(some, model.layout.shape[1:]))))
    return torch.cat([z for z, _ in parts]), torch.cat([log_det for _, log_det in parts])


# --- maps


@style()
def _evidence(
    name: str, title: str, model: IBINN, sample: ExplainedSample, images: Sequence[tuple[str, Tensor]]
) -> Picture:
    """Saliency, the likelihood of two classes by place, and their difference."""
    shown = torch.cat([centre_crop(x, model.layout.shape[1:]) for _, x in images])
    z, _ = codes(model, shown)
    by_class = class_maps(z, model.means, model.to_spatial)
    joint = by_class.sum(dim=(2, 3)) + model.log_prior.to(by_class)
    top = joint[-1].argsort(descending=True).tolist()
    # After an attack: what it is now taken for against what it was taken for before.
    first, second = (top[0], int(joint[0].argmax())) if int(joint[0].argmax()) != top[0] else (top[0], top[1])
    likelihood = likelihood_maps(by_class, model.latent_shape[0])
    saliency = saliency_maps(likelihood, model.log_prior)
    odds = likelihood[:, first] - likelihood[:, second]
    names = [class_name(sample.class_names, k) for k in (first, second)]
    figure = new_figure(5 * _SIDE + 1.9, (_SIDE + 0.5) * len(images) + 0.5)
    axes = figure.subplots(len(images), 5, squeeze=False)
    pair = likelihood[:, [first, second]]
    limit = float(odds.abs().max()) or 1.0
    heads = ("saliency", f"log q(w | {names[0]})", f"log q(w | {names[1]})", f"{names[0]} against {names[1]}")
    for row, (line, (what, _)) in enumerate(zip(axes, images, strict=True)):
        draw_image(line[0], shown[row])
        line[0].set_title(f"{what}\ntaken for {class_name(sample.class_names, int(joint[row].argmax()))}")
        drawn = (
            draw_map(line[1], saliency[row], shown[row], float(saliency.min()), float(saliency.max())),
            draw_map(line[2], pair[row, 0], shown[row], float(pair.min()), float(pair.max())),
            draw_map(line[3], pair[row, 1], shown[row], float(pair.min()), float(pair.max())),
            draw_map(line[4], odds[row], shown[row], -limit, limit, DIVERGING),
        )
        sums = (saliency[row].sum(), pair[row, 0].sum(), pair[row, 1].sum(), odds[row].sum())
        for panel, head, total in zip(line[1:], heads, sums, strict=True):
            panel.set_title(f"{head}\nsum {float(total):.4g}")
    for panels, one in ((axes[:, 1], drawn[0]), (axes[:, 2:4], drawn[1]), (axes[:, 4], drawn[3])):
        bar = figure.colorbar(one, ax=panels.ravel().tolist(), location="bottom", shrink=0.8, aspect=25, pad=0.03)
        bar.set_label("nats")
    height, width = by_class.shape[2:]
    caption = (
        f"The latent density by place, on the {height} x {width} fields of the last feature maps. Likelihood: each"
        f" class's map sums to log q(z | y). The last map, violet where it speaks for {names[1]} and orange where it"
        f" speaks for {names[0]}, sums to the difference of the two log-likelihoods; nothing heuristic is in it."
        " Saliency (equation 29) is -log of a mixture of all classes in each field by itself: its sum is not -log q(z)."
    )
    numbers = {
        "classes": [first, second],
        "log_likelihood": pair.sum(dim=(2, 3)).tolist(),
        "log_posterior": joint.log_softmax(dim=1)[:, [first, second]].tolist(),
        "log_odds_map": odds.tolist(),
    }
    return Picture(name, title, caption, as_png(figure), numbers)


# --- the plane of the two likeliest classes


@style()
def _plane(model: IBINN, sample: ExplainedSample, clean: Tensor) -> Picture:
    """Figure 3, with the codes of what the attacks made of the image."""
    attacked = [codes(model, a.x)[0] for a in sample.attacked]
    plane = decision_plane(torch.cat([clean, *attacked]), model.means, model.log_prior)
    names = [class_name(sample.class_names, int(k)) for k in plane.classes]
    figure = new_figure(8.2, 3.5)
    (axes, bars) = figure.subplots(1, 2, width_ratios=(3.6, 1))
    _draw_plane(axes, plane, names, [a.threat for a in sample.attacked])
    posterior = (model.joint(clean)[0].log_softmax(dim=0).exp())[plane.classes]
    places = list(range(len(names)))
    bars.barh(places, posterior.tolist(), color=[PALETTE[min(i, 2) if i < 2 else 6] for i in places])
    bars.set_yticks(places, names)
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.set_xlabel("posterior, as it is")
    caption = (
        f"The latent code seen from the axis through the means of its two likeliest classes, {names[0]} and {names[1]},"
        f" {plane.distance:.3g} apart. Across the axis: the distance from it within the {plane.dimension}-dimensional"
        f" space through the means of the {len(names)} likeliest classes, which alone decides between them. Each"
        " half-circle holds 90 % of its class within that space; on the dashed line the two classes are equally likely."
        f" Outside that space the code is {float(plane.beyond[0]):.0f} (squared) from every one of these means, where"
        f" {model.dimensions - plane.dimension} is expected."
        + (" What an attack made of the image may be taken for a class that is not shown." if attacked else "")
    )
    numbers = {
        "classes": plane.classes.tolist(),
        "distance": plane.distance,
        "code": plane.codes[0].tolist(),
        "attacked": plane.codes[1:].tolist(),
        "radius": plane.radius,
        "boundary": plane.boundary,
        "squared_distance_beyond": float(plane.beyond[0]),
        "posterior": posterior.tolist(),
    }
    return Picture("decision plane", "Between the two likeliest classes", caption, as_png(figure), numbers)


def _draw_plane(axes: Axes, plane: DecisionPlane, names: Sequence[str], threats: Sequence[str]) -> None:
    from matplotlib.patches import Circle

    for i in range(2):
        colour = PALETTE[i]
        mean = (float(plane.means[i, 0]), 0.0)
        axes.add_patch(Circle(mean, plane.radius, facecolor=colour, alpha=0.12, edgecolor="none"))
        axes.add_patch(Circle(mean, plane.radius, fill=False, edgecolor=colour, linewidth=1.2))
        axes.plot(*mean, "o", color=colour, markersize=7, clip_on=False, zorder=4)
        axes.annotate(names[i], mean, (0, 9), textcoords="offset points", ha="center", color=colour)
    for (along, away), name in _together(plane.means[2:].tolist(), names[2:]):
        axes.plot(along, away, "o", color=FAINT, markersize=5)
        axes.annotate(name, (along, away), (6, 0), textcoords="offset points", va="center", color=FAINT)
    axes.axvline(plane.boundary, color=INK, linestyle="--", linewidth=0.9)
    axes.plot(*plane.codes[0].tolist(), "*", color=INK, markersize=12, label="the image as it is", zorder=5)
    for i, (place, threat) in enumerate(zip(plane.codes[1:].tolist(), threats, strict=True)):
        colour = PALETTE[2 + i % 4]
        axes.plot(*place, "XPDsv^"[i % 6], color=colour, markersize=8, label=f"after {_short(threat)}", zorder=5)
    points = torch.cat([plane.codes, plane.means])
    left, right = (float(v) for v in (points[:, 0].min(), points[:, 0].max()))
    axes.set_xlim(min(left, -plane.radius) - 0.4, max(right, plane.distance + plane.radius) + 0.4)
    axes.set_ylim(0, max(plane.radius, float(points[:, 1].max())) + 0.5)
    axes.set_aspect("equal")
    axes.set_xlabel("along the axis (standard deviations)")
    axes.set_ylabel("away from the axis")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)


# --- the way of an attack


@style()
def _way(model: IBINN, sample: ExplainedSample, attacked: AttackedImage) -> Picture:
    """Figures 6, 19 and 20: where the attack led the code."""
    z, log_det = codes(model, torch.cat([sample.x, attacked.iterates, attacked.x]))
    way = trajectory(z, log_det, model.means, model.log_prior)
    before, after = int(way.log_posterior[0].argmax()), int(way.log_posterior[-1].argmax())
    figure = new_figure(8.6, 4.2)
    grid = figure.subplots(2, 2, width_ratios=(1.35, 1))
    for panel in grid[:, 0]:
        panel.remove()
    plane = figure.add_subplot(grid[0, 0].get_gridspec()[:, 0])
    _draw_way(plane, way, sample.class_names, model.log_prior)
    _draw_course(grid[0, 1], grid[1, 1], way, [before, after], sample.class_names)
    shown = [class_name(sample.class_names, int(k)) for k in way.classes]
    kind = (
        "All class means lie in this plane, so the place in it decides: the cells are where a class is the likeliest."
        if way.whole
        else f"The plane goes through the means of {shown[0]}, {shown[1]} and {shown[2]}: the place in it decides"
        " between these three, and the cells are where one of them is likelier than the others. The circles hold 90 %"
        " of a class as seen in the plane."
    )
    ending = "ended at the stored image" if attacked.repeated else "did not end exactly at the stored image"
    caption = (
        f"The way of {attacked.threat} through latent space. {kind} Each dot is an image at which the attack asked the"
        f" model, {len(attacked.iterates)} in order, dark to light, restarts and rejected trials included; the attack"
        f" was repeated on the run's random numbers and {ending}. Right: log-posterior and log p(x) on the way."
    )
    numbers = {
        "classes": way.classes.tolist(),
        "whole": way.whole,
        "path": way.path.tolist(),
        "log_posterior": way.log_posterior[:, [before, after]].tolist(),
        "log_prob": way.log_prob.tolist(),
        "before": before,
        "after": after,
    }
    title = f"The way of {attacked.threat} in latent space"
    return Picture(f"way {attacked.threat}", title, caption, as_png(figure), numbers)


def _draw_way(axes: Axes, way: Trajectory, names: Sequence[str], log_prior: Tensor) -> None:
    from matplotlib.patches import Circle

    radius = mass_radius(2)
    points = torch.cat([way.path, way.means])  # the circles may be cut: the way is what matters
    low, high = points.amin(dim=0) - 1, points.amax(dim=0) + 1
    bounds = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    draw_cells(axes, way.means, log_prior[way.classes], bounds)
    for i, (place, k) in enumerate(zip(way.means.tolist(), way.classes.tolist(), strict=True)):
        colour = PALETTE[i % len(PALETTE)]
        if not way.whole:  # more circles would hide the way
            axes.add_patch(Circle(place, radius, fill=False, edgecolor=colour, linewidth=1.1))
        axes.plot(*place, "o", color=colour, markersize=5)
        axes.annotate(class_name(names, k), place, (0, 6), textcoords="offset points", ha="center", color=colour)
    x, y = way.path.T.tolist()
    axes.plot(x, y, color=FAINT, linewidth=0.7, zorder=3)
    axes.scatter(x[1:-1], y[1:-1], c=range(len(x) - 2), cmap=SEQUENTIAL, s=9, zorder=4)
    axes.plot(x[0], y[0], "*", color=INK, markersize=12, zorder=5, label="as it is")
    axes.plot(x[-1], y[-1], "X", color=INK, markersize=9, zorder=5, label="stored")
    axes.set_xlim(bounds[:2])
    axes.set_ylim(bounds[2:])
    axes.set_aspect("equal")
    axes.set_xlabel("first direction of the plane (standard deviations)")
    axes.set_ylabel("second direction")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)


def draw_cells(axes: Axes, means: Tensor, log_prior: Tensor, bounds: tuple[float, float, float, float]) -> None:
    """Fill where each class is the likeliest with a tint of its colour."""
    for i, polygon in enumerate(cells(means, log_prior, bounds)):
        if len(polygon):
            axes.fill(*polygon.T.tolist(), color=PALETTE[i % len(PALETTE)], alpha=0.13, linewidth=0)
            axes.fill(*polygon.T.tolist(), fill=False, edgecolor=FAINT, linewidth=0.8)


def _draw_course(top: Axes, bottom: Axes, way: Trajectory, pair: Sequence[int], names: Sequence[str]) -> None:
    steps = list(range(len(way.path)))
    for k, colour, dash in zip(pair, PALETTE, ("-", "--"), strict=False):
        top.plot(steps, way.log_posterior[:, k].tolist(), dash, color=colour, label=class_name(names, k))
    top.set_ylabel("log-posterior (nats)")
    top.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)
    top.set_xticklabels([])
    bottom.plot(steps, way.log_prob.tolist(), color=INK)
    bottom.set_ylabel("log p(x) (nats)")
    bottom.set_xlabel("image asked about, in order")


def _together(
    places: Sequence[Sequence[float]], names: Sequence[str], near: float = 0.3
) -> list[tuple[tuple[float, float], str]]:
    """Places with their names, those of places that lie on top of each other in one."""
    groups: list[tuple[tuple[float, float], list[str]]] = []
    for (x, y), name in zip(places, names, strict=True):
        group = next((g for (a, b), g in groups if abs(a - x) < near and abs(b - y) < near), None)
        if group is None:
            groups.append(((x, y), [name]))
        else:
            group.append(name)
    return [(place, ", ".join(group)) for place, group in groups]


def _short(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
