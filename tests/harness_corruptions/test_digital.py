"""Brightness, contrast, elastic deformation and saturation; JPEG and pixelation have files of their own."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from harness_corruptions.colour import brightness, contrast, luma, saturate
from harness_corruptions.corruption import Corruption
from harness_corruptions.digital import CORRUPTIONS
from harness_corruptions.elastic import elastic_transform
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from .invariants import SIDES, check_images, check_randomness, check_tables, images

each = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)


@each
@settings(max_examples=8, deadline=None)
@given(sides=SIDES, channels=st.sampled_from([1, 3]), severity=st.integers(1, 5))
def test_images(corruption: Corruption, sides: tuple[int, int], channels: int, severity: int) -> None:
    check_images(corruption, sides, channels, severity)


@each
def test_randomness_and_tables(corruption: Corruption) -> None:
    check_randomness(corruption)
    check_tables(corruption)


def test_names_and_groups() -> None:
    assert [(one.name, one.group) for one in CORRUPTIONS] == [
        ("brightness", "weather"),
        ("contrast", "digital"),
        ("elastic_transform", "digital"),
        ("pixelate", "digital"),
        ("jpeg_compression", "digital"),
        ("saturate", "extra"),
    ]


def through_hsv(x: Tensor, change_s: tuple[float, float], change_v: float) -> Tensor:
    """Saturation s -> a s + b and value v -> v + c, both at most 1, by the standard library's conversion."""
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3).double().tolist()
    changed = []
    for red, green, blue in pixels:
        h, s, v = colorsys.rgb_to_hsv(red, green, blue)
        changed.append(colorsys.hsv_to_rgb(h, min(s * change_s[0] + change_s[1], 1), min(v + change_v, 1)))
    return torch.tensor(changed).view(len(x), *x.shape[2:], 3).permute(0, 3, 1, 2)


@pytest.mark.parametrize("c", [0.05, 0.3, 0.5])
def test_brightness_adds_to_the_value(c: float) -> None:
    x = images(2, 3, 12, 9)
    torch.testing.assert_close(brightness(x, (c,), {}, False), through_hsv(x, (1, 0), c), rtol=0, atol=1e-6)
    grey = x[:, :1]
    torch.testing.assert_close(brightness(grey, (c,), {}, False), (grey + c).clamp(max=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("factor", "offset"), [(0.1, 0), (2, 0), (5, 0.1), (20, 0.2)])
def test_saturate_changes_the_saturation(factor: float, offset: float) -> None:
    x = images(2, 3, 12, 9)
    x[1, :, 4:6] = x[1, :1, 4:6]  # grey pixels
    expected = through_hsv(x, (factor, offset), 0)
    torch.testing.assert_close(saturate(x, (factor, offset), {}, True), expected, rtol=0, atol=1e-6)
    honest = saturate(x, (factor, offset), {}, False)
    grey = x.amax(dim=1) == x.amin(dim=1)
    assert grey.any()
    assert torch.equal(honest.permute(0, 2, 3, 1)[grey], x.permute(0, 2, 3, 1)[grey])
    torch.testing.assert_close(
        honest.permute(0, 2, 3, 1)[~grey], expected.permute(0, 2, 3, 1)[~grey], rtol=0, atol=1e-6
    )
    for compat in (False, True):
        assert torch.equal(saturate(x[:, :1], (factor, offset), {}, compat), x[:, :1])


def test_contrast_shrinks_the_distance_to_each_channels_mean() -> None:
    x = images(3, 3, 14, 20) * 0.8 + 0.1
    out = contrast(x, (0.3,), {}, False)
    torch.testing.assert_close(out.mean(dim=(2, 3)), x.mean(dim=(2, 3)), rtol=0, atol=1e-6)
    torch.testing.assert_close(out.std(dim=(2, 3)), 0.3 * x.std(dim=(2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(contrast(x, (1.0,), {}, False), x, rtol=0, atol=1e-6)


def test_luma_of_three_channels_and_of_others() -> None:
    x = torch.eye(3).view(3, 3, 1, 1)
    torch.testing.assert_close(luma(x).flatten(), torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(luma(x[:, :2]).flatten(), torch.tensor([0.5, 0.5, 0.0]))


def still(height: int, width: int) -> dict[str, Tensor]:
    return {
        "across": torch.zeros(1, height, width),
        "down": torch.zeros(1, height, width),
        "points": torch.zeros(1, 3, 2),
    }


@pytest.mark.parametrize("compat", [False, True])
def test_nothing_moves_without_displacements(compat: bool) -> None:
    x = images(1, 3, 17, 23)
    out = elastic_transform(x, (0.1, 0.05, 0.1), still(17, 23), compat)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-5)


def test_a_constant_field_moves_the_image_and_mirrors_its_edge() -> None:
    x = images(1, 3, 16, 20)
    drawn = still(16, 20)
    drawn["across"] += 1  # 0.125 x 16 = 2 pixels to the right: each pixel shows what was there
    out = elastic_transform(x, (0.125, 0.01, 0.0), drawn, False)
    expected = torch.cat([x[..., 2:], x[..., [19, 18]]], dim=3)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compat", [False, True])
def test_the_field_is_that_of_scipy(compat: bool) -> None:
    x, height, width = images(1, 3, 24, 30), 24, 30
    field = torch.linspace(-1, 1, 2 * height * width).sin().mul(40).sin().view(2, 1, height, width)
    out = elastic_transform(x, (0.15, 0.03, 0.0), {"across": field[0], "down": field[1]}, compat)
    moved = [
        ndimage.gaussian_filter(f[0].double().numpy(), (0.03 * height, 0.03 * width), truncate=3) * 0.15 * height
        for f in (field[1], field[0])
    ]
    place = np.mgrid[:height, :width] + np.stack(moved)
    expected = [ndimage.map_coordinates(channel.double().numpy(), place, order=1, mode="reflect") for channel in x[0]]
    torch.testing.assert_close(out[0].double(), torch.tensor(np.stack(expected)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_affine_map_takes_its_points_along(seed: int) -> None:
    height, width = 32, 28
    x = ndimage.gaussian_filter(images(1, 3, height, width, seed)[0].double().numpy(), (0, 2, 2))
    move = torch.tensor([[[0.9, -0.4], [-0.7, 0.8], [0.2, -1.0]]]) * (1 - 2 * (seed % 2))
    drawn = {**still(height, width), "points": move}
    before = np.array([[23, 25], [23, 7], [5, 7]], dtype=float)  # x, y: the centre (14, 16) and a third of 28 around it
    after = before + 0.06 * height * move[0].double().numpy()
    back = np.linalg.solve(np.c_[after, np.ones(3)], before)  # (x', y', 1) -> (x, y)
    matrix, offset = back[:2].T[::-1, ::-1], back[2, ::-1]
    expected = np.stack([ndimage.affine_transform(channel, matrix, offset, order=1, mode="mirror") for channel in x])
    image = torch.tensor(x)[None].float()
    for compat, tolerance in ((False, 1e-4), (True, np.abs(np.diff(x)).max() / 16)):
        out = elastic_transform(image, (0.0, 0.0, 0.06), drawn, compat)
        np.testing.assert_allclose(out[0].numpy(), expected, rtol=0, atol=tolerance)
    assert not torch.equal(out, elastic_transform(image, (0.0, 0.0, 0.06), drawn, False))
