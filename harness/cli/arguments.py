"""What several commands read from their command line: options as ``key=value``, and a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.host import Host


def sort_assignments(
    assignments: Sequence[str], options: type[BaseModel] | None, recipe: type[BaseModel] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``key=value`` texts as two tables: options of the model, and of its training.

    Raises:
        HarnessError: one that is no assignment, or of a key that neither has.
    """
    from harness.suite_overrides import parse_value

    fields = [set(kind.model_fields) if kind else set() for kind in (options, recipe)]
    tables: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for text in assignments:
        path, separator, raw = text.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise HarnessError(f"--set {text}: expected key=value, such as epochs=10")
        homes = [table for table, names in zip(tables, fields, strict=True) if keys[0] in names]
        if not homes:
            raise HarnessError(f"--set {text}: unknown key{did_you_mean(keys[0], fields[0] | fields[1])}")
        _assign(homes[0], keys, parse_value(raw.strip()), text)
    return tables


def _assign(table: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise HarnessError(f"--set {text}: '{key}' was already given a value")
    table[keys[-1]] = value


def dataset_table(text: str, host: Host, split: str | None = None) -> dict[str, Any]:
    """``digits``, ``digits:train``, ``npz:train,path=x.npz`` or ``{name = "npz", ...}`` as a suite's dataset table.

    Args:
        split: where the text names none and the data set has splits, this one; its own default where None.

    Raises:
        HarnessError: the text is no such thing.
    """
    from harness.info import resolve
    from harness.suite_overrides import parse_value

    if text.lstrip().startswith("{"):
        table = parse_value(text)
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            raise HarnessError(f'--dataset {text}: expected a table with a name, such as {{name = "digits"}}')
    else:
        first, *rest = re.split(r",(?![^\[{(\"]*[\]})\"])", text)
        name, _, named = first.partition(":")
        table = {"name": name.strip(), **({"split": named.strip()} if named else {})}
        for item in rest:
            key, separator, raw = item.partition("=")
            if not separator:
                raise HarnessError(f"--dataset {text}: '{item}' is not key=value")
            table[key.strip()] = parse_value(raw.strip())
    if split is not None and table["name"] in host.datasets and "split" not in table:
        options = resolve(host.datasets.get(table["name"]).options, f"dataset '{table['name']}'")
        if options is not None and "split" in options.model_fields:
            table["split"] = split
    return table
