"""The JSON schema of suite files, with the options of every plugin that is loaded."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from harness.errors import PluginError
from harness.gate_options import GateOptions
from harness.host import Host, Registry
from harness.info import resolve
from harness.suite import SliceTable, SuiteTable, ThreatTable

Schema = dict[str, Any]


def suite_schema(host: Host) -> Schema:
    """A JSON schema (draft 2020-12). Plugins whose options cannot be loaded are left out."""
    definitions: Schema = {}
    datasets = _variants(host.datasets, "name", definitions, extra=SliceTable, grids=False)
    models = _variants(host.models, "plugin", definitions, extra=None, grids=False)
    threats = _variants(host.threats, "plugin", definitions, extra=ThreatTable, grids=True)
    suite = _lift(SuiteTable, definitions)
    suite["properties"]["dataset"] = {"anyOf": [{"enum": [i.name for i in host.datasets]}, {"oneOf": datasets}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Harness suite",
        "type": "object",
        "additionalProperties": False,
        "required": ["suite", "models", "threats"],
        "properties": {
            "suite": suite,
            "models": {"type": "object", "additionalProperties": {"oneOf": models}, "minProperties": 1},
            "threats": {"type": "array", "items": {"oneOf": threats}, "minItems": 1},
            "metrics": {"type": "object", "additionalProperties": False, "properties": _metrics(host, definitions)},
            "gate": _lift(GateOptions, definitions),
        },
        "$defs": definitions,
    }


def _metrics(host: Host, definitions: Schema) -> Schema:
    """Schemas of the metrics that have options, by name."""
    found = {}
    for info in host.metrics:
        try:
            options = resolve(info.options, f"metric '{info.name}'")
        except PluginError:
            continue
        if options is not None:
            found[info.name] = {**_lift(options, definitions), "description": info.summary}
    return found


def _variants(
    registry: Registry[Any], key: str, definitions: Schema, *, extra: type[BaseModel] | None, grids: bool
) -> list[Schema]:
    """One schema for each plugin of a kind, told apart by its name."""
    found = []
    for info in registry:
        try:
            options = resolve(info.options, f"{registry.kind} '{info.name}'")
        except PluginError:
            continue
        schema: Schema = _lift(options, definitions) if options is not None else {"type": "object"}
        properties: Schema = schema.setdefault("properties", {})
        if grids:
            schema["properties"] = properties = {k: _or_list(v) for k, v in properties.items()}
        if extra is not None:
            properties.update(_lift(extra, definitions)["properties"])
        properties[key] = {"const": info.name, "description": info.summary}
        schema["required"] = [key, *schema.get("required", [])]
        schema["additionalProperties"] = False
        schema["description"] = info.summary
        found.append(schema)
    return found


def _or_list(schema: Schema) -> Schema:
    """A list given for a scalar option makes a grid."""
    if schema.get("type") == "array":
        return schema
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def _lift(model: type[BaseModel], definitions: Schema) -> Schema:
    """A model's schema with its shared definitions moved to the top."""
    schema = model.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    return schema
