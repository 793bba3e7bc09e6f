"""The clean reference: certainty in log space, likelihood where there is one, no evaluation wasted."""

from __future__ import annotations

import math

import numpy as np
import torch
from harness_attacks.clean import Clean, certainty
from scipy import stats
from scipy.special import log_softmax
from torch import Tensor

from harness.models import ModelView, max_softmax
from harness.randomness import draws_for
from harness.threats import Batch


class Flow:
    """A classifier with a density."""

    num_classes = 2
    density_tag = "exact"

    def logits(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))], dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        return -x.square().sum(dim=(1, 2, 3))


def batch_of(x: Tensor, logits: Tensor | None) -> Batch:
    ids = torch.arange(len(x))
    return Batch(x, torch.zeros(len(x), dtype=torch.int64), ids, draws_for(ids, 0, "threat", "clean"), logits)


def test_certainty_is_that_of_scipy() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3
    y = torch.arange(50) % 7
    found = {name: column.numpy() for name, column in certainty(logits, y).items()}
    log_probs = log_softmax(logits.double().numpy(), axis=1)
    np.testing.assert_allclose(found["confidence"], np.exp(log_probs.max(axis=1)), rtol=1e-12)
    np.testing.assert_allclose(found["entropy"], stats.entropy(np.exp(log_probs), axis=1), rtol=1e-10)
    np.testing.assert_allclose(found["negative_log_likelihood"], -log_probs[np.arange(50), y.numpy()], rtol=1e-12)


def test_a_certain_and_wrong_classifier_has_a_finite_likelihood_and_no_entropy() -> None:
    found = certainty(torch.tensor([[0.0, 30000.0, -5.0]]), torch.tensor([0]))
    assert found["negative_log_likelihood"].item() == 30000.0
    assert found["confidence"].item() == 1.0
    assert found["entropy"].item() == 0.0


def test_a_part_shared_by_all_logits_changes_nothing() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)).double()
    y = torch.zeros(20, dtype=torch.int64)
    for name, column in certainty(logits - 4000.0, y).items():
        torch.testing.assert_close(column, certainty(logits, y)[name], rtol=0, atol=1e-9, msg=name)


def test_a_plain_classifier_is_not_evaluated_again() -> None:
    x = torch.rand(6, 1, 2, 2)
    model = Flow()
    view = ModelView(model, {"Classifier"}, torch.arange(6), 0, "attack")
    columns = Clean().run(view, batch_of(x, model.logits(x)))
    binned = {"class_confidence_count", "class_confidence_sum"}
    assert set(columns) == {"confidence", "entropy", "negative_log_likelihood", "ood_score", *binned}
    assert torch.equal(columns["ood_score"], max_softmax(model.logits(x)))
    assert columns["class_confidence_count"].sum(dim=1).tolist() == [2] * 6
    torch.testing.assert_close(columns["class_confidence_sum"].sum(dim=1), torch.ones(6, dtype=torch.float64))
    assert view.forwards.tolist() == [0] * 6


def test_a_density_gives_its_log_likelihood() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    model = Flow()
    view = ModelView(model, {"Classifier", "Density"}, torch.arange(2), 0, "attack")
    columns = Clean().run(view, batch_of(x, model.logits(x)))
    assert columns["log_prob"].tolist() == [-1.0, -1.0]
    assert columns["log_prob"].dtype == torch.float64
    assert math.isclose(columns["confidence"][0], 0.5)
    assert view.forwards.tolist() == [1, 1]


def test_a_detector_of_its_own_is_asked() -> None:
    class Detecting(Flow):
        def ood_score(self, x: Tensor) -> Tensor:
            return x.amax(dim=(1, 2, 3))

    x = torch.rand(3, 1, 2, 2)
    view = ModelView(Detecting(), {"Classifier", "Detector"}, torch.arange(3), 0, "attack")
    columns = Clean().run(view, batch_of(x, Flow().logits(x)))
    assert torch.equal(columns["ood_score"], x.amax(dim=(1, 2, 3)).double())
    assert view.forwards.tolist() == [1] * 3


def test_a_density_that_is_no_classifier_has_its_log_likelihood_alone() -> None:
    view = ModelView(Flow(), {"Density"}, torch.arange(2), 0, "attack")
    x = torch.rand(2, 1, 2, 2)
    columns = Clean(levels=16).run(view, batch_of(x, None))
    assert set(columns) == {"log_prob", "clean_bits_per_dim"}
    expected = x.double().square().sum(dim=(1, 2, 3)) / (4 * math.log(2)) + 4
    torch.testing.assert_close(columns["clean_bits_per_dim"], expected)


def test_a_surrogate_has_no_bits_per_dim() -> None:
    class Surrogate(Flow):
        density_tag = "surrogate"

    view = ModelView(Surrogate(), {"Density"}, torch.arange(2), 0, "attack")
    assert set(Clean().run(view, batch_of(torch.rand(2, 1, 2, 2), None))) == {"log_prob"}
