"""What PGD asks of a model: expectation over its randomness, restarts as a union, targets, memory, and bad input."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from harness_attacks.objective import Objective
from harness_attacks.options import PGDOptions
from harness_attacks.pgd import PGD, step_sizes
from pydantic import ValidationError
from torch import Tensor

from harness.errors import HarnessError
from harness.models import ModelView
from harness.randomness import Draws, draws_for
from harness.threats import Batch

GREY = 0.5


class Noisy:
    """Two classes; the score has a large random slope at every pixel, and a small constant one."""

    stochastic = True
    num_classes = 2

    def __init__(self, size: float) -> None:
        self.size = size
        self.asked: list[int] = []

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
        self.asked.append(draws.draw)
        slope = 1 + self.size * draws.normal("slope", 0, x.shape[1:])
        score = 5 - ((x - GREY) * slope).sum(dim=(1, 2, 3))
        return torch.stack([score, -score], dim=1)


def run(model: Any, n: int = 60, shape: tuple[int, ...] = (1, 4, 4), **options: Any) -> tuple[Any, ModelView]:
    """The attack on n grey images of class 0, which the model is said to classify rightly."""
    ids = torch.arange(n)
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    clean = torch.tensor([[1.0] + [0.0] * (model.num_classes - 1)]).expand(n, -1)
    batch = Batch(torch.full((n, *shape), GREY), torch.zeros_like(ids), ids, draws_for(ids, 0, "threat", "pgd"), clean)
    return PGD(PGDOptions(**options)).run(view, batch), view


def test_every_draw_is_used_once_over_steps_and_restarts() -> None:
    model = Noisy(1.0)
    columns, view = run(model, eps=0.1, steps=3, restarts=2, eot=4)
    assert model.asked == list(range(2 * (3 + 1) * 4))
    assert columns["eot"].tolist() == [4] * 60
    assert columns["stochastic"].all()
    assert (view.forwards == 32).all()
    assert (view.backwards == 24).all()


def test_the_variance_of_the_gradient_falls_as_one_over_the_draws() -> None:
    spread = []
    for eot in (1, 16):
        ids = torch.arange(400)
        objective = Objective(ModelView(Noisy(3.0), {"Classifier"}, ids, 0, "attack"), "margin", eot=eot)
        sample = type("Asked", (), {})()
        sample.labels, sample.targets, sample.scale = torch.zeros_like(ids), ids, None
        sample.draws = draws_for(ids, 0, "test")
        point = objective.at(torch.full((400, 1, 4, 4), GREY), sample, 0)
        gradient = point.gradient()
        assert gradient.mean().item() == pytest.approx(2.0, abs=5 * 6 / (eot * 6400) ** 0.5)
        spread.append(gradient.var().item())
    assert spread[0] / spread[1] == pytest.approx(16, rel=0.1)


def test_more_draws_find_better_images() -> None:
    """The expected score falls by the constant slope alone, which one draw hardly shows."""

    def moved(eot: int) -> float:
        return float((run(Noisy(6.0), eps=0.1, steps=10, eot=eot)[0]["adversarial"] - GREY).mean())

    few, many = moved(1), moved(30)
    assert many > 2 * few
    assert many > 0.06


def test_draws_of_a_deterministic_model_change_no_bit_and_cost_nothing(
    attack: Any, plain_cnn: Any, digits: Any
) -> None:
    x, y = digits[0][:60], digits[1][:60]
    once, cheap = attack.counted(plain_cnn, x, y, eps=0.06, steps=5)
    often, same = attack.counted(plain_cnn, x, y, eps=0.06, steps=5, eot=20)
    for name in once:
        if isinstance(once[name], Tensor):
            torch.testing.assert_close(often[name], once[name], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(cheap.forwards, same.forwards)
    assert (often["eot"] == 1).all()
    assert not often["stochastic"].any()


@pytest.mark.parametrize("options", [{"steps": 3}, {"steps": 9}, {"restarts": 3}, {"eot": 6}, {"norm": "l1"}])
def test_no_graph_outlives_a_step(options: dict[str, Any]) -> None:
    """What a forward pass keeps for its backward pass is gone when the next one begins."""
    alive: list[Any] = []
    counts: list[int] = []

    class Kept:
        def __init__(self, value: Tensor) -> None:
            self.value = value
            alive.append(weakref.ref(self))

    class Counting(Noisy):
        def logits(self, x: Tensor, *, draws: Draws) -> Tensor:
            counts.append(sum(ref() is not None for ref in alive))
            alive.clear()
            with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.value):
                return super().logits(torch.sin(x.exp()), draws=draws)

    run(Counting(1.0), n=4, eps=0.1, **{"steps": 3, **options})
    assert len(counts) > 3
    assert set(counts) == {0}


def test_restarts_are_a_union() -> None:
    """Restart k reaches only the samples whose number leaves k: after three, all have fallen, each at its own."""

    class InTurn:
        num_classes = 2
        calls = 0

        def logits(self, x: Tensor) -> Tensor:
            number, self.calls = self.calls, self.calls + 1
            mine = x[:, 0, 0, 0] * 0
            if number % 2:  # the image after the one step
                mine = mine + (self.left == number // 2)
            return torch.stack([0.5 - mine + 0 * x.sum(dim=(1, 2, 3)), mine * 0], dim=1)

    model = InTurn()
    stay = torch.arange(9) % 3

    class Following(InTurn):
        def logits(self, x: Tensor) -> Tensor:
            self.left = stay[stay >= self.calls // 2]  # those that earlier restarts did not fool
            return super().logits(x)

    model = Following()
    columns, _ = run(model, n=9, shape=(1, 2, 2), eps=0.1, steps=1, restarts=3, loss="margin")
    assert columns["restart"].tolist() == stay.tolist()
    assert columns["success_step"].tolist() == [1] * 9


@pytest.mark.parametrize("targets", ["all", 2])
@pytest.mark.parametrize("loss", ["cross-entropy", "margin", "dlr"])
def test_targets_are_tried_in_turn_likeliest_first_and_any_wrong_class_counts(
    attack: Any, scores: Any, targets: Any, loss: str
) -> None:
    """Each sample can be pushed over to its last class only: found by the restart that heads for it."""
    slopes = torch.tensor([0.0, 1.0, -1.0, 0.2, 0.4])

    def net(x: Tensor) -> Tensor:
        moved = (x - GREY).mean(dim=(1, 2, 3))[:, None] * slopes
        return torch.tensor([1.0, 0.2, 0.6, 0.1, 0.0]) + 5 * moved

    x, y = torch.full((4, 1, 3, 3), GREY), torch.zeros(4, dtype=torch.int64)
    columns = attack(scores(net, 5), x, y, eps=0.2, steps=4, targets=targets, loss=loss, random_start=False)
    assert (columns["restart"] == 0).all()  # class 2 is the likeliest, and 0.6 + 5 * 0.2 beats 1
    far = attack(scores(net, 5), x, y, eps=0.05, steps=4, targets=targets, loss=loss, random_start=False)
    assert (far["restart"] == -1).all()
    assert (far["gradient_steps"] == 4 * (4 if targets == "all" else 2)).all()


def test_targets_fool_at_least_as_many(attack: Any, digits_cnn: Any, digits: Any) -> None:
    x, y = digits[0][:150], digits[1][:150]
    eps = 0.18 if "pgd" in digits_cnn.name else 0.07
    plain, many = (
        (digits_cnn.logits(attack(digits_cnn, x, y, eps=eps, steps=15, loss="dlr", **o)["adversarial"]).argmax(1) != y)
        for o in ({}, {"targets": 4})
    )
    assert 0.1 < plain.double().mean() < 0.9
    assert many.sum() >= plain.sum()


def test_a_cosine_starts_at_eps_and_ends_near_nothing(attack: Any, digits_cnn: Any, digits: Any) -> None:
    sizes = step_sizes(PGDOptions(eps=0.2, steps=8, schedule="cosine"))
    assert sizes[0] == 0.2
    assert sizes[4] == pytest.approx(0.1)
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < sizes[-1] < 0.01
    assert step_sizes(PGDOptions(eps=0.2, steps=2, schedule="cosine", step_size=0.1))[0] == 0.1
    x, y = digits[0][:150], digits[1][:150]
    eps = 1.0 if "pgd" in digits_cnn.name else 0.5
    stand = [
        (
            digits_cnn.logits(attack(digits_cnn, x, y, norm="l2", eps=eps, schedule=s)["adversarial"]).argmax(1) == y
        ).sum()
        for s in ("constant", "cosine")
    ]
    assert stand[1] <= stand[0]


class Densities:
    """Class densities only, thousands of nats: the logits of a network plus a part that depends on the image."""

    num_classes = 10
    density_tag = "exact"

    def __init__(self, model: Any) -> None:
        self.model = model

    def class_log_prob(self, x: Tensor) -> Tensor:
        shared = -3000 - 400 * x.double().square().sum(dim=(1, 2, 3))
        scores: Tensor = self.model.logits(x).double() + shared[:, None]
        return scores


def test_a_model_of_class_densities_alone_is_attacked_as_the_classifier_it_is(plain_cnn: Any, digits: Any) -> None:
    x, y = digits[0][:120], digits[1][:120]
    ids = torch.arange(120)
    verdicts = []
    for model, has in ((plain_cnn, "Classifier"), (Densities(plain_cnn), "ClassDensity")):
        view = ModelView(model, {has}, ids, 0, "attack")
        with torch.no_grad():
            clean = ModelView(model, {has}, ids, 0, "eval").logits(x)
        columns = PGD(PGDOptions(eps=0.08, steps=10)).run(
            view, Batch(x, y, ids, draws_for(ids, 0, "threat", "pgd"), clean)
        )
        source = "logits" if has == "Classifier" else "class_log_prob"
        assert columns["loss"] == [f"cross-entropy on {source}"] * 120
        verdicts.append(plain_cnn.logits(columns["adversarial"]).argmax(dim=1) != y)
    assert 0.2 < verdicts[0].double().mean() < 0.8
    assert (verdicts[0] != verdicts[1]).sum() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "crossentropy"}, "Input should be 'cross-entropy', 'margin' or 'dlr'"),
        ({"norm": "l2", "eps": -1}, "-1 is negative: a budget is 0 or more"),
        ({"norm": "l1", "eps": -1}, "-1 is negative: a budget is 0 or more"),
        ({"eot": 0}, "Input should be greater than or equal to 1"),
        ({"targets": 0}, '0 is not a choice of targets: expected "all" or the number of likeliest wrong classes'),
        ({"targets": 3, "target": 1}, "`target` asks for one class, `targets` tries several: give one of them"),
        ({"schedule": "linear"}, "Input should be 'constant' or 'cosine'"),
        ({"evade": "yes"}, "Input should be 'none', 'penalty', 'selective' or 'orthogonal'"),
        ({"evade_fpr": 1.0}, "Input should be less than 1"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PGDOptions(**{"eps": 0.1, **options})
    assert [error["msg"] for error in caught.value.errors()] == [message]


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        ({"norm": "l1", "eps": 128}, 10,
         'pgd: eps 128 is more than the l1 diameter 64 of 1x8x8 images in [0, 1]; did you mean "128/255"?'),
        ({"eps": 0.1, "targets": 10}, 10, 'pgd: 10 targets, but of 10 classes 9 are wrong: set targets = "all"'),
        ({"eps": 0.1, "loss": "dlr"}, 2, 'the loss dlr needs 3 classes, there are 2: set loss = "margin"'),
        ({"eps": 0.1, "loss": "dlr", "targets": "all"}, 3,
         'the targeted loss dlr needs 4 classes, there are 3: set loss = "margin"'),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_data_is_one_line(
    attack: Any, options: dict[str, Any], classes: int, message: str
) -> None:
    with pytest.raises(HarnessError) as caught:
        attack.build(torch.zeros(1, 1, 8, 8), classes, **options)
    assert str(caught.value) == message
