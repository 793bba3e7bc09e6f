"""PGD that gets past a detector as well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_attacks.evasion import Evasion
from harness_attacks.options import PGDOptions
from harness_attacks.pgd import PGD
from torch import Tensor

from harness.errors import ThreatError
from harness.models import ModelView, Reference
from harness.randomness import draws_for
from harness.threats import Batch, Columns


class Guarded:
    """A classifier whose detector measures how rough an image is: what adversarial noise is first of all."""

    num_classes = 10

    def __init__(self, model: Any) -> None:
        self.logits = model.logits

    def ood_score(self, x: Tensor) -> Tensor:
        p = torch.nn.functional.pad(x, (1, 1, 1, 1))
        around = p[:, :, :-2, 1:-1] + p[:, :, 2:, 1:-1] + p[:, :, 1:-1, :-2] + p[:, :, 1:-1, 2:]
        return (4 * x - around).square().mean(dim=(1, 2, 3))


class Bench:
    """The guarded network, thresholds from one half of the digits and attacks on the other."""

    def __init__(self, model: Any, x: Tensor, y: Tensor) -> None:
        self.model = Guarded(model)
        with torch.no_grad():
            self.reference = Reference({"ood_score": self.model.ood_score(x[:180]).double().numpy()})
        self.x, self.y = x[180:], y[180:]

    def run(self, **options: Any) -> Columns:
        ids = torch.arange(len(self.x))
        view = ModelView(self.model, {"Classifier", "Detector"}, ids, 0, "attack", self.reference)
        with torch.no_grad():
            clean = self.model.logits(self.x)
        batch = Batch(self.x, self.y, ids, draws_for(ids, 0, "threat", "pgd"), clean)
        return PGD(PGDOptions(**options)).run(view, batch)

    def evading(self, columns: Columns, fpr: float) -> Tensor:
        """Judged afresh: misclassified and accepted."""
        images = columns["adversarial"]
        with torch.no_grad():
            wrong = self.model.logits(images).argmax(dim=1) != self.y
            return wrong & (self.model.ood_score(images).double() <= self.reference.ood_threshold(fpr))


@pytest.fixture(scope="module")
def bench(plain_cnn: Any, digits: tuple[Tensor, Tensor]) -> Bench:
    return Bench(plain_cnn, *digits)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_way_beats_the_plain_attack_at_its_threshold(bench: Bench, norm: str) -> None:
    options = {"norm": norm, "eps": {"linf": 0.1, "l2": 0.7, "l1": 2.5}[norm], "steps": 30}
    plain = bench.evading(bench.run(**options), 0.05).sum()
    assert 100 < plain < 165
    for way in ("penalty", "selective", "orthogonal"):
        columns = bench.run(**options, evade=way)
        evading = bench.evading(columns, 0.05)
        assert evading.sum() > plain, way
        right = columns["gradient_steps"] > 0  # attacked, or done at the start
        assert torch.equal(columns["evaded"][right], evading[right]), way
        assert (columns["evade_threshold"] == bench.reference.ood_threshold(0.05)).all()
        assert columns["loss"][0] == f"cross-entropy on logits, {way} on ood_score"


def test_a_detector_that_accepts_all_changes_nothing_for_the_phases(bench: Bench) -> None:
    """Nothing to evade: the selective attack is the plain one, bit for bit."""
    everything = Reference({"ood_score": torch.full((100,), 1e6).double().numpy()})
    kept, bench.reference = bench.reference, everything
    try:
        plain, selective = bench.run(eps=0.05, steps=6), bench.run(eps=0.05, steps=6, evade="selective")
    finally:
        bench.reference = kept
    fell = plain["success_step"] >= 0
    assert 0 < fell.sum() < len(fell)
    assert torch.equal(selective["adversarial"][fell], plain["adversarial"][fell])
    assert torch.equal(selective["success_step"], plain["success_step"])


def test_a_sample_gets_the_same_alone(bench: Bench) -> None:
    whole = bench.run(eps=0.1, steps=5, evade="orthogonal")["evaded"]
    x, y = bench.x, bench.y
    try:
        bench.x, bench.y = x[:40], y[:40]
        assert (bench.run(eps=0.1, steps=5, evade="orthogonal")["evaded"] != whole[:40]).sum() <= 1
    finally:
        bench.x, bench.y = x, y


class Told(ModelView):
    """Thresholds of 4 (at any rate but a half) and a median of 2."""

    def __init__(self) -> None: ...

    def ood_threshold(self, fpr: float) -> float:
        return 2.0 if fpr == 0.5 else 4.0


def test_directions_by_hand() -> None:
    """Samples: right, wrong; both rejected by one unit. Gradients along the first axis and along the diagonal."""
    margin, excess = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0])
    ascent = torch.tensor([3.0, 0.0]).reshape(1, 1, 1, 2).repeat(2, 1, 1, 1)
    rise = torch.tensor([1.0, 1.0]).reshape(1, 1, 1, 2).repeat(2, 1, 1, 1)

    def way(name: Any) -> list[Any]:
        found: list[Any] = Evasion(Told(), name, 2.0, 0.05).direction((ascent, rise), margin, excess)[:, 0, 0].tolist()
        return found

    assert Evasion(Told(), "penalty", 2.0, 0.05).excess(torch.tensor([6.0])).item() == 1.0
    assert way("penalty") == [[1.0, -2.0], [1.0, -2.0]]
    assert way("selective") == [[3.0, 0.0], [-1.0, -1.0]]
    right, wrong = way("orthogonal")
    assert right == [0.5, -0.5]  # no component along the rise
    assert wrong == [0.0, -1.0]  # none along the ascent


def test_images_are_ordered_by_both_conditions_then_by_what_is_missing() -> None:
    evasion = Evasion(Told(), "penalty", 1.0, 0.05)
    margin = torch.tensor([-9.0, -1.0, 50.0, 2.0, 0.1, 3.0]).double()
    excess = torch.tensor([-1.0, 5.0, 9.0, 0.5, -0.1, -2.0]).double()
    strength = evasion.strength(margin, excess)
    assert strength.argsort().tolist() == [0, 1, 2, 3, 4, 5]
    assert (strength > evasion.BOTH).tolist() == [False] * 4 + [True] * 2


def test_without_held_out_scores_there_is_one_clear_line(bench: Bench) -> None:
    view = ModelView(bench.model, {"Classifier", "Detector"}, torch.arange(1), 0, "attack")
    with pytest.raises(ThreatError, match="held-out scores"):
        Evasion(view, "penalty", 1.0, 0.05)
