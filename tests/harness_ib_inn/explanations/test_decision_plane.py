"""The plane of the two likeliest classes: distances kept, mass in the circles, the border where it belongs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_ib_inn.decision_plane import decision_plane, mass_radius

from harness.errors import ModelError


def test_distances_to_the_top_two_are_those_of_the_whole_space_less_what_is_equal(latents: Any) -> None:
    some = latents.make(0)
    plane = decision_plane(some.z[:1], some.means, some.log_prior)
    first, second = plane.classes[:2].tolist()
    along, away = plane.codes[0].tolist()
    z, means = some.z[0].double(), some.means.double()
    to_first, to_second = ((z - means[k]).square().sum().item() for k in (first, second))
    assert along**2 + away**2 + float(plane.beyond[0]) == pytest.approx(to_first, rel=1e-9)
    assert (along - plane.distance) ** 2 + away**2 + float(plane.beyond[0]) == pytest.approx(to_second, rel=1e-9)
    assert plane.distance == pytest.approx(float((means[first] - means[second]).norm()), rel=1e-9)
    assert plane.means[0].tolist() == pytest.approx([0, 0], abs=1e-9)
    assert plane.means[1].tolist() == pytest.approx([plane.distance, 0], abs=1e-9)
    assert plane.dimension == 4  # through five means


def test_the_likeliest_classes_come_first_and_the_border_is_where_they_tie(latents: Any) -> None:
    some = latents.make(1, batch=30)
    for z in some.z:
        plane = decision_plane(z[None], some.means, some.log_prior)
        scores = some.log_prior.double() - 0.5 * (z.double() - some.means.double()).square().sum(dim=1)
        assert plane.classes.tolist() == scores.argsort(descending=True)[:5].tolist()
        first, second = plane.classes[:2].tolist()
        margin = float(scores[first] - scores[second])
        assert (plane.boundary - float(plane.codes[0, 0])) * plane.distance == pytest.approx(margin, abs=1e-6)


def test_a_circle_holds_its_share_of_the_class(latents: Any) -> None:
    some = latents.make(2)
    top = int(decision_plane(some.z[:1], some.means, some.log_prior).classes[0])
    generator = torch.Generator().manual_seed(0)
    samples = some.means[top] + torch.randn(40_000, some.means.shape[1], generator=generator)
    plane = decision_plane(torch.cat([some.z[:1], samples]), some.means, some.log_prior)
    inside = (plane.codes[1:].norm(dim=1) <= plane.radius).double().mean()
    assert float(inside) == pytest.approx(0.9, abs=0.006)
    outside = some.means.shape[1] - plane.dimension
    assert float(plane.beyond[1:].mean()) == pytest.approx(outside, rel=0.01)


def test_radii_are_those_of_the_chi_square_distribution() -> None:
    assert mass_radius(1) == pytest.approx(1.644854, rel=1e-5)
    assert mass_radius(2) == pytest.approx(2.145966, rel=1e-5)


def test_two_classes_have_an_axis_and_nothing_else(latents: Any) -> None:
    some = latents.make(3, classes=2)
    plane = decision_plane(some.z, some.means, some.log_prior)
    assert plane.dimension == 1
    assert torch.equal(plane.codes[:, 1], torch.zeros(5, dtype=torch.float64))


def test_means_that_depend_on_each_other_span_fewer_dimensions() -> None:
    direction = torch.randn(8, generator=torch.Generator().manual_seed(0))
    means = torch.arange(5.0)[:, None] * direction
    plane = decision_plane(means[:1] + 0.1, means, torch.zeros(5))
    assert plane.dimension == 1


def test_equal_means_are_refused() -> None:
    means = torch.zeros(3, 8)
    means[2] = 50
    with pytest.raises(ModelError, match="classes 0 and 1 have the same mean"):
        decision_plane(torch.zeros(1, 8), means, torch.zeros(3))
