"""The noises: their distributions, what severities share, and the original's numbers when fed the same draws."""

from __future__ import annotations

import hashlib
import importlib.util
import math

import numpy as np
import pytest
import torch
from harness_corruptions import noise
from harness_corruptions.corruption import Corruption, Table
from harness_corruptions.poisson import poisson
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from harness.randomness import draws_for

TABLES: tuple[Table, ...] = ("imagenet-c", "cifar10-c")
NOISES = {one.name: one for one in noise.CORRUPTIONS}
every_noise = pytest.mark.parametrize("one", noise.CORRUPTIONS, ids=lambda one: one.name)
every_table = pytest.mark.parametrize("table", TABLES)


def images(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return draws_for(ids, 0, "images").integers("x", 0, shape, 256).float() / 255


def corrupted(one: Corruption, ids: Tensor, shape: tuple[int, ...], severity: int, table: Table) -> Tensor:
    (found,) = one.at(images(ids, shape), (severity,), table, draws_for(ids, 1, one.name))
    return found


@settings(max_examples=25, deadline=None)
@given(
    one=st.sampled_from(noise.CORRUPTIONS),
    shape=st.tuples(st.integers(1, 5), st.integers(8, 21), st.integers(8, 21)),
    severity=st.integers(1, 5),
    table=st.sampled_from(TABLES),
)
def test_an_image_of_any_size_is_the_same_whatever_the_batch(
    one: Corruption, shape: tuple[int, ...], severity: int, table: Table
) -> None:
    ids = torch.tensor([3, 70, 2**35])
    together = corrupted(one, ids, shape, severity, table)
    assert together.shape == (3, *shape)
    assert together.dtype == torch.float32
    assert 0 <= together.min() <= together.max() <= 1
    assert torch.equal(together, (together * 255).round() / 255)
    assert torch.equal(corrupted(one, ids[[2, 0]], shape, severity, table), together[[2, 0]])


@every_noise
@every_table
def test_severities_are_those_of_the_same_noise_made_stronger(one: Corruption, table: Table) -> None:
    ids, shape = torch.arange(12), (3, 16, 16)
    x = images(ids, shape)
    found = list(one.at(x, (1, 2, 3, 4, 5), table, draws_for(ids, 1, one.name)))
    alone = [corrupted(one, ids, shape, severity, table) for severity in (1, 2, 3, 4, 5)]
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
    change = torch.stack([(images - x).flatten(1).norm(dim=1) for images in found])
    if one.name in ("shot_noise", "impulse_noise"):  # a larger count, or salt for pepper, is not always further off
        change = change.mean(dim=1)
    assert (change.diff(dim=0) > 0).all()


@every_noise
def test_images_and_draws_are_left_as_they_were(one: Corruption) -> None:
    x = images(torch.arange(2), (1, 9, 9))
    assert one.draw is not None
    for severity in (1, 5):
        parameters = one.severities["imagenet-c"][severity - 1]
        drawn = one.draw(draws_for(torch.arange(2), 0, "t"), 0, (1, 9, 9), parameters)
        kept = {name: values.clone() for name, values in drawn.items()}
        before = x.clone()
        one.apply(x, parameters, drawn, False)
        assert torch.equal(x, before)
        assert all(torch.equal(drawn[name], kept[name]) for name in kept)


def test_gaussian_noise_is_normal_to_its_tails() -> None:
    drawn = noise._draw_normal(draws_for(torch.arange(40), 0, "t"), 0, (3, 81, 81), ())["normal"]
    values = drawn.flatten().double().numpy()
    assert drawn.shape == (40, 3, 81, 81)
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert abs(values.mean()) < 5 / math.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / values.size)
    for bound in (2.0, 3.0, 4.0):
        expected = values.size * 2 * stats.norm.sf(bound)
        assert abs((abs(values) > bound).sum() - expected) < 5 * math.sqrt(expected)
    # The two of a pair, and neighbours, have nothing to do with each other.
    assert abs(stats.pearsonr(values[::2], values[1::2])[0]) < 5 / math.sqrt(values.size / 2)
    first, second = drawn.flatten(1).tensor_split(2, dim=1)
    half = min(first.shape[1], second.shape[1])
    together = stats.pearsonr(first[:, :half].abs().flatten(), second[:, :half].abs().flatten())[0]
    assert abs(together) < 5 / math.sqrt(40 * half)


def test_gaussian_noise_has_the_table_s_deviation_where_nothing_is_clipped() -> None:
    (found,) = NOISES["gaussian_noise"].at(
        torch.full((8, 3, 64, 64), 128 / 255), (5,), "cifar10-c", draws_for(torch.arange(8), 0, "t")
    )
    assert abs(float(found.double().std()) - 0.10) < 1e-3
    assert abs(float(found.double().mean()) - 128 / 255) < 1e-3


