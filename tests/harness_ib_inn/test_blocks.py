"""Blocks: exactly invertible, exact log-determinants, and what FrEIA 0.2 and SciPy compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from harness_ib_inn.blocks import (
    CouplingBlock,
    DctPooling,
    DownsamplingCoupling,
    GlobalAffine,
    HaarDownsampling,
    Invertible,
    OrthogonalMixing,
    Permutation,
    dct_matrix,
    haar_orthogonal,
)
from harness_ib_inn.subnetworks import basic, bottleneck, entry, pointwise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

torch.set_num_threads(1)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def shaken(block: Invertible, seed: int = 0) -> Invertible:
    """The block in float64 and eval mode, none of its weights at the start where it changes nothing."""
    draws = generator(seed)
    for parameter in block.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draws)
    return block.double().eval()


def jacobian_log_det(block: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> float:
    """log|det| of the full Jacobian at one image (1, ...)."""
    jacobian = torch.autograd.functional.jacobian(lambda a: block(a)[0], x)
    return float(torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet)


SUBNETWORKS: list[Any] = [
    partial(pointwise, width=4),
    partial(basic, width=4),
    partial(bottleneck, width=3, norm=False),
    partial(entry, width=4),
]
BLOCKS: dict[str, Callable[[int], Invertible]] = {
    "affine": GlobalAffine,
    "orthogonal": lambda c: OrthogonalMixing(c, generator()),
    "permutation": lambda c: Permutation(c, generator()),
    "coupling": lambda c: CouplingBlock(c, SUBNETWORKS[c % 4], 0.7, OrthogonalMixing(c, generator())),
    "downsampling": lambda c: DownsamplingCoupling(
        c, partial(basic, width=4, stride=2), SUBNETWORKS[c % 3], 1.3, Permutation(4 * c, generator())
    ),
    "haar": lambda c: HaarDownsampling(),
}


@pytest.mark.parametrize("name", BLOCKS)
@given(
    channels=st.integers(2, 5), height=st.sampled_from([2, 4]), width=st.sampled_from([2, 4]), seed=st.integers(0, 99)
)
@settings(max_examples=8, deadline=None)
def test_a_block_is_inverted_and_its_log_determinant_is_that_of_the_jacobian(
    name: str, channels: int, height: int, width: int, seed: int
) -> None:
    block = shaken(BLOCKS[name](channels), seed)
    x = torch.randn(2, channels, height, width, generator=generator(seed), dtype=torch.float64)
    y, log_det = block(x)
    assert y.numel() == x.numel()
    assert log_det.dtype == torch.float64
    assert log_det.shape == (2,)
    torch.testing.assert_close(block.inverse(y), x, rtol=0, atol=1e-10)
    assert log_det[1].item() == pytest.approx(jacobian_log_det(block, x[1:]), abs=1e-9)


def test_coefficients_of_a_coupling_stay_inside_the_clamp() -> None:
    block = CouplingBlock(4, partial(basic, width=8, norm=False), 0.7, Permutation(4, generator()))
    for parameter in block.parameters():
        parameter.data += 3.0
    scaled = block.coupling(torch.ones(1, 2, 4, 4), torch.full((1, 2, 4, 4), 9.0))[1]
    assert scaled.item() == pytest.approx(0.7 * 2 * 4 * 4, rel=1e-5)


def test_an_untrained_coupling_changes_nothing_but_the_order() -> None:
    block = CouplingBlock(4, partial(basic, width=8, norm=False), 0.7, Permutation(4, generator()))
    x = torch.randn(3, 4, 4, 4)
    y, log_det = block(x)
    torch.testing.assert_close(block.mixing.inverse(y), x, rtol=1e-5, atol=1e-5)
    assert log_det.abs().max() < 1e-2


def test_orthogonal_matrices_follow_the_haar_measure() -> None:
    """Moments of an entry on O(n): E q^2 = 1/n, E q^4 = 3 / (n (n + 2)); both signs of the determinant."""
    draws, n = generator(), 4
    matrices = torch.stack([haar_orthogonal(n, draws) for _ in range(4000)])
    torch.testing.assert_close(matrices.mT @ matrices, torch.eye(n).double().expand(4000, n, n), rtol=0, atol=1e-12)
    assert 0.45 < (torch.linalg.det(matrices) > 0).double().mean() < 0.55
    assert matrices.mean(dim=0).abs().max() < 0.04
    torch.testing.assert_close(matrices.square().mean(dim=0), torch.full((n, n), 1 / n).double(), rtol=0, atol=0.02)
    fourth = torch.full((n, n), 3 / (n * (n + 2))).double()
    torch.testing.assert_close(matrices.pow(4).mean(dim=0), fourth, rtol=0, atol=0.02)


def test_the_dct_is_scipys_and_orthonormal() -> None:
    fft = pytest.importorskip("scipy.fft")
    shape = (3, 7, 5)
    x = torch.randn(2, *shape, dtype=torch.float64)
    z, log_det = DctPooling(shape)(x)
    wanted = torch.from_numpy(fft.dctn(x.numpy(), axes=(2, 3), norm="ortho"))
    torch.testing.assert_close(z.reshape(2, 35, 3).transpose(1, 2).reshape(2, *shape), wanted)
    torch.testing.assert_close(z[:, :3], x.mean(dim=(2, 3)) * math.sqrt(35))  # mean pooling comes first
    torch.testing.assert_close(z.norm(dim=1), x.flatten(1).norm(dim=1))
    torch.testing.assert_close(DctPooling(shape).inverse(z), x)
    assert log_det.abs().max() == 0
    assert torch.linalg.slogdet(dct_matrix(7)).logabsdet.abs() < 1e-14


# --- FrEIA 0.2 as the oracle. Its semantics, which later versions changed, are pinned by these tests.


class Fixed(nn.Module):
    """A subnetwork of our own, its output scaled: FrEIA multiplies what a subnetwork gives by 0.1."""

    def __init__(self, module: nn.Module, scale: float) -> None:
        super().__init__()
        self.module, self.scale = module, scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out * self.scale


@pytest.mark.parametrize("soft", [True, False])
def test_a_coupling_block_is_freias_all_in_one_block(soft: bool) -> None:
    modules = pytest.importorskip("FrEIA.modules")
    ours = CouplingBlock(6, partial(basic, width=5, norm=False), 0.7, OrthogonalMixing(6, generator()))
    shaken(ours)
    theirs = modules.AllInOneBlock(
        [(6, 4, 4)],
        subnet_constructor=lambda a, b: Fixed(ours.coupling.subnetwork, 10.0),
        affine_clamping=0.7,
        permute_soft=soft,
    ).double()
    # exp(clamp tanh(0.1 a)), 0.1 t; scale 0.1 softplus with beta 1/2, that is 0.2 log(1 + exp(gamma / 2)).
    scale = 0.1 * torch.nn.functional.softplus(ours.affine.gamma.data)
    theirs.global_scale.data = (2 * torch.log(torch.expm1(5 * scale)))[None]
    theirs.global_offset.data = ours.affine.bias.data[None]
    matrix = theirs.w_perm.data[:, :, 0, 0]  # a matrix in 0.2 also for hard permutations
    assert torch.allclose(matrix @ matrix.T, torch.eye(6).double(), atol=1e-6)
    if soft:
        ours.mixing.matrix = matrix.clone()
    else:
        ours.mixing = Permutation(6, generator())
        ours.mixing.order = matrix.argmax(dim=1)
    x = torch.randn(3, 6, 4, 4, dtype=torch.float64)
    (wanted,), wanted_log_det = theirs([x.clone()])
    found, log_det = ours(x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(log_det, wanted_log_det)
    (back,), _ = theirs([wanted], rev=True)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)  # its matrix is float32


def test_wavelets_are_freias_ordered_by_wavelet() -> None:
    modules = pytest.importorskip("FrEIA.modules")
    x = torch.randn(2, 3, 6, 4)
    theirs = modules.HaarDownsampling([(3, 6, 4)], order_by_wavelet=True)
    (wanted,), log_det = theirs([x])
    torch.testing.assert_close(HaarDownsampling()(x)[0], wanted)
    assert float(log_det) == pytest.approx(0.0, abs=1e-5)


def test_pixels_become_channels_in_freias_order() -> None:
    modules = pytest.importorskip("FrEIA.modules")
    x = torch.randn(2, 3, 6, 4)
    (wanted,), _ = modules.IRevNetDownsampling([(3, 6, 4)])([x])
    torch.testing.assert_close(torch.nn.functional.pixel_unshuffle(x, 2), wanted)
