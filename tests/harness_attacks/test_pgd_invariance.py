"""A network that emits its logits shifted, scaled or with noise is as robust as it is, on the embedded classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

EPS = {"linf": (0.08, 0.18), "l2": (0.5, 0.9), "l1": (1.2, 3.0)}


def shifted(z: Tensor, x: Tensor) -> Tensor:
    return z.double() - 3000


def shifted_by_the_image(z: Tensor, x: Tensor) -> Tensor:
    return z.double() - 3000 - 4e3 * (5 * x.double()).sin().square().sum(dim=(1, 2, 3))[:, None]


WRAPPERS = {
    "shifted": shifted,
    "shifted by the image": shifted_by_the_image,
    "scaled by 1e-4": lambda z, x: z * 1e-4,
    "scaled by 1e4": lambda z, x: z * 1e4,
}


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("loss", ["cross-entropy", "margin", "dlr"])
def test_robust_accuracy_stays_within_its_interval(
    attack: Any, scores: Any, digits_cnn: Any, digits: Any, norm: str, loss: str
) -> None:
    x, y = digits[0][:150], digits[1][:150]
    options = {"norm": norm, "eps": EPS[norm]["pgd" in digits_cnn.name], "steps": 10, "loss": loss}

    def fooled(model: Any) -> Tensor:
        wrong: Tensor = digits_cnn.logits(attack(model, x, y, **options)["adversarial"]).argmax(dim=1) != y
        return wrong

    before = fooled(digits_cnn)
    rate = before.double().mean().item()
    assert 0.05 < rate < 0.95
    for name, wrapper in WRAPPERS.items():
        after = fooled(scores(lambda x, wrapper=wrapper: wrapper(digits_cnn.logits(x), x), 10))
        if "scaled" in name:
            change = abs(after.double().mean().item() - rate)
            assert change <= 1.96 * (rate * (1 - rate) / len(x)) ** 0.5, name
        else:  # beyond rounding nothing changes
            assert (before != after).sum() <= 2, name


def test_rows_tell_what_the_logits_were_multiplied_by(attack: Any, scores: Any, plain_cnn: Any, digits: Any) -> None:
    x, y = digits[0][:20], digits[1][:20]
    plain = attack(plain_cnn, x, y, eps=0.05, steps=1)
    scaled = attack(scores(lambda x: 1e4 * plain_cnn.logits(x), 10), x, y, eps=0.05, steps=1)
    assert (plain["logit_scale"] == 1).all()
    assert ((scaled["logit_scale"] > 1e-5) & (scaled["logit_scale"] < 1e-3)).all()
    assert plain["loss"] == ["cross-entropy on logits"] * 20


class WithNoise:
    """The network, with noise on its logits."""

    stochastic = True
    num_classes = 10

    def __init__(self, model: Any) -> None:
        self.model = model

    def logits(self, x: Tensor, *, draws: Any) -> Tensor:
        logits: Tensor = self.model.logits(x) + 3 * draws.normal("noise", 0, (10,))
        return logits


@pytest.mark.parametrize("eot", [1, 8])
def test_noise_on_the_logits_does_not_make_a_network_robust(attack: Any, plain_cnn: Any, digits: Any, eot: int) -> None:
    """Nor fragile: images are judged by the network itself, whose prediction is that of the mean logits."""
    x, y = digits[0][:180], digits[1][:180]
    before, after = (
        plain_cnn.logits(attack(model, x, y, eps=0.07, steps=15, eot=eot, loss="margin")["adversarial"]).argmax(1) != y
        for model in (plain_cnn, WithNoise(plain_cnn))
    )
    assert 0.2 < before.double().mean() < 0.9
    assert abs(after.double().mean() - before.double().mean()) < 0.08


@pytest.mark.parametrize("steps", [1, 10])
def test_no_budget_breaks_no_random_model(attack: Any, plain_cnn: Any, digits: Any, steps: int) -> None:
    columns = attack(WithNoise(plain_cnn), *digits, eps=0, steps=steps, eot=3)
    assert torch.equal(columns["adversarial"], digits[0])
    assert (columns["success_step"] == -1).all()
