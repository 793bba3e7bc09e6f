"""Brightness, contrast, elastic deformation, pixelation, JPEG compression, and saturation among the extra ones."""

from __future__ import annotations

from harness_corruptions.colour import brightness, contrast, saturate
from harness_corruptions.corruption import Corruption
from harness_corruptions.elastic import draw_elastic, elastic_transform
from harness_corruptions.jpeg import jpeg_compression
from harness_corruptions.resampling import pixelate

BRIGHTNESS = Corruption(
    name="brightness",
    group="weather",
    apply=brightness,
    draw=None,
    severities={
        "imagenet-c": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        "cifar10-c": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    },
    grey="added to the value",
)

CONTRAST = Corruption(
    name="contrast",
    group="digital",
    apply=contrast,
    draw=None,
    severities={
        "imagenet-c": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        "cifar10-c": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    },
)

# Amplitude, smoothing and affine displacement as shares of the side. "imagenet-c" is what imagecorruptions does: no
# affine map, its alpha x 0.005. ImageNet-C itself was made with pixels of 224: (488, 170.8, 24.4), (488, 19.52, 48.8),
# (12.2, 2.44, 4.88), (17.08, 2.44, 4.88) and (29.28, 2.44, 4.88).
ELASTIC = Corruption(
    name="elastic_transform",
    group="digital",
    apply=elastic_transform,
    draw=draw_elastic,
    severities={
        "imagenet-c": (
            (0.0625, 0.01, 0.0),
            (0.08125, 0.01, 0.0),
            (0.10625, 0.01, 0.0),
            (0.125, 0.01, 0.0),
            (0.15, 0.01, 0.0),
        ),
        "cifar10-c": ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    },
    shared_draws=True,
)

PIXELATE = Corruption(
    name="pixelate",
    group="digital",
    apply=pixelate,
    draw=None,
    on_levels=True,
    severities={
        "imagenet-c": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
        "cifar10-c": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    },
)

JPEG = Corruption(
    name="jpeg_compression",
    group="digital",
    apply=jpeg_compression,
    draw=None,
    on_levels=True,
    severities={
        "imagenet-c": ((25,), (18,), (15,), (10,), (7,)),
        "cifar10-c": ((80,), (65,), (58,), (50,), (40,)),
    },
    grey="a grey JPEG",
)

SATURATE = Corruption(
    name="saturate",
    group="extra",
    apply=saturate,
    draw=None,
    severities={
        "imagenet-c": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        "cifar10-c": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    },
    grey="unchanged: grey has no saturation",
)

CORRUPTIONS: tuple[Corruption, ...] = (BRIGHTNESS, CONTRAST, ELASTIC, PIXELATE, JPEG, SATURATE)
"""In ImageNet-C's order, the extra one last."""
