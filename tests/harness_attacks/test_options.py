"""Options of the attacks: defaults, and one clear line for each mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_attacks.clean import CleanOptions
from harness_attacks.options import PGDOptions
from harness_attacks.pgd import PGD
from pydantic import ValidationError

from harness.errors import HarnessError
from harness.threats import Budget

TOO_MUCH = " is more than the whole range [0, 1] of a pixel"
NO_TARGET = ' is not a target: expected "random", "least-likely" or the index of a class'


@pytest.mark.parametrize(
    ("options", "key", "text"),
    [
        ({"eps": 8}, "eps", "8" + TOO_MUCH + '; did you mean "8/255"?'),
        ({"eps": "400"}, "eps", "400" + TOO_MUCH),
        ({"eps": "510/255"}, "eps", "510/255" + TOO_MUCH),
        ({"eps": -0.1}, "eps", "-0.1 is negative: a budget is 0 or more"),
        ({"eps": -1, "norm": "l2"}, "eps", "-1 is negative: a budget is 0 or more"),
        ({"eps": "eight"}, "eps", "'eight' is not a number or a fraction such as \"8/255\""),
        ({"eps": 0.1, "step_size": 0}, "step_size", "0 is not positive: a step must have a length"),
        ({"eps": 0.1, "step_size": 2}, "step_size", "2" + TOO_MUCH + '; did you mean "2/255"?'),
        ({"eps": 0.1, "steps": 0}, "steps", "Input should be greater than or equal to 1"),
        ({"eps": 0.1, "restarts": 0}, "restarts", "Input should be greater than or equal to 1"),
        (
            {"eps": 0.1, "restarts": 3, "random_start": False},
            "restarts",
            "3 restarts without random_start would all be the same: set random_start = true",
        ),
        ({"eps": 0.1, "target": "worst"}, "target", "'worst'" + NO_TARGET),
        ({"eps": 0.1, "target": True}, "target", "True" + NO_TARGET),
        ({"eps": 0.1, "target": -1}, "target", "-1" + NO_TARGET),
        ({"eps": 0.1, "norm": "l3"}, "norm", "Input should be 'linf', 'l2' or 'l1'"),
        ({"eps": 0.1, "epz": 0.1}, "epz", "Extra inputs are not permitted"),
        ({}, "eps", "Field required"),
    ],
)
def test_a_mistake_is_one_line_at_its_key(options: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PGDOptions(**options)
    (error,) = caught.value.errors()
    assert error["loc"] == (key,)
    assert error["msg"] == text


def test_an_l2_budget_may_exceed_one_but_not_the_diameter_of_the_image_space(attack: Any) -> None:
    x = torch.zeros(1, 1, 8, 8)
    assert attack.build(x, norm="l2", eps=8).eps == 8.0
    with pytest.raises(HarnessError) as caught:
        attack.build(x, norm="l2", eps=128)
    assert str(caught.value) == (
        'pgd: eps 128 is more than the l2 diameter 8 of 1x8x8 images in [0, 1]; did you mean "128/255"?'
    )


def test_a_target_must_be_a_class_of_the_data(attack: Any) -> None:
    with pytest.raises(HarnessError, match=r"^pgd: target 10 is not a class: the data have classes 0 to 9$"):
        attack.build(torch.zeros(1, 1, 8, 8), eps=0.1, target=10)


def test_the_default_step_is_two_and_a_half_balls_over_all_steps() -> None:
    assert PGD(PGDOptions(eps="8/255")).sizes == pytest.approx([2.5 * 8 / 255 / 40] * 40)
    assert PGD(PGDOptions(eps="8/255", step_size="2/255")).sizes[0] == 2 / 255
    assert PGD(PGDOptions(eps="8/255", norm="l2")).budget == Budget("l2", 8 / 255)


def test_options_are_shown_as_they_were_written() -> None:
    assert PGDOptions(eps="8/255").model_dump(mode="json") == {
        "norm": "linf",
        "eps": "8/255",
        "steps": 40,
        "step_size": None,
        "random_start": True,
        "schedule": "constant",
        "restarts": 1,
        "loss": "cross-entropy",
        "target": None,
        "targets": None,
        "eot": 1,
        "evade": "none",
        "evade_weight": 1.0,
        "evade_fpr": 0.05,
        "early_stop": True,
    }
    with pytest.raises(ValidationError):
        CleanOptions(eps=1)  # type: ignore[call-arg]


def test_the_schema_describes_every_option() -> None:
    for name, field in PGDOptions.model_json_schema()["properties"].items():
        assert field["description"], name
