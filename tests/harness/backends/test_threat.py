"""What a library returns is held to box and budget, and what goes wrong in it is one line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.backends.options import BackendOptions
from harness.backends.served import ServedModel
from harness.backends.threat import BackendThreat, Library, Returned, inside
from harness.errors import HarnessError, ThreatError, needs_trace
from harness.loading import BUDGET_TOLERANCE
from harness.models import ModelView
from harness.randomness import Draws, draws_for
from harness.threats import Batch, Budget


class Brightness:
    """Class 1 where the mean is above one half, else class 0."""

    num_classes = 2

    def logits(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


class Random(Brightness):
    stochastic = True

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        return super().logits(x) + 1e-3 * draws.normal("noise", 0, (2,))


LEVELS = torch.tensor([0.2, 0.4, 0.9, 0.4])
X = LEVELS[:, None, None, None].expand(4, 1, 2, 2).contiguous()
Y = torch.tensor([0, 0, 1, 1])  # the last is misclassified


def run(attack: Library, model: Any = None, **options: Any) -> tuple[dict[str, Any], ModelView]:
    threat = BackendThreat(
        "toy",
        BackendOptions.model_validate({"attack": "Toy", "norm": "linf", **options}),
        attack,
        files=(),
        centre="log-probability",
        budget_given=True,
    )
    model = Brightness() if model is None else model
    ids = torch.arange(4)
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    clean = Brightness().logits(X)
    return dict(threat.run(view, Batch(X, Y, ids, draws_for(ids, 0, "threat"), clean))), view


def brighten(amount: float) -> Library:
    return lambda served, x, y, seed: Returned(x + amount)


def test_only_what_is_right_is_attacked_and_booked_to_its_sample() -> None:
    seen: list[int] = []

    def attack(served: ServedModel, x: Tensor, y: Tensor, seed: int) -> Returned:
        seen.append(len(x))
        served(x.expand(3, -1, -1, -1))
        return Returned(x + 0.15)

    columns, view = run(attack, eps=0.2)
    assert seen == [1, 1, 1]
    assert view.forwards.tolist() == [4, 4, 4, 0]  # three rows, and one more for what the library would claim
    assert columns["claimed"].tolist() == [False, True, False, False]
    assert torch.equal(columns["adversarial"][3], X[3])
    torch.testing.assert_close(columns["adversarial"][1], X[1] + 0.15)


def test_together_in_one_call() -> None:
    seen: list[int] = []

    def attack(served: ServedModel, x: Tensor, y: Tensor, seed: int) -> Returned:
        seen.append(len(x))
        return Returned(x + 0.15, y == 0)

    columns, view = run(attack, eps=0.2, together=True)
    assert seen == [3]
    assert columns["claimed"].tolist() == [True, True, False, False]  # as the library says
    assert view.forwards.tolist() == [0, 0, 0, 0]
    with pytest.raises(ThreatError, match="leave out together"):
        run(attack, Random(), eps=0.2, together=True)


def test_what_leaves_the_budget_is_a_failure_whatever_is_claimed() -> None:
    columns, _ = run(brighten(0.3), eps=0.2)
    assert columns["claimed"].tolist() == [False, True, False, False]
    assert columns["refused"].tolist() == [True, True, False, False]  # 0.9 is stopped by the box
    assert torch.equal(columns["adversarial"][:2], X[:2])
    unbounded, _ = run(brighten(0.3))
    assert not unbounded["refused"].any()
    torch.testing.assert_close(unbounded["adversarial"][1], X[1] + 0.3)


def test_what_is_not_finite_is_a_failure() -> None:
    columns, _ = run(lambda served, x, y, seed: Returned(x * math.nan))
    assert columns["refused"].tolist() == [True, True, True, False]
    assert torch.equal(columns["adversarial"], X)


def test_no_budget_no_attack() -> None:
    def attack(served: ServedModel, x: Tensor, y: Tensor, seed: int) -> Returned:
        raise AssertionError("called")

    columns, view = run(attack, eps=0)
    assert torch.equal(columns["adversarial"], X)
    assert int(view.forwards.sum()) == 0


def test_randomness_is_the_samples_own() -> None:
    def attack(served: ServedModel, x: Tensor, y: Tensor, seed: int) -> Returned:
        noise = torch.rand(x.shape) + torch.from_numpy(np.random.RandomState().rand(*x.shape))
        return Returned(x + 0.01 * noise.float())

    first, again = run(attack, eps=0.1)[0]["adversarial"], run(attack, eps=0.1)[0]["adversarial"]
    assert torch.equal(first, again)
    assert not torch.allclose(first[0] - X[0], first[1] - X[1])


def test_a_fault_of_the_library_is_one_line_with_its_trace_kept() -> None:
    def attack(served: ServedModel, x: Tensor, y: Tensor, seed: int) -> Returned:
        raise ValueError("no\nluck")

    with pytest.raises(ThreatError) as caught:
        run(attack, eps=0.1)
    assert str(caught.value) == "toy: Toy failed on 1 sample(s) from 0: ValueError: no luck"
    assert needs_trace(caught.value)

    def mendable(served: ServedModel, x: Tensor, y: Tensor, seed: int) -> Returned:
        raise HarnessError("mend this")

    with pytest.raises(HarnessError, match=r"^mend this$"):
        run(mendable, eps=0.1)


def test_a_patch_is_no_image() -> None:
    with pytest.raises(ThreatError, match=r"returned \(1, 2\) for 1 image\(s\), not an image for each"):
        run(lambda served, x, y, seed: Returned(x[0, 0, :1]), eps=0.1)


@given(st.sampled_from(["linf", "l2", "l1"]), st.floats(1e-3, 3.0), st.floats(0.0, 2.0), st.integers(0, 2**20))
def test_images_are_inside_box_and_budget_or_clean(norm: Any, eps: float, reach: float, seed: int) -> None:
    draws = draws_for(torch.arange(3), seed)
    x = draws.uniform("x", 0, (1, 3, 3))
    images = x + reach * eps * draws.normal("move", 0, (1, 3, 3))
    kept, refused = inside(images, x, Budget(norm, eps))
    assert kept.dtype == x.dtype
    assert float(kept.min()) >= 0
    assert float(kept.max()) <= 1
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    moved = (kept.double() - x.double()).flatten(1).norm(order, dim=1)
    assert (moved <= eps * (1 + BUDGET_TOLERANCE) + BUDGET_TOLERANCE).all()
    clipped = images.clamp(0, 1)
    fits = (clipped.double() - x.double()).flatten(1).norm(order, dim=1) <= eps
    assert not (refused & fits).any()
    assert torch.equal(kept[fits], clipped[fits])
    assert torch.equal(kept[refused], x[refused])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rounding_over_the_budget_is_pulled_back(norm: Any) -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    images = x + 0.1 * (1 + 5e-5)
    eps = {"linf": 0.1, "l2": 0.2, "l1": 0.4}[norm]
    kept, refused = inside(images, x, Budget(norm, eps))
    assert not refused.any()
    torch.testing.assert_close(kept, x + 0.1, atol=1e-6, rtol=0)
    assert inside(x + 0.1 * 1.001, x, Budget(norm, eps))[1].all()
