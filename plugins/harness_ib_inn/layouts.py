"""Layouts: which blocks a network has, for which images."""

from __future__ import annotations

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
from harness_ib_inn.subnetworks import basic, bottleneck, entry, pointwise

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
    return partial(basic, width=width, norm=False)


def _down(kind: Subnetwork) -> Downsample:
    return Downsample(partial(kind, stride=2), kind)  # type: ignore[call-arg]


def _stage(width: int, count: int) -> tuple[Downsample, Couplings]:
    """A stage of ResNet-50: its first block downsamples."""
    kind = partial(bottleneck, width=width)
    return Downsample(partial(kind, stride=2), kind), Couplings(count - 1, kind)


_SMALL = partial(basic, width=64)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "digits",
            (1, 8, 8),
            (Haar(), Couplings(4, _plain(32)), _down(_plain(32)), Couplings(6, _plain(40))),
            alpha=1.0,
            rank=8,
        ),
        Layout(
            "mnist",
            (1, 28, 28),
            (Haar(), Couplings(4, _plain(32)), _down(_plain(48)), Couplings(8, _plain(64))),
            alpha=1.0,
            rank=8,
        ),
        Layout(
            "cifar10",
            (3, 32, 32),
            (
                Downsample(partial(entry, width=64, stride=2), partial(basic, width=64)),
                Couplings(3, partial(basic, width=64)),
                Downsample(partial(basic, width=128, stride=2), partial(basic, width=128)),
                Couplings(6, partial(basic, width=128)),
                Downsample(partial(basic, width=256, stride=2), partial(basic, width=256)),
                Couplings(6, partial(basic, width=256)),
            ),
            alpha=0.7,
            rank=8,
        ),
        Layout(
            "imagenet",
            (3, 224, 224),
            (
                Downsample(partial(entry, width=64, stride=2), partial(basic, width=64)),
                Haar(),
                Couplings(1, partial(pointwise, width=48)),
                Couplings(3, partial(bottleneck, width=64)),
                *_stage(128, 4),
                *_stage(256, 6),
                *_stage(512, 3),
            ),
            alpha=0.7,
            rank=128,
        ),
    )
}
