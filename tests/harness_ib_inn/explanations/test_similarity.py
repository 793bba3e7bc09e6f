"""The expected confidence between two classes: closed form, integral (eq. 22 to 24) and simulation agree."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from harness_ib_inn.similarity import confidence_density, expected_confidence, mean_distances, similarity_order
from scipy.integrate import quad


def rho(s: float, distance: float) -> float:
    """Eq. 22 at c = 1 / (1 + exp(-s)), without the normalisation, and times dc/ds = c (1 - c)."""
    return (2 * math.cosh(s / 2)) * math.exp(-(s**2) / (2 * distance**2))


def test_eq_22_is_written_in_the_logit_here() -> None:
    for c, distance in [(0.6, 0.7), (0.9, 2.0), (0.999, 3.0)]:
        papers = (c - c * c) ** -1.5 * math.exp(-(math.log(1 / c - 1) ** 2) / (2 * distance**2))
        assert rho(math.log(c / (1 - c)), distance) == pytest.approx(papers * c * (1 - c), rel=1e-9)


@pytest.mark.parametrize("distance", [0.2, 1.0, 2.5, 6.0])
def test_the_integrals_of_eq_23_and_24_are_what_the_closed_forms_say(distance: float) -> None:
    def integral(of: Callable[[float], float]) -> float:
        end = distance**2 / 2 + 10 * distance
        return float(quad(of, 0, end, points=[distance**2 / 2], epsabs=0, epsrel=1e-11, limit=400)[0])

    normaliser = integral(lambda s: rho(s, distance))
    assert normaliser == pytest.approx(distance * math.sqrt(2 * math.pi) * math.exp(distance**2 / 8), rel=1e-9)
    expected = integral(lambda s: rho(s, distance) / (1 + math.exp(-s))) / normaliser
    assert expected == pytest.approx(float(expected_confidence(torch.tensor(distance).double())), rel=1e-7)


@pytest.mark.parametrize("distance", [0.3, 1.5, 4.0])
def test_the_density_is_eq_22_over_its_normalisation(distance: float) -> None:
    s = torch.linspace(0, 12, 50, dtype=torch.float64)
    c = s.sigmoid()
    wanted = [rho(float(v), distance) for v in s]
    normaliser = distance * math.sqrt(2 * math.pi) * math.exp(distance**2 / 8)
    found = confidence_density(c, distance) * c * (1 - c) * normaliser
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-7, atol=1e-300)


@pytest.mark.parametrize("distance", [0.5, 2.0, 3.5])
def test_simulated_codes_have_this_mean_confidence(distance: float) -> None:
    """Codes of two Gaussians in 20 dimensions: mean confidence in the likelier class, and its distribution."""
    generator = torch.Generator().manual_seed(int(10 * distance))
    n = 400_000
    means = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    means[1] = means[0] + (means[1] - means[0]) * distance / (means[1] - means[0]).norm()
    z = means[torch.arange(n) % 2] + torch.randn(n, 20, generator=generator, dtype=torch.float64)
    confidence = (-0.5 * torch.cdist(z, means).square()).softmax(dim=1).amax(dim=1)
    error = float(confidence.std()) / math.sqrt(n)
    assert abs(float(confidence.mean()) - float(expected_confidence(torch.tensor(distance)))) < 4 * error
    for low, high in [(0.5, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 0.99)]:
        share = float(((confidence >= low) & (confidence < high)).double().mean())
        c = torch.linspace(low, high, 2001, dtype=torch.float64)
        mass = float(torch.trapezoid(confidence_density(c, distance), c))
        assert share == pytest.approx(mass, abs=4 * math.sqrt(0.25 / n))


def test_far_classes_are_told_apart_for_sure_and_equal_ones_by_a_coin() -> None:
    found = expected_confidence(torch.tensor([0.0, 60.0, 1000.0]))
    assert found.tolist() == [0.5, 1.0, 1.0]
    assert torch.isfinite(confidence_density(torch.tensor([0.5, 0.9, 1 - 1e-12, 1.0]), 60.0)).all()


def test_distances_are_euclidean_and_their_diagonal_is_zero() -> None:
    means = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    found = mean_distances(means)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor([[0, 5, 1], [5, 0, 18**0.5], [1, 18**0.5, 0]]).double())


def test_alike_classes_are_put_side_by_side() -> None:
    at = torch.tensor([0.0, 10.0, 0.1, 10.1, 0.2])[:, None]
    order = similarity_order(mean_distances(at)).tolist()
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert {*order[:2]} == {1, 3} or {*order[3:]} == {1, 3}
    assert similarity_order(mean_distances(at[:2])).tolist() == [0, 1]
