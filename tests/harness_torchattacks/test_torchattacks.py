"""What is particular to torchattacks."""

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
torchattacks = pytest.importorskip("torchattacks")

DATA = synthetic_data((1, 6, 6), 4)
BUILT = toy_model({"Classifier"}, DATA.facts)


class Shifted(torch.nn.Module):
    """The toy's logits as a generative classifier would give them: -3000 nats each, nearly."""

    num_classes = 4

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = BUILT.model.logits(x).double() - 3000.0
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


def build(**options: Any) -> Any:
    from harness_torchattacks.attack import build

    table = {"attack": "PGD", "norm": "linf", "eps": 0.1, **options}
    return build(BackendOptions.model_validate(table), ThreatContext(DATA.facts, DATA.__class__, Path()))


def attack(model: Any, **options: Any) -> Columns:
    ids = torch.arange(6)
    x, y = DATA.load(ids.numpy())
    with torch.no_grad():
        clean = model.logits(x)
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    columns: Columns = build(**options).run(view, Batch(x, y, ids, draws_for(ids, 0, "threat"), clean))
    return columns


def test_cw_is_blind_to_shifted_logits_by_itself_and_sees_through_the_harness() -> None:
    ids = torch.arange(6)
    x, y = DATA.load(ids.numpy())
    direct = torchattacks.CW(Shifted(), c=10, steps=30)(x, y)
    with torch.no_grad():
        assert torch.equal(Shifted()(direct).argmax(dim=1), y)  # the library finds nothing
    options: dict[str, Any] = {"attack": "CW", "norm": "l2", "eps": None, "arguments": {"c": 10, "steps": 30}}
    served = attack(Shifted(), **options)
    assert served["claimed"].all()
    torch.testing.assert_close(served["adversarial"], attack(BUILT.model, **options)["adversarial"])


@pytest.mark.parametrize("name", ["Square", "FAB", "APGDT"])
def test_seed_norm_and_classes_are_handed_over(name: str) -> None:
    arguments = {"n_queries": 30} if name == "Square" else {"steps": 5}
    first = attack(BUILT.model, attack=name, eps=0.2, arguments=arguments)
    again = attack(BUILT.model, attack=name, eps=0.2, arguments=arguments)
    assert first["claimed"].any()
    assert torch.equal(first["adversarial"], again["adversarial"])


def test_a_step_size_that_is_not_given_follows_the_budget() -> None:
    x = DATA.load(torch.arange(6).numpy())[0]
    moved = attack(BUILT.model, eps=0.2, arguments={"steps": 1, "random_start": False})["adversarial"] - x
    torch.testing.assert_close(moved.abs().amax(), torch.tensor(0.05), atol=1e-6, rtol=0)  # its default is eps / 4
    moved = attack(BUILT.model, eps=0.2, arguments={"steps": 1, "random_start": False, "alpha": "1/10"})["adversarial"]
    torch.testing.assert_close((moved - x).abs().amax(), torch.tensor(0.1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["seed", "n_classes", "norm", "eps"])
def test_what_the_harness_sets_is_not_an_argument(name: str) -> None:
    with pytest.raises(HarnessError, match=rf"^arguments\.{name}: "):
        build(attack="APGDT", arguments={name: 1})


def test_wrappers_of_attacks_are_none() -> None:
    with pytest.raises(HarnessError, match="no attack 'MultiAttack'"):
        build(attack="MultiAttack")


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    attack(BUILT.model, attack="Square", eps=0.1, arguments={"n_queries": 5, "verbose": True})
    assert capsys.readouterr().out == ""
