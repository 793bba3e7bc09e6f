"""Steps put before a classifier that hide its gradients: they move an image little, and their derivative is useless."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.randomness import Draws

Step = Callable[[Tensor], Tensor]  # images (B, C, H, W) to images of the same shape

# Annex K.1 of ITU-T T.81: the luminance table at quality 50.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


class Preprocessed(nn.Module):
    """A classifier of ``step(x)``.

    The adaptive form answers the same and differentiates the step as if it were `backward_step`, by default the
    identity: BPDA, Athalye et al. 2018, section 4.1.
    """

    stochastic = False

    def __init__(self, inner: Any, step: Step, backward_step: Step | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.num_classes = int(inner.num_classes)
        self._step = step
        self._backward_step = backward_step

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner.logits(self._step(x))
        return out

    def adaptive(self) -> Preprocessed:
        return Preprocessed(self.inner, self._straight_through)

    def _straight_through(self, x: Tensor) -> Tensor:
        smooth = x if self._backward_step is None else self._backward_step(x)
        return smooth + (self._step(x.detach()) - smooth).detach()


def quantised(levels: int) -> Step:
    """Rounds to `levels` grey levels (8-bit input: 256); the derivative is zero everywhere."""
    return lambda x: (x * (levels - 1)).round() / (levels - 1)


def thermometer(levels: int) -> Step:
    """The mean of `levels` hard thresholds of a pixel, the thermometer code (Buckman et al. 2018) decoded again.

    The derivative is zero everywhere.
    """

    def step(x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for k in range(levels):
            # sign, because a comparison would cut the graph, which an attack notices.
            total = total + 0.5 * (torch.sign(x - (k + 0.5) / levels) + 1)
        return total / levels

    return step


def squashed(steepness: float) -> Step:
    """A sigmoid around 1/2 so steep that its derivative vanishes away from there."""
    return lambda x: torch.sigmoid(steepness * (x - 0.5))


def rippled(amplitude: float, frequency: float) -> Step:
    """Adds ``amplitude sin(2 pi frequency x)``: a derivative of either sign from one grey value to the next.

    A shattered gradient (Athalye et al. 2018): it is there, it is not zero, and it points nowhere.
    """
    return lambda x: x + amplitude * torch.sin(2 * math.pi * frequency * x)


def jpeg(quality: int) -> Step:
    """JPEG's lossy step, rounding in the 8x8 cosine basis with the luminance table; the derivative is zero.

    `quality` is that of libjpeg, 1 to 100; every channel is treated as luminance.
    """
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = ((torch.tensor(_LUMINANCE) * scale + 50) / 100).floor().clamp(1, 255)
    frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)[None, :]
    basis = torch.cos(math.pi * (2 * place + 1) * frequency / 16) / 2
    basis[0] /= math.sqrt(2)

    def step(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8) * 255 - 128  # (B, C, H/8, W/8, 8, 8)
        transform, divisor = basis.to(x), table.to(x)
        coefficients = transform @ blocks @ transform.T
        coarse = (coefficients / divisor).round() * divisor
        pixels = (transform.T @ coarse @ transform + 128) / 255
        rows = pixels.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)
        return rows[..., :height, :width].clamp(0, 1)

    return step


class Noisy(nn.Module):
    """A classifier of ``x + sigma * noise``, fresh Gaussian noise in every call. The adaptive form averages draws."""

    stochastic = True

    def __init__(self, inner: Any, sigma: float) -> None:
        super().__init__()
        self.inner = inner
        self.num_classes = int(inner.num_classes)
        self.sigma = sigma

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
        out: Tensor = self.inner.logits(x + self.sigma * draws.normal("input", 0, x.shape[1:]).to(x))
        return out

    def adaptive(self) -> Averaged:
        return Averaged(self, 16)


class Averaged(nn.Module):
    """The mean log-softmax of a random classifier over `count` draws: expectation over transformation.

    Athalye et al. 2018, section 4.2.
    """

    stochastic = True

    def __init__(self, inner: Any, count: int) -> None:
        super().__init__()
        self.inner = inner
        self.num_classes = int(inner.num_classes)
        self.count = count

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
        numbers = range(draws.draw * self.count, (draws.draw + 1) * self.count)
        answers = [self.inner.logits(x, draws=draws.numbered(number)).log_softmax(dim=1) for number in numbers]
        return torch.stack(answers).mean(dim=0)
