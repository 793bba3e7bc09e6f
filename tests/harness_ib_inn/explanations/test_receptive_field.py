"""The effective receptive field of networks whose Jacobian is known."""

from __future__ import annotations

import pytest
import torch
from harness_ib_inn.receptive_field import receptive_field, width_at_half
from torch import nn
from torch.nn import functional as F


def test_without_convolutions_it_is_the_block_that_downsampling_gathers() -> None:
    images = torch.rand(3, 1, 8, 8)
    found = receptive_field(lambda x: F.pixel_unshuffle(x, 2), images)
    wanted = torch.zeros(8, 8, dtype=torch.float64)
    wanted[4:6, 4:6] = 1
    assert torch.equal(found.sensitivity, wanted)
    assert (found.column, found.block, found.features) == ((2, 2), (2, 2), 4)


def test_a_linear_network_has_the_absolute_values_of_its_weights() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    found = receptive_field(convolution, torch.rand(4, 3, 7, 7))
    wanted = torch.zeros(7, 7, dtype=torch.float64)
    wanted[2:5, 2:5] = convolution.weight.detach().double().abs().sum(dim=(0, 1))
    torch.testing.assert_close(found.sensitivity, wanted, rtol=1e-6, atol=1e-9)


def test_it_is_a_mean_over_images() -> None:
    images = torch.rand(6, 1, 4, 4)

    def square(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square()

    found = receptive_field(square, images)
    assert float(found.sensitivity[2, 2]) == pytest.approx(float(images[:, 0, 2, 2].mean()), rel=1e-5)
    assert float(found.sensitivity.sum()) == pytest.approx(float(found.sensitivity[2, 2]))


def test_of_many_features_a_part_stands_for_all() -> None:
    images = torch.rand(2, 1, 8, 8)
    found = receptive_field(lambda x: F.pixel_unshuffle(x, 4), images, most_features=4)
    assert found.features == 4
    assert float(found.sensitivity.sum()) == pytest.approx(16)


def test_cross_sections_are_means_over_the_other_direction() -> None:
    found = receptive_field(lambda x: F.pixel_unshuffle(x, 2), torch.rand(1, 1, 8, 8))
    rows, columns = found.profile()
    assert rows.tolist() == [0, 0, 0, 0, 0.25, 0.25, 0, 0]
    assert torch.equal(rows, columns)


@pytest.mark.parametrize(
    ("profile", "width"),
    [
        ([0, 0, 1, 0, 0], 1.0),
        ([0, 0.5, 1, 0.5, 0], 2.0),
        ([0, 0.75, 1, 0.75, 0], 2 + 2 / 3),
        ([1, 1, 1], 3.0),
        ([0, 0, 1], 1.0),
    ],
)
def test_the_width_is_read_off_the_flanks(profile: list[float], width: float) -> None:
    assert width_at_half(torch.tensor(profile)) == pytest.approx(width)
