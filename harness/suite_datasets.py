"""Options that hold tables of data sets, checked with the suite and not first when a data set is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from harness.errors import SuiteError


@dataclass(frozen=True)
class DatasetTables:
    """Marks an option as a list of tables, each written like the suite's `dataset`.

    For example ``datasets: Annotated[tuple[dict[str, Any], ...], DatasetTables(own=("set",))] = option((), help=...)``.

    Attributes:
        own: keys of each table that mean something to the plugin, and nothing to the data set.
    """

    own: tuple[str, ...] = ()


Check = Callable[[Mapping[str, Any], str, tuple[str, ...]], object]
"""Refuses a table (with a SuiteError), given the path that its problems begin with, and the plugin's own keys."""


def with_tables_checked(
    found: list[str], options: type[BaseModel] | None, table: Mapping[str, Any], where: str, check: Check
) -> list[str]:
    """The problems `found` in a plugin's options, and those of the data sets that these name; one line each."""
    for name, info in (options.model_fields if options is not None else {}).items():
        marks = [mark for mark in info.metadata if isinstance(mark, DatasetTables)]
        given = table.get(name)
        if not marks or not isinstance(given, (list, tuple)):
            continue
        for place, item in enumerate(given):
            at = f"{where} {name}[{place}]"
            if lines := _problems(item, at, marks[0], check):
                found = [line for line in found if not line.startswith(f"{at}:")] + lines
    return found


def _problems(item: Any, at: str, mark: DatasetTables, check: Check) -> list[str]:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        name = item if isinstance(item, str) else "digits"
        return [f'{at}: expected a table with a name, such as {{ name = "{name}", split = "test" }}, not {item!r}']
    try:
        check({key: value for key, value in item.items() if key not in mark.own}, at, mark.own)
    except SuiteError as error:
        return list(error.problems)
    return []
