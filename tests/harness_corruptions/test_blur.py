"""The blurs: SciPy's filters, moves followed one by one, and the original's numbers when fed the same draws."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from harness_corruptions import blur, filters
from harness_corruptions.corruption import Corruption, Table
from harness_corruptions.shuffle import origins
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from harness.randomness import draws_for

TABLES: tuple[Table, ...] = ("imagenet-c", "cifar10-c")
BLURS = {one.name: one for one in blur.CORRUPTIONS}
every_blur = pytest.mark.parametrize("one", blur.CORRUPTIONS, ids=lambda one: one.name)
every_table = pytest.mark.parametrize("table", TABLES)
either_way = pytest.mark.parametrize("compat", [False, True], ids=["honest", "compat"])


def images(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return draws_for(ids, 0, "images").integers("x", 0, shape, 256).float() / 255


def photos(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images with structure of every size, as photos have and noise has not."""
    coarse = images(ids, (shape[0], 8, 8))
    large = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
    return ((0.7 * large + 0.3 * images(ids, shape)) * 255).round() / 255


def corrupted(x: Tensor, ids: Tensor, one: Corruption, severity: int, table: Table, compat: bool = False) -> Tensor:
    (found,) = one.at(x, (severity,), table, draws_for(ids, 1, one.name), compat=compat)
    return found


@settings(max_examples=40, deadline=None)
@given(
    one=st.sampled_from(blur.CORRUPTIONS),
    shape=st.tuples(st.integers(1, 5), st.integers(8, 40), st.integers(8, 40)),
    severity=st.integers(1, 5),
    table=st.sampled_from(TABLES),
    compat=st.booleans(),
)
def test_an_image_of_any_size_is_the_same_whatever_the_batch(
    one: Corruption, shape: tuple[int, ...], severity: int, table: Table, compat: bool
) -> None:
    ids = torch.tensor([3, 70, 2**35])
    x = images(ids, shape)
    before = x.clone()
    together = corrupted(x, ids, one, severity, table, compat)
    assert torch.equal(x, before)
    assert together.shape == x.shape
    assert together.dtype == torch.float32
    assert 0 <= together.min() <= together.max() <= 1
    assert torch.equal(together, (together * 255).round() / 255)
    assert torch.equal(corrupted(x[[2, 0]], ids[[2, 0]], one, severity, table, compat), together[[2, 0]])


@every_blur
@every_table
def test_channels_are_blurred_alike(one: Corruption, table: Table) -> None:
    ids = torch.arange(3)
    grey = images(ids, (1, 20, 12))
    found = corrupted(grey.expand(-1, 4, -1, -1).contiguous(), ids, one, 4, table)
    assert torch.equal(found, corrupted(grey, ids, one, 4, table).expand(-1, 4, -1, -1))


@every_blur
@every_table
def test_a_grey_wall_stays_as_it_is(one: Corruption, table: Table) -> None:
    wall = torch.full((2, 3, 16, 11), 77 / 255)
    for severity in (1, 2, 3, 4, 5):
        assert torch.equal(corrupted(wall, torch.arange(2), one, severity, table), wall)


# Glass blur trades distance for rounds and blur from one severity to the next: of ImageNet-C's the first and the last
# are in order, of CIFAR-10-C's not even those.
@either_way
@pytest.mark.parametrize(
    ("name", "table", "severities"),
    [(name, table, (1, 2, 3, 4, 5)) for name in BLURS if name != "glass_blur" for table in TABLES]
    + [("glass_blur", "imagenet-c", (1, 5))],
)
def test_a_higher_severity_changes_images_more(
    name: str, table: Table, severities: tuple[int, ...], compat: bool
) -> None:
    ids = torch.arange(6)
    x = photos(ids, (3, 96, 96) if table == "imagenet-c" else (3, 32, 32))
    found = BLURS[name].at(x, severities, table, draws_for(ids, 1, name), compat=compat)
    change = torch.stack([(image - x).flatten(1).norm(dim=1).mean() for image in found])
    slack = 1e-3 if (name, table) == ("motion_blur", "cifar10-c") else 0.0  # 3 and 4 differ in the far copies only
    assert (change.diff() > -slack).all(), change


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.0, 1.5, 6.0])
@pytest.mark.parametrize("shape", [(8, 8), (21, 9), (40, 33)])
def test_gaussian_blur_is_scipy_s(shape: tuple[int, int], sigma: float) -> None:
    x = images(torch.arange(2), (3, *shape))
    expected = ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(filters.gaussian(x, sigma).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("radius", [0.3, 1, 1.5, 3, 6, 8, 10])
@either_way
@pytest.mark.parametrize("shape", [(8, 8), (9, 30), (40, 33)])
def test_defocus_blur_is_the_mean_over_a_disk_with_a_softened_edge(
    shape: tuple[int, int], radius: float, compat: bool
) -> None:
    reach, taps = (8, 3) if radius <= 8 else (10, 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (x**2 + y**2 <= radius**2).astype(float)
    soft = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * 0.5**2))
    kernel = ndimage.correlate(kernel / kernel.sum(), np.outer(soft, soft) / soft.sum() ** 2, mode="mirror")
    assert radius < 8 or 1.01 < kernel.sum() < 1.014
    kernel /= 1 if compat else kernel.sum()
    image = images(torch.arange(2), (3, *shape))
    expected = ndimage.correlate(image.double().numpy(), kernel[None, None], mode="mirror")
    np.testing.assert_allclose(filters.disk(image, radius, 0.5, compat=compat).numpy(), expected, atol=3e-6)


