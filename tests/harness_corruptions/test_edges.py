"""Edges, distances and histograms beside OpenCV where it is installed, and by their definitions."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from harness_corruptions.edges import PIXEL, canny, distance, equalized, window_sum
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from .invariants import images

needs_opencv = [
    pytest.mark.backends,
    pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed"),
]


def liquid(height: int, width: int, sigma: float, seed: int) -> Tensor:
    """A plane of drops, (height, width), whole numbers 0 to 255: what spatter looks for edges in."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), sigma) * 0.3 + 0.65
    return torch.from_numpy(np.where(field < 0.68, 0, (field * 255).clip(0, 255))).floor().float()


@pytest.mark.parametrize("opencv", [pytest.param("cv2", marks=needs_opencv)])
@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    sigma=st.floats(0.5, 4),
    seed=st.integers(0, 10**6),
    all_levels=st.booleans(),
)
def test_they_are_opencvs(opencv: str, height: int, width: int, sigma: float, seed: int, all_levels: bool) -> None:
    cv2: Any = pytest.importorskip(opencv)
    plane = (
        (images(1, 1, height, width, seed)[0, 0] * 255).round() if all_levels else liquid(height, width, sigma, seed)
    )
    levels = plane.numpy().astype(np.uint8)
    edges = cv2.Canny(levels, 50, 150)
    np.testing.assert_array_equal(canny(plane[None], 50, 150)[0].numpy(), edges > 0)
    away = np.minimum(cv2.distanceTransform(255 - edges, cv2.DIST_L2, 5), 20)
    ours = distance(torch.from_numpy(edges > 0)[None], 20)[0].numpy() / PIXEL
    np.testing.assert_allclose(ours, away, rtol=0, atol=2e-4)  # OpenCV counts in 2^-16 pixel, or in float32
    np.testing.assert_array_equal(equalized(plane[None])[0].numpy(), cv2.equalizeHist(levels))
    sums = window_sum(plane[None])[0].numpy() / 9
    np.testing.assert_allclose(sums, cv2.blur(levels.astype(np.float64), (3, 3)), rtol=0, atol=1e-3)


def norm(down: Tensor, across: Tensor) -> Tensor:
    """Cost of the shortest chain of steps, in pixels: between two neighbouring directions it is linear."""
    long, short = torch.maximum(down.abs(), across.abs()), torch.minimum(down.abs(), across.abs())
    flat = short * 2.1969 + (long - 2 * short)
    return flat.where(2 * short <= long, (long - short) * 2.1969 + (2 * short - long) * 1.4)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(3, 30), width=st.integers(3, 30), count=st.integers(0, 6), seed=st.integers(0, 10**6))
def test_distance_is_the_least_cost_to_an_edge(height: int, width: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randint(0, side, (count,), generator=generator) for side in (height, width))
    edges = torch.zeros(2, height, width, dtype=torch.bool)
    edges[1, rows, columns] = True
    y, x = torch.arange(height)[:, None, None], torch.arange(width)[:, None]
    costs = torch.cat([norm((y - rows).double(), (x - columns).double()), torch.full((height, width, 1), 20.0)], dim=2)
    found = distance(edges, 20) / PIXEL
    torch.testing.assert_close(found[1].double(), costs.amin(dim=2).clamp(max=20), rtol=0, atol=1e-6)
    assert (found[0] == 20).all()


def test_an_edge_is_followed_from_strong_to_weak() -> None:
    """A step along a column that fades: strong above, weak below, none where it is fainter yet."""
    plane = torch.zeros(1, 40, 12)
    plane[0, :, 6:] = torch.linspace(100, 5, 40).round()[:, None]
    edges = canny(plane, 50, 150)[0]
    size = 4 * torch.linspace(100, 5, 40)
    assert edges[size > 160].any(dim=1).all()
    assert edges[(size > 70) & (size < 140)].any(dim=1).all()
    assert not edges[size < 25].any()
    assert not canny(plane[:, 24:], 50, 200)[0].any()  # the same weak edge without its strong part


def test_equalized_spreads_levels_by_their_ranks() -> None:
    levels = torch.tensor([[[3, 3], [7, 200]], [[9, 9], [9, 9]]])
    assert equalized(levels).tolist() == [[[0, 0], [128, 255]], [[9, 9], [9, 9]]]
