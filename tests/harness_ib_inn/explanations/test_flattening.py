"""Class means in a plane: by training, from a checkpoint, for some of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness_ib_inn.decision_space import FLAT, fitted_plane, plane_of
from harness_ib_inn.flattening import into_plane, keep_classes
from harness_ib_inn.options import FitRecipe

from harness.checkpoints import read_header
from harness.datasets import DatasetSlice, SliceSpec
from harness.errors import ModelError
from harness.training import FitSession


def test_means_are_moved_to_the_nearest_plane_and_then_stay(given: Any) -> None:
    means = given.model(layout="digits").class_means
    with torch.no_grad():
        means.pooled += 0.3 * torch.randn(means.pooled.shape, generator=torch.Generator().manual_seed(0))
        before = means.pooled.clone()
        into_plane(means)
    extents = torch.linalg.svdvals((before - before.mean(dim=0)).double())
    moved = (means.pooled - before).double().square().sum()
    torch.testing.assert_close(moved, extents[2:].square().sum(), rtol=1e-5, atol=0)
    assert float(means.rest().abs().max()) == 0
    after = means.pooled.clone()
    into_plane(means)
    torch.testing.assert_close(means.pooled, after, rtol=0, atol=1e-5)


def session(out: Path) -> FitSession:
    return FitSession(out, {"plugin": "ib-inn", "classes": ["0", "3", "8"]}, 0, lambda *_: None)


def three_digits(given: Any) -> DatasetSlice:
    spec = SliceSpec(limit=60, classes=("0", "3", "8"), label_map={"0": 0, "3": 1, "8": 2})
    return DatasetSlice("digits", given.digits("train").dataset, spec)


def test_training_keeps_the_means_of_the_chosen_classes_in_a_plane(given: Any, tmp_path: Path) -> None:
    model = given.model(layout="digits")
    model.class_names = given.digits("test").facts.class_names
    wanted = model.class_means.pooled[[0, 3, 8]].clone()
    keep_classes(model, ("0", "3", "8"))
    assert torch.equal(model.class_means.pooled, wanted)
    assert (model.num_classes, model.log_prior.shape) == (3, (3,))
    # Of four classes, because three means always lie in a plane.
    four = given.model(layout="digits")
    four.class_names = given.digits("test").facts.class_names
    spec = SliceSpec(limit=60, classes=tuple("0358"), label_map={k: i for i, k in enumerate("0358")})
    data = DatasetSlice("digits", given.digits("train").dataset, spec)
    four.fit(data, FitRecipe(epochs=1, plane=True, batch_size=30), session(tmp_path / "four.safetensors"))
    assert four.num_classes == 4
    assert fitted_plane(four.means)[1] <= FLAT
    plane_of(four.means)
    assert read_header(tmp_path / "four.safetensors")["results"]["layout"] == "digits"


def test_a_reduced_model_is_read_back(given: Any, tmp_path: Path) -> None:
    model = given.model(layout="digits")
    model.class_names = given.digits("test").facts.class_names
    data = three_digits(given)
    assert data.facts.class_names == ("0", "3", "8")
    out = tmp_path / "three.safetensors"
    model.fit(data, FitRecipe(epochs=1, plane=True), session(out))
    again = given.model(checkpoint=str(out))
    assert again.class_names == ("0", "3", "8")
    x, _ = data.load(data.ids[:4])
    torch.testing.assert_close(again.logits(x), model.logits(x))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("0", "3", "eight"), "its checkpoint has no class 'eight'"),
        (("0", "3"), "plane=true needs at least three classes, the data have 2"),
    ],
)
def test_classes_that_are_not_there_are_one_line(given: Any, wanted: tuple[str, ...], message: str) -> None:
    model = given.model(layout="digits")
    model.class_names = given.digits("test").facts.class_names
    with pytest.raises(ModelError, match=message) as caught:
        keep_classes(model, wanted)
    assert "\n" not in str(caught.value)
