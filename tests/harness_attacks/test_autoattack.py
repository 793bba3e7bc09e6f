"""AutoAttack as a whole: which attacks, in which order, on which samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_attacks import fab
from harness_attacks.apgd import APGD
from harness_attacks.autoattack import AutoAttack, AutoAttackOptions, parts
from harness_attacks.fab import FABOptions
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.models import ModelView
from harness.options import Amount
from harness.randomness import draws_for
from harness.threats import Batch, Columns, ThreatContext


def test_the_versions_are_the_references() -> None:
    eps = Amount("8/255")
    standard = parts("standard", "linf", eps, 10)
    assert list(standard) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert described(standard["apgd-ce"]) == ("cross-entropy", None, 1, 100, False, 1)
    assert described(standard["apgd-t"]) == ("dlr", 9, 1, 100, False, 1)
    sparse = parts("standard", "l1", eps, 10)
    assert described(sparse["apgd-ce"]) == ("cross-entropy", None, 5, 100, True, 1)
    assert described(sparse["apgd-t"]) == ("dlr", 5, 1, 100, True, 1)
    plus = parts("plus", "l2", eps, 10)
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert described(plus["apgd-dlr"]) == ("dlr", None, 5, 100, False, 1)
    random = parts("rand", "linf", eps, 10)
    assert {name: described(part) for name, part in random.items()} == {
        "apgd-ce": ("cross-entropy", None, 1, 100, False, 20),
        "apgd-dlr": ("dlr", None, 1, 100, False, 20),
    }


def described(part: Any) -> tuple[Any, ...]:
    assert isinstance(part, APGD)
    chosen = part.options
    return chosen.loss, chosen.targets, chosen.restarts, chosen.steps, chosen.large_radii, chosen.eot


@pytest.mark.parametrize(
    ("classes", "untargeted", "targeted"), [(2, "margin", "margin"), (3, "dlr", "margin"), (4, "dlr", "dlr")]
)
def test_too_few_classes_for_dlr_take_the_margin(classes: int, untargeted: str, targeted: str) -> None:
    chosen = parts("plus", "linf", Amount(0.1), classes)
    assert described(chosen["apgd-dlr"])[0] == untargeted
    assert described(chosen["apgd-t"])[0] == targeted


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_can_be_attacked(scores: Any, classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(classes, 16, generator=generator)
    model = scores(lambda x: x.flatten(1) @ w.T, classes)
    columns, _, y, _ = attacked(model, AutoAttackOptions(eps=Amount(0.5)), 12)
    assert (model.logits(columns["adversarial"]).argmax(dim=1) != y).all()
    assert "" not in columns["attack"]


def test_a_black_box_breaks_what_gives_no_gradient(scores: Any) -> None:
    """Rounded pixels: gradients are zero, Square is not misled, and the rows say who did it."""
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(4, 16, generator=generator)
    model = scores(lambda x: ((8 * x).round() / 8).flatten(1) @ w.T, 4)
    columns, _, y, view = attacked(model, AutoAttackOptions(eps=Amount(0.3)), 10)
    assert (model.logits(columns["adversarial"]).argmax(dim=1) != y).all()
    late = [row for row, name in enumerate(columns["attack"]) if name == "square"]
    assert len(late) >= 3
    assert (columns["zero_gradient_steps"][late] == columns["gradient_steps"][late]).all()
    # 100 steps on cross-entropy, as many towards each of 3 classes, and as many of FAB's; then queries to the end.
    assert (columns["gradient_steps"][late] == 700).all()
    assert (view.forwards[late] == 101 * 4 + 2 * 300 + columns["queries"][late]).all()
    assert (columns["queries"][late] == columns["success_step"][late] + 1).all()
    early = [row for row, name in enumerate(columns["attack"]) if name == "apgd-ce"]
    assert (columns["queries"][early] == 0).all()
    assert (view.forwards[early] <= 101).all()


def test_what_no_attack_breaks_says_so(scores: Any) -> None:
    model = scores(lambda x: torch.stack([x.sum(dim=(1, 2, 3)) * 0 + 1, x.sum(dim=(1, 2, 3)) * 0], dim=1), 2)
    attack = AutoAttack(AutoAttackOptions(eps=Amount(0.1)), 2)
    attack.parts = {name: part for name, part in attack.parts.items() if name != "square"}
    columns, x, _, _ = attacked(model, attack, 3)
    assert columns["attack"] == ["", "", ""]
    assert (columns["success_step"] == -1).all()
    assert (columns["loss_first"] == columns["loss_last"]).all()
    assert (columns["zero_gradient_steps"] == columns["gradient_steps"]).all()
    assert (columns["adversarial"] - x).abs().max() <= 0.1 + 1e-6


def attacked(model: Any, attack: Any, n: int) -> tuple[Columns, Tensor, Tensor, ModelView]:
    x = 0.5 + 0.4 * (torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(n)) - 0.5)
    logits = model.logits(x)
    y, ids = logits.argmax(dim=1), torch.arange(n)
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    if isinstance(attack, AutoAttackOptions):
        attack = AutoAttack(attack, logits.shape[1])
    return attack.run(view, Batch(x, y, ids, draws_for(ids, 0, "threat", "autoattack"), logits)), x, y, view


def test_fab_without_a_budget_looks_for_the_smallest_norm_and_says_what_it_cannot_find(scores: Any) -> None:
    facts = DatasetFacts("test", (1, 4, 4), 256, ("0", "1"))
    context = ThreatContext(facts, None, Path())  # type: ignore[arg-type]
    attack = fab.build(FABOptions(steps=5), context)
    assert attack.budget is not None
    assert attack.budget.eps == math.inf
    never = scores(lambda x: torch.stack([x.sum(dim=(1, 2, 3)) + 1, x.sum(dim=(1, 2, 3))], dim=1), 2)
    columns, x, _, _ = attacked(never, attack, 3)
    assert torch.equal(columns["adversarial"], x)
    assert (columns["success_step"] == -1).all()