@pytest.mark.parametrize("table", TABLES)
def test_zoom_factors_are_numpy_s_range(table: Table) -> None:
    for stop, step in BLURS["zoom_blur"].severities[table]:
        assert blur.zoom_factors(stop, step) == tuple(np.arange(1, stop, step).tolist())


@either_way
@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (36, 71), (50, 23)])
def test_zoom_blur_is_scipy_s(shape: tuple[int, int], compat: bool) -> None:
    image = photos(torch.arange(1), (2, *shape))[0]
    factors = blur.zoom_factors(1.31, 0.03) + blur.zoom_factors(1.26, 0.01)
    blackened = 0
    for factor in factors:
        found = filters.zoomed_sum(image[None], (factor,), compat=compat)[0].numpy()
        kept = [math.ceil(side / factor) for side in shape]
        top, left = ((side - k) // 2 for side, k in zip(shape, kept, strict=True))
        middle = image[:, top : top + kept[0], left : left + kept[1]].double().numpy()
        expected = ndimage.zoom(middle, (1, factor, factor), order=1)[:, : shape[0], : shape[1]]
        black = (expected == 0) & (found != 0)
        blackened += int(black.any())
        if not compat:  # only the last row and column can be
            assert not black[:, :-1, :-1].any()
            expected = np.where(black, found, expected)
        np.testing.assert_allclose(found, expected, atol=3e-6)
    assert bool(blackened) == (not compat and shape == (36, 71))


def moved_one_by_one(
    values: NDArray[Any], dy: NDArray[Any], dx: NDArray[Any], reach: int, copies: bool
) -> NDArray[Any]:
    """What the original's loop over pixels means (swaps), and what it does (copies)."""
    height, width = values.shape
    values = values.copy()
    for turn in range(len(dy)):
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                at = (turn, h - reach - 1, w - reach - 1)
                there = h + int(dy[at]), w + int(dx[at])
                here = values[h, w]
                values[h, w] = values[there]
                if not copies:
                    values[there] = here
    return values


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(8, 17), st.integers(8, 17)),
    reach=st.integers(1, 4),
    rounds=st.integers(1, 3),
    copies=st.booleans(),
    seed=st.integers(0, 2**30),
)
def test_moves_made_at_once_are_those_made_one_by_one(
    shape: tuple[int, int], reach: int, rounds: int, copies: bool, seed: int
) -> None:
    drawn = blur._draw_moves(draws_for(torch.arange(3), seed, "t"), 0, (1, *shape), (0.5, reach, rounds))
    dy, dx = drawn["dy"], drawn["dx"]
    assert dy.shape == (3, rounds, max(shape[0] - 2 * reach, 0), max(shape[1] - 2 * reach, 0))
    if dy.numel():
        assert -reach <= min(dy.min(), dx.min()) <= max(dy.max(), dx.max()) < reach
    found = origins(dy, dx, shape, reach, copies=copies).view(3, *shape)
    start = np.arange(shape[0] * shape[1]).reshape(shape)
    for image in range(3):
        expected = moved_one_by_one(start, dy[image].numpy(), dx[image].numpy(), reach, copies)
        np.testing.assert_array_equal(found[image].numpy(), expected)
    if not copies:
        assert torch.equal(found.flatten(1).sort(dim=1).values, torch.from_numpy(start).flatten().expand(3, -1))


def test_a_long_chain_of_moves_is_followed_to_its_end() -> None:
    """Every pixel takes the value of its right-hand neighbour, which took that of its own: all show the last one."""
    dy, dx = torch.zeros(1, 1, 38, 38, dtype=torch.int64), torch.zeros(1, 1, 38, 38, dtype=torch.int64)
    dx[..., :-1] = 1  # reach 2, so a move of 1 is one of the four
    dy, dx = dy[..., :36, :36], dx[..., 2:38, 2:38]
    found = origins(dy, dx, (40, 40), 2, copies=True).view(40, 40)
    assert (found[3:39, 3:39] == torch.arange(3, 39)[:, None] * 40 + 38).all()