def test_speckle_noise_is_in_proportion_to_brightness() -> None:
    drawn = {"normal": torch.tensor([1.0, -1.0, 2.0]).view(1, 1, 1, 3)}
    found = noise.speckle_noise(torch.tensor([0.0, 0.5, 0.4]).view(1, 1, 1, 3), (0.2,), drawn, False)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.4, 0.56]))


def test_impulse_noise_is_salt_and_pepper_in_equal_parts() -> None:
    share, x = 0.27, torch.full((20, 3, 64, 64), 0.5)
    draws = draws_for(torch.arange(20), 0, "t")
    one = NOISES["impulse_noise"]
    weak, strong = one.at(x, (1, 5), "imagenet-c", draws)
    grey = 128 / 255
    count = x.numel()
    for value in (0.0, 1.0):
        hit = int((strong == value).sum())
        assert abs(hit - count * share / 2) < 5 * math.sqrt(count * share / 2)
    assert torch.equal(strong[(strong != 0) & (strong != 1)].unique(), torch.tensor([grey]))
    assert (strong != grey)[weak != grey].all()


@pytest.mark.parametrize("photons", sorted({c[0] for t in TABLES for c in NOISES["shot_noise"].severities[t]}))
def test_poisson_numbers_are_scipy_s_quantiles(photons: float) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.cat(
        [
            torch.randint(2**24, (60_000,), generator=generator),
            torch.arange(400),
            2**24 - 1 - torch.arange(400),
            2**23 + torch.arange(-50, 50),
        ]
    )
    level = torch.randint(256, steps.shape, generator=generator)
    level[-300:-200] = 0
    found = poisson(level, steps.float() * 2.0**-24, photons)
    uniform = (steps.double() + 0.5) * 2.0**-24
    expected = stats.poisson.ppf(uniform.numpy(), level.numpy() / 255 * photons)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_shot_noise_counts_the_photons_of_the_nearest_grey_level() -> None:
    drawn = {"uniform": torch.full((1, 1, 1, 3), 0.5)}
    x = torch.tensor([0.0, 0.2 + 1e-4, 1.0]).view(1, 1, 1, 3)
    found = noise.shot_noise(x, (100.0,), drawn, False)
    expected = stats.poisson.ppf(0.5, [0.0, 20.0, 100.0]) / 100
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float32).clamp(max=1))


GOLDEN = {
    ("shot_noise", "imagenet-c"): "1e0db4ee2a69c138",
    ("shot_noise", "cifar10-c"): "3aad17afa954d39d",
    ("impulse_noise", "imagenet-c"): "58dc29ce5841c36a",
    ("impulse_noise", "cifar10-c"): "25206f06092bdd6e",
}


@pytest.mark.parametrize(("name", "table"), GOLDEN)
def test_noise_made_of_whole_numbers_never_changes(name: str, table: Table) -> None:
    """Bits, comparisons and tables only, so the same on every machine; the others round differently on some."""
    found = corrupted(NOISES[name], torch.tensor([5, 6]), (3, 16, 16), 3, table)
    levels = (found * 255).round().to(torch.uint8).numpy().tobytes()
    assert hashlib.blake2b(levels, digest_size=8).hexdigest() == GOLDEN[name, table]


installed = all(importlib.util.find_spec(name) for name in ("imagecorruptions", "cv2", "skimage"))


@pytest.mark.backends
@pytest.mark.skipif(not installed, reason="imagecorruptions, OpenCV or scikit-image is not installed")
@every_noise
@pytest.mark.parametrize(("side", "severity"), [(32, s) for s in (1, 2, 3, 4, 5)] + [(224, 3)])
def test_fed_the_same_draws_the_original_gives_the_same_image(one: Corruption, side: int, severity: int) -> None:
    from harness_corruptions.feeding import Native, numbers_for
    from harness_corruptions.reference import fed

    ids, shape = torch.tensor([4]), (3, side, side)
    (ours,) = one.at(images(ids, shape), (severity,), "imagenet-c", draws_for(ids, 1, one.name), compat=True)
    parameters = one.severities["imagenet-c"][severity - 1]
    assert one.draw is not None
    drawn = one.draw(draws_for(ids, 1, one.name), 0, shape, parameters)
    image = (images(ids, shape)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    native = Native({name: values[0].numpy() for name, values in drawn.items()}, image, parameters)
    theirs = fed(image, one.name, severity, numbers_for(one.name, native))
    difference = (ours[0] * 255).round().permute(1, 2, 0).numpy() - theirs
    assert abs(difference).max() <= 1
    assert abs(difference).mean() < 0.01
