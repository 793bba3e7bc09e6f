"""Options refuse what they do not know, and amounts are read as the field writes them."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.options import Amount, Options, option


class Attack(Options):
    eps: Amount = option(help="radius", unit="[0, 1] pixel units", gt=0, le=1)
    step: Amount | None = option(None, help="step size")
    steps: int = option(10, help="gradient steps", ge=1)
    sets: tuple[str, ...] = option(default_factory=tuple, help="names")


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        Attack.model_validate({"eps": 0.1, "epz": 0.1})
    assert caught.value.errors()[0]["type"] == "extra_forbidden"


def test_options_are_frozen_and_their_defaults_validated() -> None:
    options = Attack(eps=Amount(0.1))
    with pytest.raises(ValidationError):
        options.steps = 3  # type: ignore[misc]

    class Wrong(Options):
        steps: int = option("many", help="gradient steps")

    with pytest.raises(ValidationError):
        Wrong()


def test_help_and_unit_are_in_the_field() -> None:
    field = Attack.model_fields["eps"]
    assert field.description == "radius"
    assert field.json_schema_extra == {"unit": "[0, 1] pixel units"}
    assert Attack.model_fields["steps"].json_schema_extra is None
    assert Attack.model_fields["sets"].description == "names"


@pytest.mark.parametrize(
    ("written", "value", "shown"),
    [
        ("8/255", 8 / 255, "8/255"),
        (" 8 / 255 ", 8 / 255, "8/255"),
        ("0.031", 0.031, "0.031"),
        ("1e-3", 0.001, "1e-3"),
        (0.5, 0.5, "0.5"),
        (1, 1.0, "1"),
        (1 / 3, 1 / 3, repr(1 / 3)),
        (Amount("2/255"), 2 / 255, "2/255"),
    ],
)
def test_amounts(written: object, value: float, shown: str) -> None:
    options = Attack.model_validate({"eps": written})
    assert options.eps == value
    assert str(options.eps) == repr(options.eps) == shown
    assert options.model_dump(mode="json")["eps"] == shown


@pytest.mark.parametrize("written", ["8/0", "eight", "", "nan", "1e999", math.inf, math.nan, True, None, [1], "1/2/3"])
def test_what_is_no_amount_is_refused(written: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Attack.model_validate({"eps": written})
    assert 'is not a number or a fraction such as "8/255"' in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("written", ["0", "-1/255", 1.5])
def test_amounts_keep_their_bounds(written: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Attack.model_validate({"eps": written})
    assert caught.value.errors()[0]["type"] in ("greater_than", "less_than_equal")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_an_amount_survives_what_it_shows(number: float) -> None:
    amount = Amount(number)
    assert float(amount) == number
    assert Amount(str(amount)) == number
    for twin in (pickle.loads(pickle.dumps(amount)), copy.deepcopy(amount)):
        assert (float(twin), str(twin)) == (float(amount), str(amount))


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_a_fraction_is_the_nearest_number(numerator: int, denominator: int) -> None:
    amount = Amount(f"{numerator}/{denominator}")
    assert float(amount) == float(Fraction(numerator, denominator)) == numerator / denominator


def test_options_survive_a_round_trip() -> None:
    options = Attack.model_validate({"eps": "8/255", "step": 0.01, "sets": ["a", "b"]})
    again = Attack.model_validate(options.model_dump(mode="json"))
    assert again == options
    assert str(again.eps) == "8/255"
    assert pickle.loads(pickle.dumps(options)) == options


def test_the_schema_takes_numbers_and_fractions() -> None:
    schema = Attack.model_json_schema()["properties"]["eps"]
    assert {"type": "number"} in schema["anyOf"]
    assert any(kind.get("type") == "string" for kind in schema["anyOf"])