def test_the_original_s_swap_duplicates_pixels_and_a_true_one_does_not() -> None:
    drawn = blur._draw_moves(draws_for(torch.arange(1), 0, "t"), 0, (3, 32, 32), (0.7, 1, 2))
    copied = origins(drawn["dy"], drawn["dx"], (32, 32), 1, copies=True)
    swapped = origins(drawn["dy"], drawn["dx"], (32, 32), 1, copies=False)
    assert len(swapped.unique()) == 1024
    assert 400 < len(copied.unique()) < 650  # attacks.md: 509 on one draw


def test_motion_blur_moves_copies_along_the_line() -> None:
    """Each image in its own direction; written again with one shifted copy after the other."""
    radius, sigma, shape = 5, 3.0, (14, 9)
    angle = torch.tensor([-45.0, -20.0, 0.0, 33.0, 45.0, 90.0, -135.0], dtype=torch.float64)
    x = images(torch.arange(len(angle)), (2, *shape))
    found = filters.smear(x, radius, sigma, angle, compat=False)
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])
    for image, degrees in zip(range(len(angle)), angle.tolist(), strict=True):
        expected = np.zeros((2, *shape))
        for step, weight in enumerate(weights / weights.sum()):
            up = math.ceil(step * math.sin(math.radians(degrees)) - 0.5)
            left = math.ceil(step * math.cos(math.radians(degrees)) - 0.5)
            y, x_ = (rows + up).clip(0, shape[0] - 1), (columns + left).clip(0, shape[1] - 1)
            expected += weight * x[image].double().numpy()[:, y, x_]
        np.testing.assert_allclose(found[image].numpy(), expected, atol=3e-6)


def test_motion_longer_than_the_image_darkens_it_only_as_the_original_does() -> None:
    white, angle = torch.ones(2, 1, 8, 8), torch.tensor([0.0, 45.0], dtype=torch.float64)
    honest = filters.smear(white, 20, 15, angle, compat=False)
    torch.testing.assert_close(honest, white)
    weights = np.exp(-(np.arange(41) ** 2) / (2 * 15**2))
    weights /= weights.sum()
    # At 45 degrees the i-th copy is moved by ceil(0.7071 i - 1/2), 8 for the first time at i = 11.
    expected = torch.tensor([weights[:8].sum(), weights[:11].sum()], dtype=torch.float32)
    found = filters.smear(white, 20, 15, angle, compat=True)
    torch.testing.assert_close(found, expected.view(2, 1, 1, 1).expand_as(found))


def test_angles_are_uniform_between_minus_45_and_45_degrees() -> None:
    angle = blur._draw_angle(draws_for(torch.arange(4000), 0, "t"), 0, (3, 8, 8), ())["angle"]
    assert angle.shape == (4000,)
    assert -45 <= angle.min() < -44.8
    assert 44.8 < angle.max() < 45
    assert abs(float(angle.mean())) < 5 * 26 / math.sqrt(4000)


installed = all(importlib.util.find_spec(name) for name in ("imagecorruptions", "cv2", "skimage"))


@pytest.mark.backends
@pytest.mark.skipif(not installed, reason="imagecorruptions, OpenCV or scikit-image is not installed")
@every_blur
@pytest.mark.parametrize(("side", "severity"), [(32, s) for s in (1, 2, 3, 4, 5)] + [(36, 3), (224, 2)])
def test_the_original_gives_the_same_image(one: Corruption, side: int, severity: int) -> None:
    from harness_corruptions.feeding import Native, numbers_for
    from harness_corruptions.reference import fed, run

    ids, shape = torch.tensor([4]), (3, side, side)
    x = photos(ids, shape)
    ours = corrupted(x, ids, one, severity, "imagenet-c", compat=True)
    image = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    if one.draw is None:
        theirs = run(image, one.name, severity)
    else:
        parameters = one.severities["imagenet-c"][severity - 1]
        drawn = one.draw(draws_for(ids, 1, one.name), 0, shape, parameters)
        native = Native({name: values[0].numpy() for name, values in drawn.items()}, image, parameters)
        theirs = fed(image, one.name, severity, numbers_for(one.name, native))
    difference = (ours[0] * 255).round().permute(1, 2, 0).numpy() - theirs
    assert abs(difference).max() <= 1
    assert abs(difference).mean() < 0.06  # defocus of severity 1: of the 29 equal weights, one sum in 29 is a tie
