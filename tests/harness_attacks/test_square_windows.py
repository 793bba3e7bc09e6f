"""The squares that Square Attack tries."""

from __future__ import annotations

import pytest
import torch
from harness_attacks.square import proposals_around, side
from harness_attacks.squares import bumps

from harness.randomness import draws_for


def test_sides_follow_the_papers_schedule() -> None:
    """p = 0.8 of 32 x 32 at first, halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries."""
    found = {query: side(query, 0.8, (1, 3, 32, 32)) for query in (0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 9000)}
    assert found == {0: 29, 10: 29, 11: 20, 50: 20, 51: 14, 201: 10, 501: 7, 1001: 5, 2001: 4, 4001: 3, 9000: 1}
    assert side(0, 1.0, (1, 1, 6, 9)) == 6


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_a_bump_has_norm_one_and_two_signs(size: int, power: int) -> None:
    upright, flat = bumps(size, power)
    assert upright.shape == (size, size)
    assert float(torch.linalg.vector_norm(upright, ord=power)) == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(flat, upright.T)
    assert (upright[: size // 2] > 0).all()
    assert (upright[size // 2 :] < 0).all()


def test_linf_changes_one_square_of_every_sample_and_reaches_every_corner() -> None:
    x = torch.full((300, 2, 5, 7), 0.5)
    draws = draws_for(torch.arange(300), 0)
    proposals = proposals_around(x, "linf", 0.1, draws)
    start = proposals.start()
    assert ((start - x).abs() - 0.1).abs().max() < 1e-6
    assert (start == start[:, :, :1]).all()  # stripes
    grey = proposals.next(x, 3, 2) != x
    assert (grey.sum(dim=(2, 3)) == 4).all()  # a channel is set as a whole
    touched = grey[:, 0].any(dim=0)
    assert touched.all()  # the last row and column too
    again = proposals_around(x, "linf", 0.1, draws).next(x, 3, 2)
    assert torch.equal(again, proposals.next(x, 3, 2))
    assert not torch.equal(again, proposals.next(x, 4, 2))
    # The same window for a sample wherever it stands.
    index = torch.tensor([7, 250])
    assert torch.equal(proposals[index].next(x[index], 70, 2), proposals.next(x, 70, 2)[index])


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.7), ("l1", 2.0)])
def test_l2_and_l1_keep_to_the_budget_and_spend_it(norm: str, eps: float) -> None:
    x = torch.full((50, 3, 10, 12), 0.5)
    proposals = proposals_around(x, norm, eps, draws_for(torch.arange(50), 0))  # type: ignore[arg-type]
    images = proposals.start()
    order = 2 if norm == "l2" else 1
    for query, size in enumerate((7, 5, 3, 1)):
        images = proposals.next(images, query, size)
        change = torch.linalg.vector_norm((images - x).flatten(1).double(), ord=order, dim=1)
        assert change.max() <= eps * (1 + 1e-6)
        assert change.min() >= 0.98 * eps
    assert (images != proposals.start()).any()
