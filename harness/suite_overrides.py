"""``--set key=value``: one value of a suite document, changed before it is validated."""

from __future__ import annotations

import tomllib
from typing import Any

from harness.errors import HarnessError


def apply_override(document: dict[str, Any], text: str) -> None:
    """Set one value of a suite document from ``key=value``.

    Raises:
        HarnessError: no ``=``, or a path that leads nowhere.
    """
    path, separator, raw = text.partition("=")
    if not separator or not path.strip():
        raise HarnessError(f"--set {text}: expected key=value, such as suite.seed=1")
    targets: list[Any] = [document]
    keys = path.strip().split(".")
    for position, key in enumerate(keys[:-1]):
        targets = [t for target in targets for t in _descend(target, key, nested=position > 1)]
        if not targets:
            raise HarnessError(f"--set {text}: the suite has no '{'.'.join(keys[: position + 1])}'")
    for target in targets:
        if not isinstance(target, dict):
            raise HarnessError(f"--set {text}: '{keys[-1]}' is a table of the suite; give one of its keys")
        target[keys[-1]] = parse_value(raw)


def parse_value(raw: str) -> Any:
    """A value as TOML writes it; text that is no TOML value stands for itself (``8/255``, ``linf``)."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _descend(target: Any, key: str, *, nested: bool) -> list[Any]:
    """What `key` leads to; inside the table of a model or threat (`nested`), a table that is not there yet is made."""
    name, _, index = key.partition("[")
    if isinstance(target, list):
        return [t for t in target if isinstance(t, dict) and name in (t.get("name"), t.get("plugin"))]
    if not isinstance(target, dict):
        return []
    if name not in target and (nested or name in ("suite", "metrics", "gate")):
        target[name] = {}
    if name == "dataset" and isinstance(target.get(name), str):
        target[name] = {"name": target[name]}
    value = target.get(name)
    if index and isinstance(value, list):
        number = index.rstrip("]")
        return [value[int(number)]] if number.isdigit() and int(number) < len(value) else []
    return [value] if isinstance(value, (dict, list)) else []
