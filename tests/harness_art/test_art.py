"""What is particular to ART."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.backends.options import BackendOptions
from harness.errors import HarnessError
from harness.loading import BuiltModel
from harness.models import ModelView
from harness.randomness import draws_for
from harness.testing import synthetic_data, toy_model
from harness.threats import Batch, Columns, ThreatContext

pytestmark = pytest.mark.backends
pytest.importorskip("art")

DATA = synthetic_data((1, 6, 6), 4)


@pytest.fixture(scope="module")
def classifier() -> BuiltModel:
    return toy_model({"Classifier"}, DATA.facts)


def build(**options: Any) -> Any:
    from harness_art.attack import build

    return build(
        BackendOptions.model_validate({"norm": "l2", **options}), ThreatContext(DATA.facts, DATA.__class__, Path())
    )


def attack(built: BuiltModel, ids: Tensor, **options: Any) -> tuple[Columns, ModelView]:
    x, y = DATA.load(ids.numpy())
    view = built.view(ids, 0, "attack")
    with torch.no_grad():
        clean = built.view(ids, 0, "eval").logits(x)
    return build(**options).run(view, Batch(x, y, ids, draws_for(ids, 0, "threat"), clean)), view


@pytest.mark.parametrize(
    "options",
    [
        {"attack": "HopSkipJump", "arguments": {"max_iter": 1, "max_eval": 40, "init_eval": 20}},
        {"attack": "BoundaryAttack", "arguments": {"max_iter": 5}},
        {"attack": "SquareAttack", "norm": "linf", "eps": 0.3, "arguments": {"max_iter": 30}},
        {"attack": "SimBA", "arguments": {"max_iter": 300}},
    ],
    ids=lambda options: options["attack"],
)
def test_black_box_attacks_ask_without_gradients_and_a_sample_never_depends_on_others(
    classifier: BuiltModel, options: dict[str, Any]
) -> None:
    columns, view = attack(classifier, torch.arange(4), **options)
    assert columns["claimed"].any()
    assert (view.forwards >= 5).all()
    assert int(view.backwards.sum()) == 0
    alone, own = attack(classifier, torch.tensor([2]), **options)
    assert torch.equal(alone["adversarial"][0], columns["adversarial"][2])
    assert int(own.forwards[0]) == int(view.forwards[2])


def test_an_attack_that_reads_labels_as_targets_is_given_none(classifier: BuiltModel) -> None:
    columns, view = attack(classifier, torch.arange(4), attack="SaliencyMapMethod")
    assert columns["claimed"].any()
    assert int(view.backwards.sum()) > 0


@pytest.mark.parametrize("name", ["CarliniL2Method", "DeepFool", "NewtonFool", "AutoProjectedGradientDescent"])
def test_gradients_of_scores_and_losses_reach_the_library(classifier: BuiltModel, name: str) -> None:
    options: dict[str, Any] = {"attack": name, "arguments": {"max_iter": 10}}
    if name.startswith("Carlini"):
        options["arguments"] |= {"binary_search_steps": 4, "initial_const": 1.0}
    if name.startswith("Auto"):
        options |= {"norm": "linf", "eps": 0.3}
    columns, view = attack(classifier, torch.arange(4), **options)
    assert columns["claimed"].any()
    assert (view.backwards > 0).all()
    assert not columns["nonfinite_gradient_steps"].any()


def test_a_larger_perturbation_than_eps_is_a_failure(classifier: BuiltModel) -> None:
    found, _ = attack(classifier, torch.arange(4), attack="DeepFool")
    x = DATA.load(torch.arange(4).numpy())[0]
    norms = (found["adversarial"] - x).flatten(1).norm(dim=1)
    middle = float(norms.median()) + 1e-6
    held, _ = attack(classifier, torch.arange(4), attack="DeepFool", eps=middle)
    assert torch.equal(held["refused"], norms > middle)
    assert 0 < int(held["refused"].sum()) < 4
    assert torch.equal(held["adversarial"][held["refused"]], x[held["refused"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "DPatch"}, "^DPatch: ART refuses it: "),
        ({"attack": "HopSkipJump", "arguments": {"max_iter": -1}}, "^HopSkipJump: ART refuses it: .*iterations"),
        ({"attack": "HopSkipJump", "norm": "l1"}, "^HopSkipJump: ART refuses it: .*[Nn]orm"),
        ({"attack": "HopSkipJump", "arguments": {"targeted": True}}, r"^arguments\.targeted: robust accuracy"),
        ({"attack": "HopSkipJump", "arguments": {"norm": 2}}, r"^arguments\.norm: give norm beside attack"),
    ],
    ids=["no-classifier", "value", "norm", "targeted", "norm-argument"],
)
def test_what_art_refuses_is_said_before_anything_runs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)
