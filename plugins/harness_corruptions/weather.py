"""Snow, frost, fog, and spatter among the extra ones."""

from __future__ import annotations

from harness_corruptions.corruption import Corruption
from harness_corruptions.fog import draw_fog, fog
from harness_corruptions.frost import draw_frost, frost
from harness_corruptions.snow import draw_snow, snow
from harness_corruptions.spatter import draw_spatter, spatter

SNOW = Corruption(
    name="snow",
    group="weather",
    apply=snow,
    draw=draw_snow,
    severities={
        "imagenet-c": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "cifar10-c": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    },
    grey="whitened by its own value",
)

FROST = Corruption(
    name="frost",
    group="weather",
    apply=frost,
    draw=draw_frost,
    severities={
        "imagenet-c": ((1, 0.4, 1.1), (0.8, 0.6, 1.1), (0.7, 0.7, 1.1), (0.65, 0.7, 1.1), (0.6, 0.75, 1.1)),
        "cifar10-c": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    },
    grey="the texture's grey value",
    shared_draws=True,
)

FOG = Corruption(
    name="fog",
    group="weather",
    apply=fog,
    draw=draw_fog,
    severities={
        "imagenet-c": ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        "cifar10-c": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    },
    shared_draws=True,
)

SPATTER = Corruption(
    name="spatter",
    group="extra",
    apply=spatter,
    draw=draw_spatter,
    severities={
        "imagenet-c": (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        "cifar10-c": (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    },
    grey="the grey value of water or mud",
    shared_draws=True,
)

CORRUPTIONS: tuple[Corruption, ...] = (SNOW, FROST, FOG, SPATTER)
"""In ImageNet-C's order, the extra one last."""
