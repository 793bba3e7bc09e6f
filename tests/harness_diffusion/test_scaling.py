"""Scales and grey levels."""

from __future__ import annotations

import math

import pytest
import torch
from harness_diffusion.scaling import dequantise, log_prob_of_image, quantise, to_image, to_scaled
from hypothesis import given
from hypothesis import strategies as st

from harness.models import bits_per_dim


def test_scaling_there_and_back() -> None:
    x = torch.tensor([0.0, 0.25, 1.0])
    assert to_scaled(x).tolist() == [-1, -0.5, 1]
    assert torch.equal(to_image(to_scaled(x)), x)


def test_a_uniform_density_on_the_scaled_box_is_the_uniform_one_on_images() -> None:
    """1 / 2^D on [-1, 1]^D is 1 on [0, 1]^D: log 0, and log2(levels) bits a dimension."""
    scaled = torch.tensor([-12 * math.log(2)], dtype=torch.float64)
    assert float(log_prob_of_image(scaled, 12)) == 0
    assert float(bits_per_dim(log_prob_of_image(scaled, 12), (3, 2, 2), 256)) == 8


@given(st.sampled_from([2, 17, 256]), st.integers(0, 255), st.floats(0, 1, exclude_max=True, width=32))
def test_dequantised_grey_levels_fill_their_bins(levels: int, k: int, u: float) -> None:
    k %= levels
    x = torch.tensor([k / (levels - 1)])
    spread = dequantise(x, levels, torch.tensor([u]))
    assert float(spread) == pytest.approx((k + u) / levels, abs=1e-6)
    assert float(dequantise(x, levels, torch.tensor([0.5]))) == pytest.approx((k + 0.5) / levels, abs=1e-6)
    if 0.001 < u < 0.999:  # float32 cannot tell where bins meet
        torch.testing.assert_close(quantise(spread, levels), x)


def test_what_lies_outside_gets_the_nearest_grey_level() -> None:
    assert quantise(torch.tensor([-3.0, 1.0, 9.0]), 17).tolist() == [0, 1, 1]
