"""Out-of-distribution sets: what they hold, whose noise it is, and the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_ood.ood import OOD, OODOptions, constant_colour, uniform_noise
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from harness.errors import ModelError
from harness.models import ModelView
from harness.randomness import Draws, draws_for
from harness.threats import Batch


class Meter:
    """A detector that scores an image by its distance from mid-grey."""

    def ood_score(self, x: Tensor) -> Tensor:
        return (x - 0.5).square().mean(dim=(1, 2, 3))


class Classes:
    num_classes = 3

    def logits(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean(dim=(1, 2, 3)) * k for k in (1.0, 5.0, 40.0)], dim=1)


def rows(
    model: Any, capability: str, ids: Tensor, sets: tuple[Any, ...] = ("uniform", "constant"), seed: int = 0
) -> Any:
    x = torch.rand(len(ids), 2, 4, 4, generator=torch.Generator().manual_seed(0))
    view = ModelView(model, {capability}, ids, seed, "attack")
    batch = Batch(x, torch.zeros_like(ids), ids, draws_for(ids, seed, "threat", "ood"))
    return OOD(sets, 256).run(view, batch), view, x


def test_rows_hold_the_data_and_as_many_images_of_each_set() -> None:
    ids = torch.tensor([4, 9, 11])
    columns, view, x = rows(Meter(), "Detector", ids)
    assert columns["sample_id"].tolist() == [4, 9, 11] * 3
    assert columns["set"] == ["in"] * 3 + ["uniform"] * 3 + ["constant"] * 3
    assert columns["score"] == ["own"] * 9
    assert columns["ood_score"].dtype == torch.float64
    torch.testing.assert_close(columns["ood_score"][:3], Meter().ood_score(x).double())
    assert view.forwards.tolist() == [3, 3, 3]
    assert view.backwards.tolist() == [0, 0, 0]


def test_a_set_is_scored_on_the_images_that_the_module_makes() -> None:
    ids = torch.tensor([4, 9, 11])
    columns, _, _ = rows(Meter(), "Detector", ids, ("constant",))
    images = constant_colour(draws_for(ids, 0, "threat", "ood"), (2, 4, 4), 256)
    torch.testing.assert_close(columns["ood_score"][3:], Meter().ood_score(images).double())


def test_a_classifier_without_a_score_is_judged_by_its_softmax() -> None:
    columns, _, x = rows(Classes(), "Classifier", torch.arange(5))
    assert set(columns["score"]) == {"max-softmax"}
    p = Classes().logits(x).double().softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(columns["ood_score"][:5], ((1 - p) / p).log(), rtol=1e-6, atol=1e-6)


def test_uniform_noise_takes_every_grey_level_as_often() -> None:
    noise = uniform_noise(draws_for(torch.arange(200), 0, "t"), (3, 8, 8), 17)
    levels = noise * 16
    assert torch.equal(levels, levels.round())
    counts = levels.long().flatten().bincount(minlength=17)
    assert counts.numel() == 17
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_a_constant_image_has_one_colour_each_channel_its_own() -> None:
    images = constant_colour(draws_for(torch.arange(500), 0, "t"), (3, 8, 8), 256)
    assert torch.equal(images, images[:, :, :1, :1].expand_as(images))
    colours = images[:, :, 0, 0]
    assert torch.equal(colours * 255, (colours * 255).round())
    assert stats.kstest((colours[:, 0] * 255 + 0.5).numpy() / 256, "uniform").pvalue > 1e-4
    assert abs(float(torch.corrcoef(colours.T)[0, 1])) < 5 / 500**0.5


def test_an_image_belongs_to_its_sample_id_not_to_the_batch() -> None:
    ids = torch.arange(10)
    whole, _, _ = rows(Meter(), "Detector", ids)
    part, _, _ = rows(Meter(), "Detector", torch.tensor([7, 2]))
    for name in ("uniform", "constant"):
        ours = {
            int(i): float(s) for i, k, s in zip(whole["sample_id"], whole["set"], whole["ood_score"], strict=True)
            if k == name
        }  # fmt: skip
        for i, kind, score in zip(part["sample_id"], part["set"], part["ood_score"], strict=True):
            if kind == name:
                assert float(score) == ours[int(i)]
    other, _, _ = rows(Meter(), "Detector", ids, seed=1)
    assert (other["ood_score"][10:] != whole["ood_score"][10:]).all()
    alone, _, _ = rows(Meter(), "Detector", ids, ("constant",))
    assert torch.equal(alone["ood_score"][10:], whole["ood_score"][20:])


class Noisy:
    stochastic = True

    def ood_score(self, x: Tensor, *, draws: Draws) -> Tensor:
        return draws.normal("score", 0, ())


def test_a_random_detector_answers_each_set_afresh() -> None:
    columns, _, _ = rows(Noisy(), "Detector", torch.arange(20))
    assert len(columns["ood_score"].unique()) == 60
    alone, _, _ = rows(Noisy(), "Detector", torch.arange(20), ("constant",))
    assert torch.equal(alone["ood_score"][20:], columns["ood_score"][40:])


class Broken:
    def ood_score(self, x: Tensor) -> Tensor:
        constant = (x == x[:, :, :1, :1]).flatten(1).all(dim=1)
        return torch.where(constant & (x[:, 0, 0, 0] > 0.3), float("nan"), 0.0)


def test_a_score_that_is_not_a_number_is_one_line() -> None:
    with pytest.raises(ModelError) as caught:
        rows(Broken(), "Detector", torch.arange(100, 120))
    images = constant_colour(draws_for(torch.arange(100, 120), 0, "threat", "ood"), (2, 4, 4), 256)
    bad = torch.arange(100, 120)[images[:, 0, 0, 0] > 0.3]
    assert str(caught.value) == (
        f"ood_score() returned NaN for {len(bad)} of 20 images of set 'constant' (first: sample {bad[0]})"
    )


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        (["uniform", "uniform"], "'uniform' is listed twice"),
        (["svhn"], "Input should be 'uniform' or 'constant'"),
        ([], "no set is named: there is nothing to tell the data from"),
    ],
)
def test_a_mistake_in_sets_is_one_line(sets: list[str], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        OODOptions.model_validate({"sets": sets})
    (error,) = caught.value.errors()
    assert error["msg"] == text
    assert error["loc"][0] == "sets"
