"""Building: what a checkpoint says, and one clear line for what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness_ib_inn.loading import builtin_names
from harness_ib_inn.model import IBINN, build
from harness_ib_inn.options import FitRecipe, IBINNOptions
from pydantic import ValidationError

from harness import checkpoints
from harness.errors import HarnessError
from harness.models import ModelContext
from harness.testing.toys import synthetic_data
from harness.training import FitSession


def make(shape: tuple[int, int, int] = (1, 8, 8), folder: Path | None = None, **options: Any) -> IBINN:
    data = synthetic_data(shape, levels=17)
    return build(IBINNOptions.model_validate(options), ModelContext("mine", data.facts, "cpu", folder or Path.cwd()))


@pytest.mark.parametrize(
    ("options", "shape", "says"),
    [
        (
            {"layout": "digits"},
            (1, 28, 28),
            "layout digits takes images of 1 x 8 x 8, these are 1 x 28 x 28; choose another layout, or judge a part",
        ),
        ({"layout": "digits"}, (3, 8, 8), "takes images of 1 x 8 x 8, these are 3 x 8 x 8; choose another layout"),
        ({"layout": "mnist"}, (1, 8, 8), "layout mnist takes images of 1 x 28 x 28, these are 1 x 8 x 8; choose"),
        ({"layout": "digits", "crops": "ten"}, (1, 6, 9), "these are 1 x 6 x 9; choose another layout"),
        ({"checkpoint": "builtin:digits-beta1"}, (1, 28, 28), "these are 1 x 28 x 28"),
        ({"checkpoint": "builtin:digits-beta2"}, (1, 8, 8), "no built-in checkpoint 'digits-beta2'; did you mean"),
        ({"checkpoint": "builtin:digits-resnet"}, (1, 8, 8), "no built-in checkpoint 'digits-resnet'"),
        (
            {"checkpoint": "builtin:digits-beta1", "layout": "mnist"},
            (1, 28, 28),
            "is of layout digits, the options say",
        ),
        (
            {"checkpoint": "builtin:digits-beta1", "mixing": "permutation"},
            (1, 8, 8),
            "is of mixing orthogonal, the options say permutation; leave mixing out",
        ),
        ({"checkpoint": "nowhere.safetensors"}, (1, 8, 8), "does not exist"),
        ({"checkpoint": "$NO_SUCH_PLACE/a.safetensors"}, (1, 8, 8), "variable NO_SUCH_PLACE is not set"),
    ],
)
def test_what_does_not_fit_is_one_line(
    options: dict[str, Any], shape: tuple[int, int, int], says: str, one_line: Any
) -> None:
    with pytest.raises(HarnessError) as caught:
        make(shape, **options)
    assert says in one_line(str(caught.value))


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"beta": -1}, "-1 is no weight of L_Y: beta is 0"),
        ({"beta": "-inf"}, "-inf is no weight"),
        ({"beta": "nan"}, "nan is no weight"),
        ({"beta": "large"}, "'large' is not a number or \"inf\""),
    ],
)
def test_wrong_betas_are_refused(recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FitRecipe.model_validate(recipe)


def test_a_model_needs_a_layout_or_a_checkpoint() -> None:
    with pytest.raises(ValidationError, match="give `layout`"):
        IBINNOptions()


def test_a_checkpoint_of_something_else_is_one_line(tmp_path: Path, one_line: Any) -> None:
    checkpoints.save(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {"plugin": "torch"})
    with pytest.raises(HarnessError) as caught:
        make(folder=tmp_path, checkpoint="other.safetensors")
    assert "was not written by `harness fit ib-inn`" in one_line(str(caught.value))
    header = {"results": {"layout": "digits", "mixing": "orthogonal"}, "classes": ["a", "b"]}
    checkpoints.save(tmp_path / "broken.safetensors", {"a": torch.zeros(2)}, header)
    with pytest.raises(HarnessError) as caught:
        make(folder=tmp_path, checkpoint="broken.safetensors")
    assert "does not fit layout digits with 2 classes" in one_line(str(caught.value))


def test_other_images_than_the_layouts_are_refused_when_asked() -> None:
    model = make(layout="digits")
    for method in (model.logits, model.log_prob, model.class_log_prob):
        with pytest.raises(HarnessError, match="these are 1 x 9 x 8"):
            method(torch.rand(1, 1, 9, 8))


def test_a_checkpoint_brings_its_mixing_classes_and_levels(tmp_path: Path) -> None:
    data = synthetic_data(num_classes=3, samples=30, levels=5)
    context = ModelContext("mine", data.facts, "cpu", tmp_path)
    model = build(IBINNOptions(layout="digits", mixing="permutation"), context)
    header = {"plugin": "ib-inn", "classes": list(data.facts.class_names)}
    session = FitSession(tmp_path / "a.safetensors", header, 3, lambda *_: None)
    model.fit(data, FitRecipe(epochs=1), session)
    again = build(IBINNOptions(checkpoint="a.safetensors"), context)
    assert again.mixing == "permutation"
    assert again.num_classes == 3
    assert int(again.levels) == 5
    with pytest.raises(HarnessError, match="is of images of 5 grey levels, those of 'synthetic' have 17"):
        make(folder=tmp_path, checkpoint="a.safetensors")
    assert again.files == (tmp_path / "a.safetensors",)
    x, _ = data.load(data.ids)
    assert torch.equal(again.log_prob(x), model.log_prob(x))
    assert torch.equal(again.ood_score(x), model.ood_score(x))


def test_the_built_in_names() -> None:
    assert builtin_names() == ["digits-beta0", "digits-beta1", "digits-beta8", "digits-betainf"]
