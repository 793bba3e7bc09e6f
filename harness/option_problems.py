"""What is wrong with a table of options, in words: pydantic's errors as lines with path, expectation, nearest name."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.errors import did_you_mean

# What pydantic puts into an error's path beside keys and indices: the branch of a union, the validator's name.
_BRANCH = re.compile(
    r"(constrained-)?(str|int|float|bool|bytes)|(tuple|list|dict|set|function|literal|enum|is-)\W.*|Amount"
)


# What TOML calls the types of Python.
_LISTS, _TABLES = ("tuple_type", "list_type", "set_type", "frozen_set_type"), ("dict_type", "mapping_type")


def problem_lines(
    options: type[BaseModel], error: ValidationError, where: str, beside: Iterable[str] = ()
) -> list[str]:
    """One line for each key that is wrong, each beginning with `where` and the path of the key.

    `beside` names further keys that a mistyped one may mean.
    """
    details = error.errors()
    found: dict[str, list[str]] = {}
    for detail in details:
        if detail["type"] == "too_short" and any(d["loc"][:-1] == detail["loc"] for d in details):
            continue  # the items that are there are wrong, which has a line of its own
        path = _path(detail["loc"])
        text = _text(options, detail, beside)
        found.setdefault(f"{where} {path}" if path else where, []).append(text)
    return [f"{at}: {'; or '.join(dict.fromkeys(texts))}" for at, texts in found.items()]


def _path(location: Sequence[Any]) -> str:
    """`rules[0].select.model`; without the names of the types that a value might have had."""
    out = ""
    for position, part in enumerate(location):
        if isinstance(part, int):
            out += f"[{part}]"
        elif position == 0 or not _BRANCH.fullmatch(part):
            out += f".{part}" if out else part
    return out


def _text(options: type[BaseModel], error: Any, beside: Iterable[str]) -> str:
    if error["type"] == "extra_forbidden":
        known = {*_fields_at(options, error["loc"][:-1]), *(beside if len(error["loc"]) == 1 else ())}
        return f"unknown key{did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return "missing"
    message: str = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    shown = error.get("input")
    if error["type"] in _LISTS:
        return f"expected a list{'' if isinstance(shown, dict) else f', such as [{shown!r}]'}, not {shown!r}"
    if error["type"] in _TABLES:
        return f"expected a table, not {shown!r}"
    if error["type"] in ("amount", "value_error", "too_short", "too_long") or isinstance(shown, (dict, BaseModel)):
        return message
    if error["type"] == "literal_error" and isinstance(shown, str):
        expected = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{message}, not {shown!r}{did_you_mean(shown, expected)}"
    if error["type"] == "option" and not message.startswith("expected"):
        return message  # a plugin's own words, which name what is wrong themselves
    return f"{message}, not {shown!r}"


def _fields_at(options: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Names of the fields of the (nested) model at a path."""
    current: Any = options
    for part in location:
        found = getattr(current, "model_fields", {}).get(part)
        if found is None:
            continue
        nested = [a for a in (found.annotation, *typing.get_args(found.annotation)) if hasattr(a, "model_fields")]
        current = nested[0] if nested else None
    return list(getattr(current, "model_fields", {}))
