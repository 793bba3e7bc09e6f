"""The l1 ball cut with the box: exact, inside, and as good as can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness_attacks.balls import balls_around
from harness_attacks.l1 import project_l1, sparse_ascent
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from harness.randomness import draws_for


def images(seed: int, n: int, d: int) -> Tensor:
    """Images of which a third of the pixels are exactly 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 1, 1, d, generator=generator) * 1.5 - 0.25).clamp(0, 1)


cases = st.tuples(
    st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([1e-6, 0.01, 0.3, 2.0, 9.0]),
    st.sampled_from([1e-4, 0.1, 1.0, 30.0]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(case=cases)
def test_the_projection_is_the_nearest_point_of_ball_and_box(case: tuple[int, int, float, float]) -> None:
    """By its optimality conditions: what moves freely has been shrunk by the same amount, what is clipped by less."""
    seed, d, eps, far = case
    centre = images(seed, 3, d)
    x = centre + far * torch.randn(centre.shape, generator=torch.Generator().manual_seed(seed + 1))
    kept = x.clone()
    found = project_l1(x, centre, eps)
    assert torch.equal(x, kept)
    assert found.min() >= 0
    assert found.max() <= 1
    moved = (found.double() - centre.double()).flatten(1)
    assert (moved.abs().sum(dim=1) <= eps * (1 + 1e-9)).all()
    again = project_l1(found, centre, eps)
    assert (again - found).abs().max() <= 1e-6 * eps + 6e-8
    asked = (x.double() - centre.double()).flatten(1)
    room = torch.where(asked > 0, 1 - centre.double().flatten(1), centre.double().flatten(1))
    for i in range(3):
        reach = torch.minimum(asked[i].abs(), room[i])
        if reach.sum() <= eps:
            torch.testing.assert_close(moved[i].abs(), reach, rtol=0, atol=1.3e-7)
            continue
        assert moved[i].abs().sum() >= eps - 1.3e-7 * d
        shrunk = asked[i].abs() - moved[i].abs()
        free = (moved[i] != 0) & (room[i] - moved[i].abs() > 2e-7)
        if free.any():
            assert shrunk[free].max() - shrunk[free].min() <= 4e-7
            assert (asked[i].abs()[(moved[i] == 0) & (room[i] > 0)] <= shrunk[free].min() + 4e-7).all()
            clipped = ~free & (moved[i] != 0)
            assert (shrunk[clipped] >= shrunk[free].max() - 4e-7).all()


def test_a_projected_row_does_not_depend_on_its_neighbours() -> None:
    centre = images(1, 30, 50)
    x = (
        centre
        + torch.randn(centre.shape, generator=torch.Generator().manual_seed(2))
        * torch.logspace(-3, 2, 30)[:, None, None, None]
    )
    whole = project_l1(x, centre, 1.5)
    alone = torch.cat([project_l1(x[i : i + 1], centre[i : i + 1], 1.5) for i in range(30)])
    assert torch.equal(whole, alone)


def test_small_numbers_survive() -> None:
    """Gradients of a saturated network are tiny, budgets may be: nothing is lost to rounding."""
    centre = torch.full((2, 1, 1, 8), 0.5)
    found = project_l1(centre + 3.0, centre, 1e-3)
    torch.testing.assert_close((found - 0.5).sum(dim=(1, 2, 3)), torch.full((2,), 1e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("tiny", [1.0, 1e-30])
def test_a_sparse_step_has_length_one_and_pushes_nothing_out_of_the_box(tiny: float) -> None:
    x = images(3, 20, 400)
    gradient = tiny * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    gradient[0] = 0
    way = sparse_ascent(x, gradient)
    torch.testing.assert_close(way[1:].abs().sum(dim=(1, 2, 3)), torch.ones(19))
    assert (way[0] == 0).all()
    assert ((way != 0).sum(dim=(1, 2, 3))[1:] == 4).all()  # 1 %
    assert (way * gradient >= 0).all()
    assert not ((x == 1) & (way > 0)).any()
    assert not ((x == 0) & (way < 0)).any()


def test_steps_reach_the_best_point_for_a_linear_function() -> None:
    """Whose optimum over ball and box is a linear programme."""
    d, eps = 300, 5.0
    x = images(5, 4, d)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    ball = balls_around(x, "l1", eps)
    at = x.clone()
    for size in np.geomspace(1.0, 1e-4, 200):
        ball.step_(at, gradient, float(size))
    gained = ((at - x) * gradient).sum(dim=(1, 2, 3))
    for i in range(4):
        g, c = gradient[i].flatten().double().numpy(), x[i].flatten().double().numpy()
        best = linprog(
            np.concatenate([-g, g]), A_ub=np.ones((1, 2 * d)), b_ub=[eps],
            bounds=[(0, 1 - v) for v in c] + [(0, v) for v in c],
        )  # fmt: skip
        assert gained[i].item() == pytest.approx(-best.fun, rel=0.01)


def test_starts_are_uniform_in_the_l1_ball() -> None:
    """The share of the radius, to the power of the dimension, is uniform; no entry is preferred."""
    n, d = 2000, 5
    centre = torch.full((n, 1, 1, d), 0.5)
    ball = balls_around(centre, "l1", 0.4)
    start = ball.start(centre, draws_for(torch.arange(n), 0, "test"))
    moved = (start - centre).flatten(1).double()
    radius = moved.abs().sum(dim=1) / 0.4
    assert radius.max() <= 1
    level = radius.pow(d).sort().values
    assert (level - torch.linspace(0, 1, n, dtype=torch.float64)).abs().max() < 1.63 / n**0.5  # Kolmogorov, 1 %
    assert moved.mean(dim=0).abs().max() < 0.01
    edge = torch.ones(50, 1, 1, d)
    inside = balls_around(edge, "l1", 0.4).start(edge, draws_for(torch.arange(50), 0, "test"))
    assert inside.max() <= 1
