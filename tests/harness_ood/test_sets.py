"""What the out-of-distribution sets hold: laws of the noise, what is done to images, grey levels, whose stream."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from harness_ood.sets import CHANGED, NOISE, blurred_along, on_levels
from scipy import ndimage, stats
from torch import Tensor

from harness.randomness import Draws, draws_for


def streams(n: int, seed: int = 0) -> Draws:
    return draws_for(torch.arange(n), seed, "t")


def images(n: int = 6, shape: tuple[int, int, int] = (3, 8, 8), levels: int = 256) -> Tensor:
    level = torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(0))
    return level.float() / (levels - 1)


def test_uniform_noise_takes_every_grey_level_as_often() -> None:
    levels = NOISE["uniform"](streams(200), (3, 8, 8), 17) * 16
    counts = levels.long().flatten().bincount(minlength=17)
    assert counts.numel() == 17
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_a_constant_image_has_one_colour_each_channel_its_own() -> None:
    x = NOISE["constant"](streams(500), (3, 8, 8), 256)
    assert torch.equal(x, x[:, :, :1, :1].expand_as(x))
    colours = x[:, :, 0, 0]
    assert stats.kstest((colours[:, 0] * 255 + 0.5).numpy() / 256, "uniform").pvalue > 1e-4
    assert abs(float(torch.corrcoef(colours.T)[0, 1])) < 5 / 500**0.5


def test_gaussian_noise_is_normal_about_mid_grey_and_clipped() -> None:
    x = NOISE["gaussian"](streams(100), (3, 8, 8), 256).double().flatten()
    inside = ((x > 0) & (x < 1)).double().mean()
    assert inside == pytest.approx(stats.norm.cdf(2) - stats.norm.cdf(-2), abs=0.01)
    assert x.mean() == pytest.approx(0.5, abs=0.01)
    for share in (0.1, 0.3, 0.8):
        assert x.quantile(share) == pytest.approx(stats.norm.ppf(share, 0.5, 0.25), abs=0.02)


def test_rademacher_noise_is_black_or_white() -> None:
    x = NOISE["rademacher"](streams(100), (3, 8, 8), 256)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert x.mean() == pytest.approx(0.5, abs=0.02)


def test_blobs_are_thresholded_blurred_noise() -> None:
    """As SciPy's filter makes them of the same binary noise."""
    draws, shape = streams(4), (3, 20, 14)
    x = NOISE["blobs"](draws, shape, 256)
    binary = (draws.uniform("blobs", 0, shape) < 0.7).double().numpy()
    for ours, noise in zip(x, binary, strict=True):
        theirs = np.round(ndimage.gaussian_filter(noise, 1.5, mode="nearest") * 255) / 255
        theirs[theirs < 0.75] = 0
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)
    assert (x == 0).any(dim=3).any(dim=2).all()
    assert (x > 0).any(dim=3).any(dim=2).all()


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("sigma", [0.5, 2.0, 9.0])
def test_a_blur_is_scipys(dim: int, sigma: float) -> None:
    x = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0)).double()
    theirs = ndimage.gaussian_filter1d(x.numpy(), sigma, axis=dim, mode="nearest")
    np.testing.assert_allclose(blurred_along(x, sigma, dim).numpy(), theirs, atol=1e-12)


def test_rotations_are_quarter_turns_each_as_often() -> None:
    x = images(300)
    turned = CHANGED["rotated"](x, streams(300), 256)
    found = Counter(
        next(k for k in range(4) if torch.equal(out, torch.rot90(image, k, (1, 2))))
        for image, out in zip(x, turned, strict=True)
    )
    assert set(found) == {1, 2, 3}
    assert stats.chisquare(list(found.values())).pvalue > 1e-4


def test_an_oblong_image_is_turned_upside_down() -> None:
    x = images(4, (1, 6, 5))
    assert torch.equal(CHANGED["rotated"](x, streams(4), 256), torch.rot90(x, 2, (2, 3)))


def test_flipped_is_upside_down_and_permuted_keeps_every_pixel() -> None:
    x = images(6, (3, 6, 5))
    assert torch.equal(CHANGED["flipped"](x, streams(6), 256), x.flip(2))
    moved = CHANGED["permuted"](x, streams(6), 256)
    assert not torch.equal(moved, x)
    orders = set()
    for before, after in zip(x.flatten(2), moved.flatten(2), strict=True):
        assert Counter(map(tuple, before.T.tolist())) == Counter(map(tuple, after.T.tolist()))
        orders.add(tuple(after[0].tolist()))
    one = images(1, (1, 6, 5)).expand(50, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in CHANGED["permuted"](one, streams(50), 256)}) == 50
    positions = torch.arange(30.0).view(1, 1, 6, 5).expand(400, -1, -1, -1)
    first = CHANGED["permuted"](positions, streams(400), 256)[:, 0, 0, 0].long().bincount(minlength=30)
    assert stats.chisquare(first.numpy()).pvalue > 1e-4


def test_contrast_is_a_third_about_the_mean() -> None:
    x = images()
    found = CHANGED["contrast"](x, streams(6), 256)
    mean = x.double().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(found.double(), mean + 0.3 * (x - mean), atol=0.5 / 255 + 1e-6, rtol=0)


def test_blurred_removes_detail_and_keeps_brightness() -> None:
    x = images(4, (3, 32, 32))
    found = CHANGED["blurred"](x, streams(4), 256)
    assert (found.flatten(2).std(dim=2) < 0.3 * x.flatten(2).std(dim=2)).all()
    torch.testing.assert_close(found.mean(dim=(2, 3)), x.mean(dim=(2, 3)), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", [*NOISE, *CHANGED])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_set_lies_on_the_datas_grey_levels(name: str, levels: int) -> None:
    for shape in ((1, 8, 8), (3, 6, 5)):
        x = images(5, shape, levels)
        made = NOISE[name](streams(5), shape, levels) if name in NOISE else CHANGED[name](x, streams(5), levels)
        assert made.dtype == torch.float32
        assert made.shape == x.shape
        assert torch.equal(made, on_levels(made, levels))


@pytest.mark.parametrize("name", [*NOISE, *CHANGED])
def test_an_image_is_its_samples_own(name: str) -> None:
    ids = torch.tensor([2, 5, 9, 40, 41])
    x = images(5)

    def made(rows: list[int], seed: int = 0) -> Tensor:
        draws = draws_for(ids[rows], seed, "t")
        return NOISE[name](draws, (3, 8, 8), 256) if name in NOISE else CHANGED[name](x[rows], draws, 256)

    whole = made([0, 1, 2, 3, 4])
    assert torch.equal(made([3, 1]), whole[[3, 1]])
    kept = x.clone()
    made([0, 1, 2, 3, 4], seed=1)
    assert torch.equal(x, kept)
    if name not in ("flipped", "contrast", "blurred"):
        assert not torch.equal(made([0, 1, 2, 3, 4], seed=1), whole)
