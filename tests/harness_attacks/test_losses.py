"""Losses: closed forms, derivatives, ties, and what changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_attacks.losses import LOSSES, TARGETED_LOSSES, Loss, sharpened
from torch import Tensor

from harness.errors import HarnessError

Z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
Y = torch.arange(40) % 6
T = (Y + 1 + torch.arange(40) % 5) % 6


def both(name: str, z: Tensor) -> list[Loss]:
    return [LOSSES[name](z, Y), TARGETED_LOSSES[name](z, Y, T)]


@pytest.mark.parametrize("name", LOSSES)
def test_the_weights_are_the_derivative(name: str) -> None:
    step = 1e-6
    for kind in (0, 1):
        numeric = torch.zeros_like(Z)
        for k in range(6):
            move = torch.zeros_like(Z)
            move[:, k] = step
            numeric[:, k] = (both(name, Z + move)[kind].values() - both(name, Z - move)[kind].values()) / (2 * step)
        torch.testing.assert_close(both(name, Z)[kind].weights, numeric, rtol=1e-6, atol=1e-6)


def test_values_by_hand() -> None:
    z, y, t = torch.tensor([[5.0, 3.0, 2.0, -1.0, 0.0]]), torch.tensor([0]), torch.tensor([2])
    assert LOSSES["dlr"](z, y).values().item() == pytest.approx(-(5 - 3) / (5 - 2))
    assert TARGETED_LOSSES["dlr"](z, y, t).values().item() == pytest.approx(-(5 - 2) / (5 - (2 + 0) / 2))
    assert TARGETED_LOSSES["margin"](z, y, t).values().item() == -3
    p = z.double().softmax(dim=1)[0]
    assert TARGETED_LOSSES["cross-entropy"](z, y, t).values().item() == pytest.approx((p[2] / (1 - p[2])).log().item())
    assert TARGETED_LOSSES["dlr"](z, y, t).margin.item() == -2


@pytest.mark.parametrize("name", LOSSES)
def test_a_function_added_to_all_logits_changes_nothing(name: str) -> None:
    shift = torch.linspace(-3000, 3000, 40, dtype=torch.float64)[:, None]
    for plain, shifted in zip(both(name, Z), both(name, Z + shift), strict=True):
        torch.testing.assert_close(shifted.weights, plain.weights, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(shifted.values(), plain.values(), rtol=1e-9, atol=1e-9)
        assert plain.weights.sum(dim=1).abs().max() < 1e-12  # so nothing of a shared term reaches the image


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
def test_dlr_and_margin_point_the_same_way_at_any_scale(scale: float) -> None:
    for name in ("dlr", "margin"):
        for plain, scaled in zip(both(name, Z), both(name, Z * scale), strict=True):
            # DLR is flat, and rightly so, where the label is third.
            ways = [w / w.abs().amax(dim=1, keepdim=True).clamp_min(1e-100) for w in (plain.weights, scaled.weights)]
            torch.testing.assert_close(ways[1], ways[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "row",
    [[0.0] * 6, [2, 2, 2, 2, 0, 0], [2, 2, 2, 0, 0, 0], [1, 1, 0, 0, 0, 0], [3, -torch.inf, 1, 0, 0, 0],
     [3, 2, -torch.inf, -torch.inf, -torch.inf, -torch.inf], [1e30, 1e30, -1e30, 0, 0, 0]],
)  # fmt: skip
def test_ties_and_impossible_classes_give_no_nan_and_a_way_to_go(name: str, row: list[float]) -> None:
    z = torch.tensor([row] * 6)
    y = torch.arange(6)
    for loss in (LOSSES[name](z, y), TARGETED_LOSSES[name](z, y.flip(0) * 0, (y.clamp_min(1)))):
        assert not loss.weights.isnan().any()
    tied = LOSSES[name](torch.zeros(1, 6), torch.tensor([2]))
    assert not tied.values().isnan().any()
    assert tied.weights[0, 2] < 0


def test_dlr_needs_three_classes_and_four_with_a_target() -> None:
    two, three, y = torch.zeros(1, 2), torch.zeros(1, 3), torch.tensor([0])
    with pytest.raises(HarnessError, match=r'^the loss dlr needs 3 classes, there are 2: set loss = "margin"$'):
        LOSSES["dlr"](two, y)
    with pytest.raises(HarnessError, match=r"^the targeted loss dlr needs 4 classes, there are 3"):
        TARGETED_LOSSES["dlr"](three, y, y + 1)


def test_ordinary_logits_are_not_scaled_and_odd_ones_to_the_same_spread(digits_cnn: Any, digits: Any) -> None:
    with torch.no_grad():
        logits = digits_cnn.logits(digits[0])
    assert sharpened(logits) is None
    for scale in (1e-4, 1e4):
        factor = sharpened(logits * scale)
        assert factor is not None
        spread = (logits.double() * scale * factor).sort(dim=1).values
        torch.testing.assert_close((spread[:, -1] - spread[:, 4]), torch.full((359,), 10.0).double())
    assert sharpened(logits[:, :2]) is None  # of two classes every loss is the margin
    odd = torch.cat([logits[:1], 100 * logits[1:2], torch.zeros(1, 10)])
    found = sharpened(odd)
    assert found is not None
    assert found[0] == found[2] == 1  # each sample by itself; one without any spread stays
    assert found[1] < 1
