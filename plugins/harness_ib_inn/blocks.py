"""Invertible blocks, each with its exact inverse and its exact log-determinant.

``forward(x) -> (y, log_det)`` takes (B, C, H, W) and gives log|det dy/dx| as float64 (B,): sums over many thousand
entries are formed in float64. ``inverse(y) -> x``. Symbols as in Mackowiak et al. 2021, appendix B.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

Subnetwork = Callable[[int, int], nn.Module]
"""Makes the network that predicts the coefficients of a coupling: (channels in, channels out) -> module."""

_GAMMA = 10.0  # 0.1 softplus(10) = 1.000005
_S0 = 0.1


class Invertible(nn.Module):
    """What all blocks are."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output and log|det dy/dx|, float64 (B,)."""
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        """The block's input."""
        raise NotImplementedError


def no_change(x: Tensor) -> Tensor:
    """The log-determinant of a block that preserves volume: float64 zeros (B,)."""
    return torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)


class AffineCoupling(nn.Module):
    """v = s u + t with s = exp(alpha tanh(a)), the coefficients (a, t) predicted from the other half (equation 13).

    Not a block by itself: it is given what predicts, so that downsampling blocks can predict from another resolution.
    """

    def __init__(self, subnetwork: nn.Module, alpha: float) -> None:
        super().__init__()
        self.subnetwork = subnetwork
        self.alpha = alpha

    def forward(self, u: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        log_s, t = self._coefficients(given)
        return u * log_s.exp() + t, log_s.sum(dim=(1, 2, 3), dtype=torch.float64)

    def inverse(self, v: Tensor, given: Tensor) -> Tensor:
        log_s, t = self._coefficients(given)
        return (v - t) * (-log_s).exp()

    def _coefficients(self, given: Tensor) -> tuple[Tensor, Tensor]:
        a, t = self.subnetwork(given).chunk(2, dim=1)
        return self.alpha * torch.tanh(a), t


class GlobalAffine(Invertible):
    """Scale and bias of each channel, s = 0.1 softplus(gamma), gamma = 10 at first: ActNorm without its data-dependent
    start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), _GAMMA))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._scale()
        log_det = scale.log().sum(dtype=torch.float64) * (x.shape[2] * x.shape[3])
        return x * scale + self.bias, log_det.expand(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        return (y - self.bias) / self._scale()

    def _scale(self) -> Tensor:
        return _S0 * F.softplus(self.gamma)


class OrthogonalMixing(Invertible):
    """A fixed random orthogonal matrix across the channels, from the Haar measure on O(C); volume is preserved.

    Kept in float64 whatever the model computes in: rounded to float32 a matrix is orthogonal to 1e-7 only, which would
    show in the log-determinant.
    """

    matrix: Tensor

    def __init__(self, channels: int, generator: Generator) -> None:
        super().__init__()
        self.register_buffer("matrix", haar_orthogonal(channels, generator))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._times(self.matrix, x), no_change(x)

    def inverse(self, y: Tensor) -> Tensor:
        return self._times(self.matrix.T, y)

    def _times(self, matrix: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", matrix.to(x.dtype), x)


class Permutation(Invertible):
    """A fixed random permutation of the channels: what the authors' released code uses."""

    order: Tensor

    def __init__(self, channels: int, generator: Generator) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(channels, generator=generator))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.order], no_change(x)

    def inverse(self, y: Tensor) -> Tensor:
        return y[:, self.order.argsort()]


def haar_orthogonal(n: int, generator: Generator) -> Tensor:
    """A draw from the Haar measure on O(n), float64 (n, n).

    The Q of a Gaussian matrix, its columns multiplied by the signs of R's diagonal (Mezzadri 2007, *How to generate
    random matrices from the classical compact groups*).
    """
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    out: Tensor = q * r.diagonal().sign()
    return out


