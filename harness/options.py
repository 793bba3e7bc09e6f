"""Options of plugins: pydantic models that refuse unknown keys, and amounts written as the field does (8/255)."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Options(BaseModel):
    """Base of every plugin's options: unknown keys are refused, values are frozen, field descriptions are the help."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def option(
    default: Any = ...,
    *,
    help: str,  # noqa: A002
    unit: str = "",
    model_or: tuple[str, ...] = (),
    **constraints: Any,
) -> Any:
    """A field of an `Options` class: `help` in one line, `unit` of a number, constraints as in pydantic's Field.

    `model_or`: of a metric's option that names a model of the suite, what else it may be; the suite checks it.
    """
    extra: dict[str, Any] | None = {"unit": unit} if unit else {"model_or": list(model_or)} if model_or else None
    if "default_factory" in constraints:
        return Field(description=help, json_schema_extra=extra, **constraints)
    return Field(default, description=help, json_schema_extra=extra, **constraints)


def problem(text: str) -> PydanticCustomError:
    """A refusal whose message is `text`, one line."""
    return PydanticCustomError("option", "{text}", {"text": text})


class Amount(float):
    """A number that remembers how it was written: ``Amount("8/255")`` is 0.0313..., shown and hashed as ``8/255``."""

    text: str

    def __new__(cls, value: float | str) -> Amount:
        if isinstance(value, Amount):
            return value
        number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
        if not math.isfinite(number):
            raise ValueError("not finite")
        self = super().__new__(cls, number)
        self.text = value.replace(" ", "") if isinstance(value, str) else f"{number:g}"
        if float(Fraction(self.text)) != number:
            self.text = repr(number)
        return self

    def __reduce__(self) -> tuple[type[Amount], tuple[str]]:
        return Amount, (self.text,)

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__

    @classmethod
    def _validate(cls, value: Any) -> Amount:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            # One message covers every wrong value.
            with contextlib.suppress(ValueError, ZeroDivisionError, OverflowError):
                return cls(value)
        raise PydanticCustomError(
            "amount", '{value} is not a number or a fraction such as "8/255"', {"value": repr(value)}
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda amount: amount.text),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\s*[0-9.eE+-]+\s*(/\s*[0-9]+)?\s*$"}]}


def check_radius(eps: Amount, norm: str) -> None:
    """Refuse what is no radius of a ball in images of [0, 1].

    Raises:
        PydanticCustomError: negative, or more than any pixel can move; asks whether 1/255 was the unit.
    """
    if eps < 0:
        raise problem(f"{eps} is negative: a budget is 0 or more")
    if eps > 1 and norm == "linf":
        raise problem(f"{eps} is more than the whole range [0, 1] of a pixel{in_255ths(eps)}")


def eps_in_range(eps: Amount | None, info: ValidationInfo) -> Amount | None:
    """Validates an option `eps` beside an option `norm`: ``field_validator("eps")(eps_in_range)``."""
    if eps is not None:
        check_radius(eps, info.data.get("norm", ""))
    return eps


def in_255ths(amount: Amount) -> str:
    """The question that a budget written on the scale 0 to 255 calls for, or nothing."""
    return f'; did you mean "{amount}/255"?' if 1 < amount <= 255 and "/" not in str(amount) else ""
