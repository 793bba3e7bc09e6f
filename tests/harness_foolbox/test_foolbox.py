"""What is particular to Foolbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.backends.options import BackendOptions
from harness.errors import HarnessError
from harness.models import ModelView
from harness.randomness import draws_for
from harness.testing import synthetic_data, toy_model
from harness.threats import Batch, Columns, ThreatContext

pytestmark = pytest.mark.backends
pytest.importorskip("foolbox")

DATA = synthetic_data((1, 6, 6), 4)
BUILT = toy_model({"Classifier"}, DATA.facts)


class Constant:
    """Always the class of the first sample, but for a black image."""

    num_classes = 4

    def logits(self, x: Tensor) -> Tensor:
        black = (x.flatten(1).amax(dim=1) == 0).to(x.dtype)[:, None]
        return torch.eye(4)[0] * (1 - black) + torch.eye(4)[1] * black + 0 * x.flatten(1).sum(dim=1)[:, None]


def build(**options: Any) -> Any:
    from harness_foolbox.attack import build

    table = {"norm": "l2", **options}
    return build(BackendOptions.model_validate(table), ThreatContext(DATA.facts, DATA.__class__, Path()))


def attack(model: Any, ids: Tensor, **options: Any) -> tuple[Columns, Tensor]:
    x, y = DATA.load(ids.numpy())
    with torch.no_grad():
        clean = model.logits(x)
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    return build(**options).run(view, Batch(x, y, ids, draws_for(ids, 0, "threat"), clean)), x


@pytest.mark.parametrize(
    "options",
    [
        {"attack": "L2DeepFoolAttack"},
        {"attack": "L2FMNAttack", "arguments": {"steps": 20}},
        {"attack": "BoundaryAttack", "arguments": {"steps": 20}},
        {"attack": "HopSkipJumpAttack", "norm": "linf", "arguments": {"steps": 2}},
        {"attack": "InversionAttack", "norm": "l1"},
        {"attack": "DDNAttack", "eps": 1.5, "arguments": {"steps": 20}},
    ],
    ids=lambda options: options["attack"],
)
def test_attacks_for_the_smallest_norm(options: dict[str, Any]) -> None:
    columns, _ = attack(BUILT.model, torch.arange(4), **options)
    assert columns["claimed"].any()
    with torch.no_grad():
        wrong = BUILT.model.logits(columns["adversarial"]).argmax(dim=1) != DATA.load(torch.arange(4).numpy())[1]
    assert torch.equal(wrong, columns["claimed"])


def test_black_images_of_a_failed_carlini_wagner_are_no_finds() -> None:
    columns, x = attack(
        Constant(),
        torch.tensor([0]),
        attack="L2CarliniWagnerAttack",
        arguments={"steps": 3, "binary_search_steps": 1},
    )
    assert columns["claimed"].tolist() == [True]  # which Foolbox takes for one
    assert torch.equal(columns["adversarial"], x)


def test_no_starting_point_is_a_failure_of_that_sample() -> None:
    columns, x = attack(Constant(), torch.tensor([0]), attack="BoundaryAttack", arguments={"steps": 3})
    assert columns["claimed"].tolist() == [False]
    assert torch.equal(columns["adversarial"], x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "LinfPGD", "eps": 0.1}, '^norm: LinfPGD bounds linf, not l2; set norm = "linf"$'),
        ({"attack": "L0FMNAttack", "eps": 0.1}, "^norm: L0FMNAttack bounds l0, not l2; leave out eps$"),
        ({"attack": "SpatialAttack"}, "^attack: Foolbox has no attack 'SpatialAttack'"),
        ({"attack": "VirtualAdversarialAttack", "eps": 0.1}, "^arguments: VirtualAdversarialAttack needs 'steps'$"),
        ({"attack": "HopSkipJumpAttack", "arguments": {"constraint": "l2"}}, r"^arguments\.constraint: give norm"),
        ({"attack": "BoundaryAttack", "arguments": {"init_attack": "x"}}, "^BoundaryAttack: Foolbox refuses it: "),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        build(**options)
