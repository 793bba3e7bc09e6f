"""Grey levels and their bits: exact, inside the range, and what is off the grid is seen."""

from __future__ import annotations

import torch
from harness_bitflip.grey_levels import bits_of, flip_bit, from_levels, on_grid
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(2, 256))
def test_every_level_is_on_the_grid_and_comes_back_bit_for_bit(levels: int) -> None:
    level = torch.arange(levels).view(1, 1, 1, -1)
    for x in (level.float() / (levels - 1), level.float() * (1 / (levels - 1)), from_levels(level, levels)):
        found = on_grid(x, levels)
        assert torch.equal(found.level, level)
        assert not found.off.any()
    assert torch.equal(from_levels(level, levels), level.float() / (levels - 1))


@given(st.integers(2, 256), st.data())
def test_a_flip_changes_one_bit_or_is_not_made(levels: int, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, bits_of(levels) - 1))
    level = torch.arange(levels).view(1, 1, 1, -1)
    found = flip_bit(level, bit, torch.ones_like(level, dtype=torch.bool), levels)
    assert torch.equal(found.made, ~found.not_made)
    assert ((found.level ^ level)[found.made] == 1 << bit).all()
    assert torch.equal(found.level[found.not_made], level[found.not_made])
    assert found.level.min() >= 0
    assert found.level.max() < levels
    # Flipping twice is the identity, so a flip that is made can be made back.
    again = flip_bit(found.level, bit, found.made, levels)
    assert torch.equal(again.level, level)
    if levels & (levels - 1) == 0:
        assert found.made.all()


def test_of_seventeen_levels_only_the_largest_cannot_flip_its_least_bit() -> None:
    level = torch.arange(17).view(1, 1, 1, -1)
    found = flip_bit(level, 0, torch.ones_like(level, dtype=torch.bool), 17)
    assert found.not_made.flatten().nonzero().flatten().tolist() == [16]
    change = from_levels(found.level, 17) - from_levels(level, 17)
    torch.testing.assert_close(change[found.made].abs(), torch.full((16,), 1 / 16))


def test_what_was_not_chosen_stays() -> None:
    level = torch.arange(8).view(1, 1, 1, -1)
    chosen = (level % 2 == 0) & (level > 2)
    found = flip_bit(level, 1, chosen, 8)
    assert found.level.flatten().tolist() == [0, 1, 2, 3, 6, 5, 4, 7]
    assert torch.equal(found.made, chosen)
    assert not found.not_made.any()


def test_a_thousandth_of_a_level_is_off_the_grid() -> None:
    x = torch.tensor([0.0, 100 / 255, 100.001 / 255, 100.4 / 255, 1.0]).view(1, 1, 1, -1)
    found = on_grid(x, 256)
    assert found.off.flatten().tolist() == [False, False, True, True, False]
    assert found.level.flatten().tolist() == [0, 100, 100, 100, 255]
