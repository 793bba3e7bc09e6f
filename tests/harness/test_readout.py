"""A model's outputs read as the classes of the data: restricted, or several outputs for one class."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.datasets import DatasetFacts
from harness.errors import ModelError, ThreatError
from harness.loading import BuiltModel
from harness.readout import Readout
from harness.testing import toy_model

A_SET = Readout(((1, 4), (3,)), restricted=False)


def test_restricted_outputs_are_picked_to_the_bit() -> None:
    scores = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Readout(((6,), (2,)), restricted=True).of(scores), scores[:, [6, 2]])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), restricted=st.booleans())
def test_the_prediction_is_the_class_that_holds_the_models_own(seed: int, restricted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(9, generator=generator).tolist()
    groups = tuple(tuple(sorted(part)) for part in (order[:3], order[3:4], order[4:6]))
    scores = torch.randn(20, 9, generator=generator)
    readout = Readout(groups, restricted)
    found = readout.of(scores).argmax(dim=1).tolist()
    if restricted:
        scores[:, order[6:]] = -torch.inf
    for own, prediction in zip(scores.argmax(dim=1).tolist(), found, strict=True):
        assert own in ((*groups, tuple(order[6:])))[prediction]


def test_width_counts_one_class_for_all_others() -> None:
    assert A_SET.width(6) == 3
    assert Readout(((0, 1), (2,)), restricted=False).width(3) == 2  # there are no others
    assert Readout(((1, 4), (3,)), restricted=True).width(6) == 2
    with pytest.raises(ModelError, match=r"name class 4, but the model has 4 classes \(0 to 3\)"):
        A_SET.width(4)


def test_a_view_shows_the_classes_of_the_data_alone() -> None:
    facts = DatasetFacts("toy", (1, 4, 4), 256, tuple("abcdef"))
    built = toy_model({"ClassDensity"}, facts)
    ids, x = torch.arange(3), torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    whole = built.view(ids, 0, "eval")
    view = BuiltModel(built.model, built.capabilities, A_SET).view(ids, 0, "eval")
    assert (whole.num_classes, view.num_classes) == (6, 3)
    assert torch.equal(view.logits(x)[:, 0], whole.logits(x)[:, [1, 4]].amax(dim=1))
    assert torch.equal(view.class_log_prob(x)[:, 1], whole.class_log_prob(x)[:, 3])
    assert torch.equal(view.log_prob(x), whole.log_prob(x))  # how likely an image is does not depend on the reading
    assert torch.equal(view.heatmap(x, torch.tensor([1, 1, 1])), whole.heatmap(x, torch.tensor([3, 3, 3])))
    for y in ([0, 1, 1], [1, 2, 1]):
        with pytest.raises(ThreatError, match="stands for several"):
            view.heatmap(x, torch.tensor(y))
