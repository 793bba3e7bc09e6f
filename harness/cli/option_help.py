"""The options of a plugin in words: name, type, default, unit and description of each field of its `Options` class."""

from __future__ import annotations

import enum
import types
import typing
from dataclasses import dataclass, replace
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from harness.options import Amount

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <="}
_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "none", Any: "anything"}


@dataclass(frozen=True)
class OptionHelp:
    name: str
    type: str
    default: str
    description: str


def describe_options(options: type[BaseModel]) -> list[OptionHelp]:
    """One entry for each option, in the order they are written; keys of a table follow it as ``table.key``."""
    found = []
    for name, field in options.model_fields.items():
        name = field.alias or name
        found.append(OptionHelp(name, _type(field), _default(field), _description(field)))
        for table in _tables(field.annotation):
            found += [replace(entry, name=f"{name}.{entry.name}") for entry in describe_options(table)]
    return found


def _tables(annotation: Any) -> list[type[BaseModel]]:
    """The option classes inside a type: what a user writes as a table of its own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in typing.get_args(annotation) for table in _tables(part)]


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(item, attribute)}"
        for item in field.metadata
        for attribute, sign in _BOUNDS.items()
        if getattr(item, attribute, None) is not None
    ]
    return " ".join([type_words(field.annotation), *bounds])


def type_words(annotation: Any) -> str:
    """A type annotation as a user of suite files reads it: ``Literal["linf", "l2"]`` is "linf | l2"."""
    if annotation is Amount:
        return "number or fraction"
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_words(arguments[0])
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(a) for a in arguments)
    if origin is tuple and arguments[-1:] != (...,):
        return "(" + ", ".join(type_words(a) for a in arguments) + ")"
    if origin in (list, tuple, set, frozenset):
        return f"list of {type_words(arguments[0])}"
    if origin is not None and arguments:
        return f"table of {type_words(arguments[-1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " | ".join(str(member.value) for member in annotation)
    return "path" if getattr(annotation, "__name__", "") == "Path" else getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
    return "required" if default is PydanticUndefined else _toml(default)


def _toml(value: Any) -> str:
    """A default as it would be written in a suite file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Amount)):
        return f'"{value}"' if "/" in str(value) or isinstance(value, str) else str(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return str(value)


def _description(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    unit = extra.get("unit") if isinstance(extra, dict) else None
    return f"{field.description or ''} ({unit})".strip() if unit else field.description or ""
