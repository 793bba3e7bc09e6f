"""Median norms at equal gradient budget against Foolbox, ART and torchattacks, on the embedded digits classifiers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness_attacks.cw import CW
from harness_attacks.cw_options import CWOptions
from harness_attacks.minimal_norm import MinimalNorm, MinimalNormOptions
from torch import Tensor

from harness.judge import norm_of
from harness.models import ModelView
from harness.randomness import draws_for
from harness.threats import Batch, Norm

pytestmark = [pytest.mark.backends, pytest.mark.slow]

TOLERANCE = 1.02
STEPS, SEARCH = 100, 9
Peer = Callable[[Any, Tensor, Tensor], Tensor]


def foolbox_attack(name: str, **options: Any) -> Peer:
    def attack(model: Any, x: Tensor, y: Tensor) -> Tensor:
        foolbox = pytest.importorskip("foolbox")
        torch.manual_seed(0)
        kind = getattr(foolbox.attacks, name)
        images: Tensor = kind(**options)(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)[0]
        return images

    return attack


def torchattacks_cw(model: Any, x: Tensor, y: Tensor) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks")
    images: Tensor = torchattacks.CW(model, c=1, kappa=0, steps=STEPS * SEARCH, lr=0.01)(x, y)
    return images


def art_cw(model: Any, x: Tensor, y: Tensor) -> Tensor:
    pytest.importorskip("art")
    estimators = importlib.import_module("art.estimators.classification")
    attacks = importlib.import_module("art.attacks.evasion")
    classifier = estimators.PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = attacks.CarliniL2Method(
        classifier, binary_search_steps=SEARCH, max_iter=STEPS, batch_size=len(x), verbose=False
    )
    return torch.from_numpy(attack.generate(x=x.numpy(), y=y.numpy()))


WALKS: dict[str, tuple[Norm, Peer]] = {
    "foolbox DDN": ("l2", foolbox_attack("DDNAttack", steps=STEPS)),
    "foolbox L2FMN": ("l2", foolbox_attack("L2FMNAttack", steps=STEPS)),
    "foolbox LInfFMN": ("linf", foolbox_attack("LInfFMNAttack", steps=STEPS)),
    "foolbox L1FMN": ("l1", foolbox_attack("L1FMNAttack", steps=STEPS)),
}
CWS: dict[str, Peer] = {
    "foolbox": foolbox_attack("L2CarliniWagnerAttack", binary_search_steps=SEARCH, steps=STEPS),
    "torchattacks": torchattacks_cw,
    "art": art_cw,
}


def median_norm(model: Any, images: Tensor, x: Tensor, y: Tensor, norm: Norm) -> float:
    """Over the initially correct samples, images that do not fool counting as infinitely far."""
    with torch.no_grad():
        right = model.logits(x).argmax(dim=1) == y
        fooled = model.logits(images).argmax(dim=1) != y
    return float(norm_of(images - x, norm).where(fooled, torch.inf)[right].median())


def ours(threat: Any, model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """The images, and the gradients that the costliest sample took."""
    ids = torch.arange(len(x))
    with torch.no_grad():
        clean = model.logits(x)
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    images = threat.run(view, Batch(x, y, ids, draws_for(ids, 0, "threat", "t"), clean))["adversarial"]
    return images, int(view.backwards.max())


@pytest.mark.parametrize("peer", WALKS)
def test_no_median_is_above_that_of_a_peers_walk(digits_cnn: Any, digits: tuple[Tensor, Tensor], peer: str) -> None:
    norm, attack = WALKS[peer]
    images, gradients = ours(MinimalNorm(MinimalNormOptions(norm=norm, steps=STEPS)), digits_cnn, *digits)
    found = median_norm(digits_cnn, images, *digits, norm)
    theirs = median_norm(digits_cnn, attack(digits_cnn, *digits), *digits, norm)
    print(f"{digits_cnn.name}: {norm} median {found:.5f}, {peer} {theirs:.5f}")  # noqa: T201 - read with -s
    assert gradients <= STEPS
    assert found <= theirs * TOLERANCE


@pytest.mark.parametrize("peer", CWS)
def test_no_median_is_above_that_of_a_peers_cw(digits_cnn: Any, digits: tuple[Tensor, Tensor], peer: str) -> None:
    x, y = digits[0][:120], digits[1][:120]
    images, gradients = ours(CW(CWOptions(steps=STEPS, search_steps=SEARCH)), digits_cnn, x, y)
    found = median_norm(digits_cnn, images, x, y, "l2")
    theirs = median_norm(digits_cnn, CWS[peer](digits_cnn, x, y), x, y, "l2")
    print(f"{digits_cnn.name}: cw median {found:.5f}, {peer} {theirs:.5f}")  # noqa: T201 - read with -s
    assert gradients <= STEPS * SEARCH
    assert found <= theirs * TOLERANCE
