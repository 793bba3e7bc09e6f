"""The JSON schema that editors use agrees with the validation of suites."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from harness.host import Host
from harness.suite import shipped_suites
from harness.suite_schema import suite_schema


def errors(schema: Any, value: Any, root: Any, at: str = "") -> list[str]:
    """Where `value` does not meet the schema: the part of JSON Schema that the harness uses."""
    if "$ref" in schema:
        return errors(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root, at)
    out: list[str] = []
    for word in ("anyOf", "oneOf"):
        if word in schema:
            met = sum(not errors(option, value, root, at) for option in schema[word])
            if met == 0 or (word == "oneOf" and met != 1):
                out.append(f"{at}: {met} of {word}")
    if "const" in schema and value != schema["const"]:
        out.append(f"{at}: not {schema['const']}")
    if "enum" in schema and value not in schema["enum"]:
        out.append(f"{at}: not in enum")
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kind = schema.get("type")
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_number = numeric and (kind == "number" or isinstance(value, int))
    if not (is_number if kind in ("number", "integer") else isinstance(value, kinds.get(kind, object))):
        out.append(f"{at}: no {kind}")
    if numeric and "minimum" in schema and value < schema["minimum"]:
        out.append(f"{at}: too small")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        out.append(f"{at}: pattern")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        out += [f"{at}: {key} missing" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            more = schema.get("additionalProperties", True)
            if key in known:
                out += errors(known[key], item, root, f"{at}.{key}")
            elif more is False:
                out.append(f"{at}.{key}: unknown")
            elif isinstance(more, dict):
                out += errors(more, item, root, f"{at}.{key}")
    if isinstance(value, list):
        out += [e for i, item in enumerate(value) for e in errors(schema.get("items", {}), item, root, f"{at}[{i}]")]
        out += [f"{at}: too few"] if len(value) < schema.get("minItems", 0) else []
    return out


@pytest.fixture(scope="module")
def schema(host: Host) -> Any:
    return suite_schema(host)


@pytest.fixture
def quickstart() -> dict[str, Any]:
    return tomllib.loads((shipped_suites() / "quickstart.toml").read_text())


@pytest.mark.parametrize("path", sorted(shipped_suites().rglob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_suite_meets_the_schema(path: Path, schema: Any) -> None:
    assert errors(schema, tomllib.loads(path.read_text()), schema) == []


def test_every_reference_leads_somewhere(schema: Any) -> None:
    found = re.findall(r"'\$ref': '#/\$defs/([^']+)'", repr(schema))
    assert set(found) <= schema["$defs"].keys()


@pytest.mark.parametrize("table", ["suite", "models.cnn", "threats.1", "gate", "suite.dataset"])
def test_an_unknown_key_does_not_meet_the_schema(table: str, schema: Any, quickstart: dict[str, Any]) -> None:
    quickstart["gate"] = {"mode": "detect"}
    assert errors(schema, quickstart, schema) == []
    target: Any = quickstart
    for part in table.split("."):
        target = target[int(part)] if part.isdigit() else target[part]
    target["surprise"] = 1
    assert errors(schema, quickstart, schema)


def test_values_meet_the_schema_as_they_meet_the_suite(schema: Any, quickstart: dict[str, Any]) -> None:
    pgd = quickstart["threats"][1]
    for good in ("8/255", 0.1, ["2/255", 0.1]):
        pgd["eps"] = good
        assert errors(schema, quickstart, schema) == []
    for bad in ("8 of 255", [], True, {"a": 1}):
        pgd["eps"] = bad
        assert errors(schema, quickstart, schema)
    pgd["eps"] = 0.1
    quickstart["threats"][-1]["sets"] = ["unifrm"]
    assert errors(schema, quickstart, schema)


def test_names_of_plugins_are_completed(schema: Any) -> None:
    threats = [v["properties"]["plugin"]["const"] for v in schema["properties"]["threats"]["items"]["oneOf"]]
    assert {"clean", "pgd", "ood"} <= set(threats)
