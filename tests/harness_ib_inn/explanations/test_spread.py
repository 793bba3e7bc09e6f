"""What each DCT component of the means is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness_ib_inn.spread import accuracy_by_components, components, dct_basis, frequency_order, mean_spread
from scipy.fft import dctn


def test_the_basis_is_orthonormal_and_its_first_component_is_the_pooled_mean() -> None:
    basis = dct_basis(7)
    torch.testing.assert_close(basis @ basis.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-12)
    maps = torch.rand(2, 3, 7, 7)
    torch.testing.assert_close(components(maps)[:, :, 0, 0], 7 * maps.double().mean(dim=(2, 3)))


def test_components_are_scipys_dct() -> None:
    maps = torch.rand(2, 3, 4, 5)
    wanted = dctn(maps.double().numpy(), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(components(maps).numpy(), wanted, atol=1e-12)


def test_they_undo_the_models_inverse_dct(latents: Any) -> None:
    some = latents.make(0)
    found = components(some.to_spatial(some.z))
    torch.testing.assert_close(found, some.z.double().reshape(found.shape), rtol=0, atol=1e-9)


def test_spread_is_the_standard_deviation_over_classes() -> None:
    means = torch.zeros(2, 3, 2, 2)
    means[0, :, 0, 0], means[1, :, 0, 0] = 1, -1  # all channels of the pooled mean
    means[0, 0, 1, 1], means[1, 0, 1, 1] = 3, -3  # one of three
    assert mean_spread(means).tolist() == [[1, 0], [0, 1]]


def test_all_components_decide_as_the_model_does_and_the_first_as_the_pooled_mean_alone(latents: Any) -> None:
    some = latents.make(1, batch=400)
    codes, means = (some.to_spatial(v) for v in (some.z, some.means))
    labels = torch.arange(400) % 7
    found = accuracy_by_components(components(codes), components(means), some.log_prior, labels)
    assert found.shape == (12,)
    assert float(found[-1]) == float((some.log_posterior().argmax(dim=1) == labels).double().mean())
    no_rest = components(means).clone()
    no_rest.flatten(2)[:, :, 1:] = 0
    distance = torch.cdist(components(codes).flatten(1), no_rest.flatten(1)).square()
    wanted = ((some.log_prior.double() - 0.5 * distance).argmax(dim=1) == labels).double().mean()
    assert float(found[0]) == float(wanted)
    assert float(found[0]) < float(found[-1])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 4)])
def test_components_go_by_frequency(height: int, width: int) -> None:
    order = frequency_order(height, width)
    assert order[0] == (0, 0)
    assert order[-1] == (height - 1, width - 1)
    assert len(set(order)) == height * width
