"""Layouts: which blocks a network has, for which images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Generator, nn

from harness_ib_inn.blocks import (
    CouplingBlock,
    DownsamplingCoupling,
    HaarDownsampling,
    Invertible,
    OrthogonalMixing,
    Permutation,
    Subnetwork,
)
from harness_ib_inn.subnetworks import basic, bottleneck, dense, entry, pointwise

Mixing = Literal["orthogonal", "permutation"]


@dataclass(frozen=True)
class Haar:
    """Haar wavelets: 4 times the channels at half the size."""


@dataclass(frozen=True)
class Couplings:
    """`count` coupling blocks with subnetworks of one kind."""

    count: int
    subnetwork: Subnetwork


@dataclass(frozen=True)
class Downsample:
    """A downsampling coupling block: 4 times the channels at half the size."""

    strided: Subnetwork
    low_resolution: Subnetwork


@dataclass(frozen=True)
class Layout:
    """A network.

    Attributes:
        shape: (C, H, W) of the images it takes.
        steps: what happens to them, up to the DCT.
        alpha: soft clamp of couplings: log s lies in (-alpha, alpha).
        rank: number of prototypes of the low-rank part of the class means (equation 15).
    """

    name: str
    shape: tuple[int, int, int]
    steps: tuple[Haar | Couplings | Downsample, ...]
    alpha: float
    rank: int

    def blocks(self, mixing: Mixing, generator: Generator) -> tuple[list[Invertible], tuple[int, int, int]]:
        """New blocks, and the shape of the feature maps that leave them."""
        mix = OrthogonalMixing if mixing == "orthogonal" else Permutation
        channels, height, width = self.shape
        blocks: list[Invertible] = []
        for step in self.steps:
            if isinstance(step, Couplings):
                for _ in range(step.count):
                    blocks.append(CouplingBlock(channels, step.subnetwork, self.alpha, mix(channels, generator)))
                continue
            if isinstance(step, Haar):
                blocks.append(HaarDownsampling())
            else:
                mixing_below = mix(4 * channels, generator)
                blocks.append(
                    DownsamplingCoupling(channels, step.strided, step.low_resolution, self.alpha, mixing_below)
                )
            channels, height, width = 4 * channels, height // 2, width // 2
        return blocks, (channels, height, width)


def _plain(width: int) -> Subnetwork:
    """A basic branch without batch normalisation, whose noise small data sets do not need."""
    return partial(basic, width=width, norm=False)


def _stage(kind: Callable[..., nn.Module], width: int, count: int) -> tuple[Downsample, Couplings]:
    """A stage of `count` blocks, of which the first one downsamples."""
    branch = partial(kind, width=width)
    return Downsample(partial(branch, stride=2), branch), Couplings(count - 1, branch)


_ENTRY = Downsample(partial(entry, width=64, stride=2), partial(basic, width=64))
_ALL = (
    Layout(
        "digits",
        (1, 8, 8),
        # Dense: a 3x3 convolution sees all of 2x2 places anyway, and these were more accurate in cross-validation.
        (Haar(), Haar(), Couplings(12, partial(dense, width=67, size=(2, 2)))),
        alpha=1.0,
        rank=8,
    ),
    Layout(
        "mnist",
        (1, 28, 28),
        (Haar(), Couplings(4, _plain(32)), *_stage(partial(basic, norm=False), 48, 1), Couplings(8, _plain(64))),
        alpha=1.0,
        rank=8,
    ),
    Layout(
        "cifar10",
        (3, 32, 32),
        (_ENTRY, Couplings(3, partial(basic, width=64)), *_stage(basic, 128, 7), *_stage(basic, 256, 7)),
        alpha=0.7,
        rank=8,
    ),
    # Tables 1 and 4. The 1x1 coupling after the wavelets is in the authors' code, not in the paper.
    Layout(
        "imagenet",
        (3, 224, 224),
        (
            _ENTRY,
            Haar(),
            Couplings(1, partial(pointwise, width=48)),
            Couplings(3, partial(bottleneck, width=64)),
            *_stage(bottleneck, 128, 4),
            *_stage(bottleneck, 256, 6),
            *_stage(bottleneck, 512, 3),
        ),
        alpha=0.7,
        rank=128,
    ),
)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}
