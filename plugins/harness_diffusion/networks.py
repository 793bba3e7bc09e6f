"""Small networks of the harness's own: what they take is noisy data, a log-SNR and a class.

Every network here and in `harness_diffusion.foreign` is called ``network(x, condition, y)``: `x` (B, C, H, W), scaled
to unit variance; `condition` a `Condition`; `y` int64 (B,) or None for a network without classes. It returns
(B, C, H, W). All of it can be differentiated twice, in forward mode too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FREQUENCIES = 16  # sines and as many cosines


@dataclass(frozen=True)
class Condition:
    """What a network is told of the time. Each takes what suits it.

    Attributes:
        time: (B,) in [0, 1].
        log_snr: (B,) nats.
    """

    time: Tensor
    log_snr: Tensor


class Embedding(nn.Module):
    """Noise level and class as one vector (B, width).

    The level enters as sines and cosines of the log-SNR, 0.05 to 2 radians a nat: near t = 0, where solvers of the
    probability flow spend half of their steps, the log-SNR moves while t hardly does. The class is a table's row,
    added.

    Args:
        num_classes: rows of the table, the null class included; 0 for none.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(math.log(0.05), math.log(2.0), _FREQUENCIES))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.level = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(num_classes, width) if num_classes else None

    frequencies: Tensor

    def forward(self, condition: Condition, y: Tensor | None) -> Tensor:
        angles = condition.log_snr[:, None] * self.frequencies
        out: Tensor = self.level(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.classes is not None and y is not None:
            out = out + self.classes(y)
        return F.silu(out)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of plain operations, outside training.

    The gradient of a forward-mode derivative is silently wrong through torch's own (pytorch issue 196700).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        axes = tuple(range(-len(self.normalized_shape), 0))
        h = x - x.mean(dim=axes, keepdim=True)
        h = h * torch.rsqrt(h.square().mean(dim=axes, keepdim=True) + self.eps)
        if self.weight is not None:
            h = h * self.weight
        return h if self.bias is None else h + self.bias


class _MLPBlock(nn.Module):
    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(embedding, 2 * width)
        self.inner = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.outer = _zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.film(e).chunk(2, dim=1)
        h = F.silu(self.norm(x) * (1 + scale) + shift)
        h = self.dropout(F.silu(self.inner(h)))
        out: Tensor = x + self.outer(h)
        return out


class MLP(nn.Module):
    """A residual multi-layer perceptron on the flattened image, its blocks scaled and shifted by the embedding (FiLM).

    0.85 million parameters at width 256 with 4 blocks, for 8x8 images.

    Args:
        shape: (C, H, W) of the images.
        num_classes: rows of the class table, the null class included; 0 for none.
    """

    def __init__(
        self, shape: tuple[int, int, int], num_classes: int, width: int = 256, blocks: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        size, embedding = math.prod(shape), width // 2
        self.embedding = Embedding(embedding, num_classes)
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_MLPBlock(width, embedding, dropout) for _ in range(blocks))
        self.norm = LayerNorm(width)
        self.last = _zeroed(nn.Linear(width, size))

    def forward(self, x: Tensor, condition: Condition, y: Tensor | None = None) -> Tensor:
        e = self.embedding(condition, y)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.last(self.norm(h)).reshape(x.shape)
        return out


class _GroupNorm(nn.Module):
    """Group normalisation without an affine part."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.contiguous(), self.groups)  # in forward mode it takes no other memory layout


class _ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _GroupNorm(_groups(inputs)), _GroupNorm(_groups(outputs))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(e)[:, :, None, None].chunk(2, dim=1)
        h = self.dropout(F.silu(self.norm2(h) * (1 + scale) + shift))
        out: Tensor = self.skip(x) + self.conv2(h)
        return out


class UNet(nn.Module):
    """A small U-Net: residual blocks with FiLM, halved by average pooling, doubled by nearest neighbour.

    Args:
        shape: (C, H, W) of the images; H and W divisible by 2 ** (len(channels) - 1).
        num_classes: rows of the class table, the null class included; 0 for none.
        channels: planes at each resolution.
        blocks: residual blocks a resolution, on the way down; one more on the way up.
        embedding: width of the embedding of noise level and class.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        channels: tuple[int, ...] = (16, 32),
        blocks: int = 1,
        embedding: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(embedding, num_classes)
        self.first = nn.Conv2d(shape[0], channels[0], 3, padding=1)
        down, up = nn.ModuleList(), nn.ModuleList()
        planes, kept = channels[0], [channels[0]]
        for level, width in enumerate(channels):
            for _ in range(blocks):
                down.append(_ResBlock(planes, width, embedding, dropout))
                planes = width
                kept.append(planes)
            if level < len(channels) - 1:
                kept.append(planes)
        self.middle = _ResBlock(planes, planes, embedding, dropout)
        for width in reversed(channels):
            for _ in range(blocks + 1):
                up.append(_ResBlock(planes + kept.pop(), width, embedding, dropout))
                planes = width
        self.down, self.up, self.blocks, self.levels = down, up, blocks, len(channels)
        self.norm = _GroupNorm(_groups(planes))
        self.last = _zeroed(nn.Conv2d(planes, shape[0], 3, padding=1))

    def forward(self, x: Tensor, condition: Condition, y: Tensor | None = None) -> Tensor:
        e = self.embedding(condition, y)
        h = self.first(x)
        kept = [h]
        for index, block in enumerate(self.down):
            if index and index % self.blocks == 0:
                h = F.avg_pool2d(h, 2)
                kept.append(h)
            h = block(h, e)
            kept.append(h)
        h = self.middle(h, e)
        for index, block in enumerate(self.up):
            if index and index % (self.blocks + 1) == 0:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, kept.pop()], dim=1), e)
        out: Tensor = self.last(F.silu(self.norm(h)))
        return out


def _groups(planes: int) -> int:
    """Groups of at least 4 planes, at most 8 groups."""
    return max(n for n in range(1, 9) if planes % n == 0 and (planes // n >= 4 or n == 1))


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
