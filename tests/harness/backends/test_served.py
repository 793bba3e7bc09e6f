"""A model as a library sees it: exact differences, booked calls, nothing of the model in the library's hands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.backends.served import ServedModel
from harness.errors import ThreatError
from harness.models import ModelView
from harness.randomness import Draws, draws_for


class Linear(nn.Module):
    """Logits of 1x2x2 images, trainable, shifted and scaled; float64 inside."""

    num_classes = 3

    def __init__(self, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0, dtype=torch.float64).reshape(3, 4).cos())
        self.shift, self.scale = shift, scale

    def logits(self, x: Tensor) -> Tensor:
        return x.double().flatten(1) @ self.weight.T * self.scale + self.shift


class Noisy(Linear):
    stochastic = True

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        return super().logits(x) + draws.normal("noise", 0, (3,), torch.float64)


def served(model: Any, samples: int, rows: slice = slice(None), **more: Any) -> tuple[ServedModel, ModelView]:
    ids = torch.arange(samples)
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    draws = draws_for(ids, 0, "threat")[rows]
    return ServedModel(view, draws, torch.zeros(samples, dtype=torch.int64)[rows], **more), view


def images(rows: int, seed: int = 0) -> Tensor:
    return draws_for(torch.arange(rows), seed, "images").uniform("x", 0, (1, 2, 2))


@pytest.mark.parametrize("centre", ["log-probability", "positive"])
@pytest.mark.parametrize("shift", [0.0, -3e3, -4e5])
def test_differences_survive_whatever_is_added_to_all_classes(centre: Any, shift: float) -> None:
    x = images(5)
    scores = served(Linear(shift), 5, centre=centre)[0](x)
    assert scores.dtype == torch.float32
    exact = Linear().logits(x)
    difference = scores.double() - scores[:, :1].double()
    # The model adds the shift in float64: at 4e5 that resolves 6e-11; float32 would leave 0.03.
    torch.testing.assert_close(difference, (exact - exact[:, :1]).detach(), atol=2e-6, rtol=0)
    if centre == "positive":
        torch.testing.assert_close(scores.amin(dim=1), torch.ones(5))


def test_probabilities_for_those_that_accept_nothing_else() -> None:
    scores = served(Linear(-3e3), 5, centre="probability")[0](images(5))
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(5))


def test_a_class_density_is_served_its_shared_part_removed() -> None:
    class Density(Linear):
        density_tag = "exact"

        def class_log_prob(self, x: Tensor) -> Tensor:
            return Linear.logits(self, x) - 3000.0

    x = images(4)
    view = ModelView(Density(), {"ClassDensity"}, torch.arange(4), 0, "attack")
    scores = ServedModel(view, draws_for(torch.arange(4), 0), torch.zeros(4, dtype=torch.int64))(x)
    torch.testing.assert_close(scores.double(), Linear().logits(x).log_softmax(dim=1).detach(), atol=1e-6, rtol=0)


def test_gradients_are_the_models_class_by_class_and_stop_at_the_image() -> None:
    model = Linear()
    answer, view = served(model, 3, centre="positive")
    x = images(3).requires_grad_()
    scores = answer(x)
    for k in (1, 2):
        x.grad = None
        (scores[:, k] - scores[:, 0]).sum().backward(retain_graph=True)
        wanted = (model.weight[k] - model.weight[0]).detach().float().reshape(1, 1, 2, 2).expand(3, 1, 2, 2)
        torch.testing.assert_close(x.grad, wanted)
    assert model.weight.grad is None
    assert model.weight.requires_grad
    assert view.forwards.tolist() == [1, 1, 1]
    assert view.backwards.tolist() == [2, 2, 2]
    assert answer.gradient_steps.tolist() == [1, 1, 1]


def test_the_model_keeps_its_mode_whatever_is_done_to_what_is_served() -> None:
    model = Linear().train()
    answer, _ = served(model, 1)
    answer.eval().double().requires_grad_(False)
    assert model.training
    assert model.weight.dtype == torch.float64
    assert model.weight.requires_grad
    assert [name for name, _ in answer.named_parameters()] == ["place"]


def test_every_row_is_the_one_samples_own() -> None:
    answer, view = served(Linear(), 4, slice(2, 3))
    answer(images(1))
    answer(images(7))
    assert view.forwards.tolist() == [0, 0, 8, 0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_of_several_samples_the_sum_is_right_and_shares_are_even(calls: list[int]) -> None:
    answer, view = served(Linear(), 4)
    for rows in calls:
        answer(images(rows))
    assert int(view.forwards.sum()) == sum(calls)
    assert int(view.forwards.max() - view.forwards.min()) <= 1


def test_a_random_model_answers_each_call_afresh_whoever_else_is_there() -> None:
    x = images(3)
    alone, _ = served(Noisy(), 3, slice(1, 2))
    first, second = alone(x[1:2]), alone(x[1:2])
    assert not torch.equal(first, second)
    together, _ = served(Noisy(), 3)
    torch.testing.assert_close(together(x)[1:2], first)
    torch.testing.assert_close(together(x)[1:2], second)


def test_gradients_that_vanish_are_counted_while_the_sample_stands() -> None:
    right, wrong = torch.tensor([[[[1.0, 0.5, 0.0, 0.0]]]]), torch.zeros(1, 1, 1, 4)
    wrong[..., 2] = 1.0  # the second class wins there
    assert Linear().logits(right).argmax() == 0
    assert Linear().logits(wrong).argmax() != 0
    answer, _ = served(Linear(scale=1e4), 1)
    for x in (right, right, wrong):
        x = x.clone().requires_grad_()
        (answer(x) * 0.0).sum().backward()
    assert answer.gradient_steps.tolist() == [3]
    assert answer.zero_gradient_steps.tolist() == [2]
    x = right.clone().requires_grad_()
    scores = answer(x)
    (scores * 0.0).sum().backward(retain_graph=True)
    assert answer.zero_gradient_steps.tolist() == [3]
    (scores[:, 1]).sum().backward()  # another class's gradient shows the way: not blind after all
    assert answer.zero_gradient_steps.tolist() == [2]


def test_a_detached_model_is_said_to_be_one() -> None:
    class Detached(Linear):
        def logits(self, x: Tensor) -> Tensor:
            return super().logits(x.detach()).detach()

    answer, _ = served(Detached(), 1)
    with pytest.raises(ThreatError, match="no gradient"):
        answer(images(1).requires_grad_()).sum().backward()