class CouplingBlock(Invertible):
    """Affine coupling of the second part given the first, global affine, mixing (figure 9)."""

    def __init__(self, channels: int, subnetwork: Subnetwork, alpha: float, mixing: Invertible) -> None:
        super().__init__()
        self.first = channels - channels // 2
        self.coupling = AffineCoupling(subnetwork(self.first, 2 * (channels // 2)), alpha)
        self.affine = GlobalAffine(channels)
        self.mixing = mixing

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u1, u2 = x[:, : self.first], x[:, self.first :]
        v2, of_coupling = self.coupling(u2, u1)
        y, of_affine = self.affine(torch.cat([u1, v2], dim=1))
        return self.mixing(y)[0], of_coupling + of_affine

    def inverse(self, y: Tensor) -> Tensor:
        v = self.affine.inverse(self.mixing.inverse(y))
        v1, v2 = v[:, : self.first], v[:, self.first :]
        return torch.cat([v1, self.coupling.inverse(v2, v1)], dim=1)


class DownsamplingCoupling(Invertible):
    """A coupling block within which 2x2 pixels become channels (figure 10): C channels in, 4 C at half the size out.

    The second part is transformed given the first at full resolution, by a subnetwork with a strided convolution; then
    the first, reordered, given the second, by one at low resolution; global affine and mixing follow.
    """

    def __init__(
        self, channels: int, strided: Subnetwork, low_resolution: Subnetwork, alpha: float, mixing: Invertible
    ) -> None:
        super().__init__()
        first, second = channels - channels // 2, channels // 2
        self.channels_first = first
        self.second = AffineCoupling(strided(first, 8 * second), alpha)
        self.first = AffineCoupling(low_resolution(4 * second, 8 * first), alpha)
        self.affine = GlobalAffine(4 * channels)
        self.mixing = mixing

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u1, u2 = x[:, : self.channels_first], x[:, self.channels_first :]
        v2, of_second = self.second(F.pixel_unshuffle(u2, 2), u1)
        v1, of_first = self.first(F.pixel_unshuffle(u1, 2), v2)
        y, of_affine = self.affine(torch.cat([v1, v2], dim=1))
        return self.mixing(y)[0], of_second + of_first + of_affine

    def inverse(self, y: Tensor) -> Tensor:
        v = self.affine.inverse(self.mixing.inverse(y))
        v1, v2 = v[:, : 4 * self.channels_first], v[:, 4 * self.channels_first :]
        u1 = F.pixel_shuffle(self.first.inverse(v1, v2), 2)
        u2 = F.pixel_shuffle(self.second.inverse(v2, u1), 2)
        return torch.cat([u1, u2], dim=1)


class HaarDownsampling(Invertible):
    """2x2 pixels a, b, c, d become their orthonormal Haar wavelet coefficients: 4 times the channels at half the size.

    Channels are ordered by wavelet: mean (a + b + c + d)/2 of all channels, then left minus right, upper minus lower,
    diagonal.
    """

    matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        signs = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
        self.register_buffer("matrix", torch.tensor(signs, dtype=torch.float64) / 2, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = x.shape
        cells = F.pixel_unshuffle(x, 2).reshape(batch, channels, 4, height // 2, width // 2)
        waves = torch.einsum("wp,bcphv->bwchv", self.matrix.to(x.dtype), cells)
        return waves.flatten(1, 2), no_change(x)

    def inverse(self, y: Tensor) -> Tensor:
        waves = y.reshape(y.shape[0], 4, -1, *y.shape[2:])
        cells = torch.einsum("wp,bwchv->bcphv", self.matrix.to(y.dtype), waves)
        return F.pixel_shuffle(cells.flatten(1, 2), 2)


class DctPooling(Invertible):
    """Feature maps (B, C, H, W) to (B, C H W): the orthonormal discrete cosine transform of each map, an isometry.

    The first C entries are the maps' zeroth components, sqrt(H W) times their means; then all channels of the next
    component, and so on, components in row-major order of (vertical, horizontal) frequency. The authors' code scales
    the components unequally, which breaks the identity of distances (equation 9) that heat maps rest on; this one does
    not.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("rows", dct_matrix(shape[1]), persistent=False)
        self.register_buffer("columns", dct_matrix(shape[2]), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        waves = self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype).T
        return waves.flatten(2).transpose(1, 2).flatten(1), no_change(x)

    def inverse(self, y: Tensor) -> Tensor:
        channels, height, width = self.shape
        waves = y.reshape(y.shape[0], height * width, channels).transpose(1, 2)
        waves = waves.reshape(y.shape[0], channels, height, width)
        return self.rows.to(y.dtype).T @ waves @ self.columns.to(y.dtype)


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II, float64 (n, n): row k is sqrt(2/n) cos(pi (2 j + 1) k / (2 n)), row 0 sqrt(1/n)."""
    j = torch.arange(n, dtype=torch.float64)
    out = torch.cos(math.pi / (2 * n) * (2 * j[None, :] + 1) * j[:, None]) * math.sqrt(2 / n)
    out[0] /= math.sqrt(2)
    return out
