"""Cells of a 2D decision space are where their class wins; means that lie in no plane are refused."""

from __future__ import annotations

import pytest
import torch
from harness_ib_inn.decision_space import cells, fitted_plane, plane_of
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path
from torch import Tensor

from harness.errors import ModelError


def flat_means(seed: int, classes: int = 6, size: int = 40) -> tuple[Tensor, Tensor]:
    """Means in a random plane (K, D), and their coordinates in it (K, 2)."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, 2, generator=generator)).Q.T
    places = 5 * torch.randn(classes, 2, generator=generator)
    return torch.randn(size, generator=generator) + places @ basis, places


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 8), tilted=st.booleans())
def test_the_cell_around_a_point_is_that_of_its_likeliest_class(seed: int, classes: int, tilted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(classes, 2, generator=generator, dtype=torch.float64)
    prior = (3 * torch.randn(classes, generator=generator) * tilted).double().log_softmax(dim=0)
    polygons = cells(centres, prior, (-8, 8, -6, 6))
    points = torch.rand(300, 2, generator=generator, dtype=torch.float64) * torch.tensor([16, 12]) - torch.tensor(
        [8, 6]
    )
    scores = prior - 0.5 * torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    best = scores.topk(min(2, classes), dim=1).values
    clear = best[:, 0] - best[:, -1] > 1e-9 if classes > 1 else torch.ones(300, dtype=torch.bool)
    for k, polygon in enumerate(polygons):
        inside = torch.zeros(300, dtype=torch.bool)
        if len(polygon) >= 3:
            inside = torch.from_numpy(Path(polygon.numpy()).contains_points(points.numpy()))
        assert torch.equal(inside[clear], (scores.argmax(dim=1) == k)[clear])


def test_cells_fill_the_rectangle_once() -> None:
    centres = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-1.0, 3.0], [2.0, -2.0]])
    polygons = cells(centres, torch.zeros(4), (-4, 5, -3, 4))

    def area(polygon: Tensor) -> float:
        x, y = polygon.T
        return float(0.5 * (x * y.roll(-1) - y * x.roll(-1)).sum().abs())

    assert sum(map(area, polygons)) == pytest.approx(9 * 7)


def test_a_class_that_never_wins_has_an_empty_cell() -> None:
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    polygons = cells(centres, torch.tensor([0.0, -1000.0]), (-3, 3, -3, 3))
    assert len(polygons[1]) == 0
    assert len(polygons[0]) == 4


def test_the_plane_of_flat_means_keeps_decisions() -> None:
    means, _ = flat_means(0)
    plane = plane_of(means)
    z = means[torch.arange(50) % 6] + 2 * torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    inside = torch.cdist(plane.coordinates(z), plane.coordinates(means))
    whole = torch.cdist(z.double(), means.double())
    assert torch.equal(inside.argmin(dim=1), whole.argmin(dim=1))
    gaps = inside.square() - whole.square()
    torch.testing.assert_close(gaps, gaps[:, :1].expand_as(gaps), rtol=0, atol=1e-3)


def test_the_plane_of_a_model_does_not_turn_over_by_chance() -> None:
    means, _ = flat_means(2)
    again = plane_of(means + 1e-7)
    torch.testing.assert_close(plane_of(means).basis, again.basis, rtol=0, atol=1e-4)


def test_means_in_no_plane_are_refused() -> None:
    means, _ = flat_means(3)
    means[0, 7] += 2
    with pytest.raises(ModelError, match="no 2D decision space: fine-tune the model"):
        plane_of(means)
    assert fitted_plane(means)[1] > 0.01


def test_three_means_always_lie_in_a_plane() -> None:
    plane_of(torch.randn(3, 100, generator=torch.Generator().manual_seed(0)))
