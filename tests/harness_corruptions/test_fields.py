"""Smooth random fields: their numbers, and their smoothing beside SciPy's."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from harness_corruptions.fields import gaussian_matrix, normal_field, smooth, uniform_field
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from harness.randomness import draws_for


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    sigma=st.tuples(st.floats(0.1, 7), st.floats(0.1, 7)),
    truncate=st.sampled_from([3.0, 4.0]),
    edge=st.sampled_from(["reflect", "nearest"]),
)
def test_smoothing_is_scipys(
    height: int, width: int, sigma: tuple[float, float], truncate: float, edge: Literal["reflect", "nearest"]
) -> None:
    field = normal_field(draws_for(torch.arange(2), 0), "field", 0, (height, width)).double()
    expected = [ndimage.gaussian_filter(one.numpy(), sigma, mode=edge, truncate=truncate) for one in field]
    for one, other in zip(smooth(field, sigma, truncate, edge), expected, strict=True):
        torch.testing.assert_close(one, torch.from_numpy(other), rtol=0, atol=1e-12)


def test_no_width_is_no_smoothing() -> None:
    matrix = gaussian_matrix(9, 0.0, 3, "reflect", torch.float64, torch.device("cpu"))
    assert torch.equal(matrix, torch.eye(9, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (5, 7), (128, 128)])
def test_numbers_are_those_of_the_sample(shape: tuple[int, ...]) -> None:
    draws = draws_for(torch.tensor([2, 5, 8]), 0)
    for field in (uniform_field, normal_field):
        whole = field(draws, "field", 0, shape)
        assert whole.shape == (3, *shape)
        assert torch.equal(field(draws[[2, 0]], "field", 0, shape), whole[[2, 0]])
        assert not torch.equal(field(draws, "field", 1, shape), whole)


def test_distributions() -> None:
    draws = draws_for(torch.arange(16), 0)
    uniform = uniform_field(draws, "u", 0, (100, 100)).flatten().double()
    assert uniform.abs().max() <= 1
    assert abs(uniform.mean()) < 0.005
    assert abs(uniform.var() - 1 / 3) < 0.003
    normal = normal_field(draws, "n", 0, (100, 100)).flatten().double()
    assert abs(normal.mean()) < 0.01
    assert abs(normal.var() - 1) < 0.015
    assert abs(normal.pow(4).mean() - 3) < 0.1
    assert abs((normal.abs() < 1).double().mean() - 0.6827) < 0.005
