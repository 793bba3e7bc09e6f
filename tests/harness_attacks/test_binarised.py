"""The binarised-boundary test: an attack that works solves it, one that is blind or stands still does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from harness_attacks.binarised import Binarised, BinarisedOptions, BinaryView, build
from harness_attacks.under_test import UnboundedOptions, build_unbounded
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.errors import HarnessError
from harness.models import ModelView, prepare
from harness.randomness import draws_for
from harness.testing.zoo import ZOO
from harness.threats import Batch, Budget, Columns, ThreatContext

CONTEXT = ThreatContext(DatasetFacts("test", (1, 8, 8), 256, tuple("0123456789")), None, None)  # type: ignore[arg-type]
BUDGETS = {"linf": 0.1, "l2": 0.6}


def test_of(model: Any, threat: Any, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    ids = torch.arange(len(x))
    view = ModelView(model, {"Classifier"}, ids, 0, "attack")
    draws = draws_for(ids, 0, "threat", "binarised")
    with torch.no_grad():
        clean = view.logits(x, draws)
    columns = threat.run(view, Batch(x, y, ids, draws, clean))
    return {name: np.asarray(column) for name, column in columns.items()}


test_of.__test__ = False  # type: ignore[attr-defined]


def pgd(norm: str, **options: Any) -> Binarised:
    table = {"plugin": "pgd", "norm": norm, "eps": BUDGETS[norm], "steps": 15, **options}
    return build(BinarisedOptions(attack=table), CONTEXT)


@pytest.mark.parametrize("norm", BUDGETS)
def test_an_honest_attack_solves_the_tasks(norm: str, digits_cnn, digits) -> None:
    x, y = digits[0][:60], digits[1][:60]
    found = test_of(digits_cnn, pgd(norm), x, y)
    assert found["task_posed"].mean() > 0.95
    assert found["task_solved"][found["task_posed"]].mean() > 0.95


@pytest.mark.parametrize("name", ["quantised-256", "flipped-gradient", "narrowed-gradient", "ripple"])
def test_an_attack_that_is_misled_does_not(name: str, plain_cnn, digits) -> None:
    x, y = digits[0][:60], digits[1][:60]
    model = prepare(next(d for d in ZOO if d.name == name).wrap(plain_cnn), "cpu")
    found = test_of(model, pgd("linf"), x, y)
    assert found["task_posed"].mean() > 0.9
    assert found["task_solved"][found["task_posed"]].mean() < 0.5


class Remembered:
    """An attack that is told the solution: the points from which the task was made."""

    def __init__(self, eps: float, factor: float = 1.0) -> None:
        self.budget: Budget | None = Budget("linf", eps)
        self.factor = factor

    def run(self, model: ModelView, batch: Batch) -> Columns:
        from harness_attacks.noise import surface_points

        best, score = batch.x, torch.full((len(batch.x),), -math.inf, dtype=torch.float64)
        for number in range(32):
            x = surface_points(batch.x, "linf", self.budget.eps, batch.draws.stream("outer"), number)  # type: ignore[union-attr]
            with torch.no_grad():
                beyond = model.logits(x, batch.draws)[:, 1]
            best = torch.where((beyond > score)[:, None, None, None], x, best)
            score = score.maximum(beyond)
        return {"adversarial": batch.x + self.factor * (best - batch.x)}


def test_the_solution_is_there_and_only_counts_inside_the_budget(plain_cnn, digits) -> None:
    x, y = digits[0][:40], digits[1][:40]
    known = test_of(plain_cnn, Binarised(Remembered(0.1), Budget("linf", 0.1), 32), x, y)
    assert known["task_posed"].all()
    assert known["task_solved"].all()
    assert known["task_lead"] == pytest.approx(0.05, abs=1e-3)  # the boundary is at 95 % of the gap
    cheated = test_of(plain_cnn, Binarised(Remembered(0.1, 1.5), Budget("linf", 0.1), 32), x, y)
    assert not cheated["task_solved"].any()


def test_clean_images_belong_to_the_first_class(plain_cnn, digits) -> None:
    x, y = digits[0][:40], digits[1][:40]

    class Still:
        budget = Budget("linf", 0.1)

        def run(self, model: ModelView, batch: Batch) -> Columns:
            assert isinstance(model, BinaryView)
            assert model.num_classes == 2
            assert batch.clean_correct.all()
            return {"adversarial": batch.x}

    assert not test_of(plain_cnn, Binarised(Still(), Still.budget, 32), x, y)["task_solved"].any()


def test_no_task_where_the_answer_never_changes(scores, digits) -> None:
    x, y = digits[0][:10], digits[1][:10]
    constant = scores(lambda x: x.sum(dim=(1, 2, 3))[:, None] * torch.zeros(10), 10)
    assert not test_of(constant, pgd("linf"), x, y)["task_posed"].any()


def test_random_models_are_asked_often(plain_cnn, digits) -> None:
    x, y = digits[0][:12], digits[1][:12]
    model = prepare(next(d for d in ZOO if d.name == "input-noise").wrap(plain_cnn), "cpu")
    found = test_of(model, pgd("linf"), x, y)
    assert found["task_solved"][found["task_posed"]].mean() > 0.8


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, r"binarised: attack needs a plugin, one of .*pgd.*; got None"),
        ({"plugin": "pdg", "eps": 0.1}, "got 'pdg'"),
        ({"plugin": "pgd", "eps": -1}, "binarised: attack.eps: -1 is negative"),
        ({"plugin": "pgd", "eps": 0.1, "stepz": 3}, "binarised: attack.stepz"),
    ],
)
def test_bad_tables_are_one_clear_line(table: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        build(BinarisedOptions(attack=table), CONTEXT)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 1.0), ("l2", 8.0)])
def test_an_unbounded_budget_covers_the_image_space(norm: str, eps: float) -> None:
    attack = build_unbounded(UnboundedOptions(attack={"plugin": "pgd", "norm": norm, "steps": 5}), CONTEXT)
    assert attack.budget == Budget(norm, eps)  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match="unbounded: attack needs a plugin"):
        build_unbounded(UnboundedOptions(attack={"norm": norm}), CONTEXT)
