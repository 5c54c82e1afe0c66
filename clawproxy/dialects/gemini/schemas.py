"""Google's schemas (a subset of OpenAPI 3.0) as JSON Schema, which the other formats take.

Rule: only what the two write differently is changed: type names in capitals, `nullable`, counts written as strings. What JSON
Schema has no word for and no model reads (`propertyOrdering`) is left out. The client's own schema is kept beside it, for
providers of this format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clawproxy.dialects.gemini.names import camel

_COUNTS = frozenset({"minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"})
_MAPS = frozenset({"properties", "$defs", "defs"})
_LISTS = frozenset({"anyOf", "prefixItems", "oneOf", "allOf"})
_LEFT_OUT = frozenset({"propertyOrdering", "nullable", "example"})


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A new schema; the one given is not changed. As deep as the request's JSON may be."""
    said = camel(schema)
    made: dict[str, Any] = {}
    for name, value in said.items():
        if name in _LEFT_OUT or value is None:
            continue
        if name == "type" and isinstance(value, str):
            if value.upper() != "TYPE_UNSPECIFIED":
                made["type"] = value.lower()
        elif name in _MAPS and isinstance(value, dict):
            made[name] = {key: _schema(item) for key, item in value.items()}
        elif name in _LISTS and isinstance(value, list):
            made[name] = [_schema(item) for item in value]
        elif name in ("items", "additionalProperties"):
            made[name] = _schema(value)
        elif name in _COUNTS and isinstance(value, str) and value.isdecimal() and len(value) < 19:
            made[name] = int(value)
        else:
            made[name] = value
    if said.get("nullable") is True:
        return _nullable(made)
    return made


def _schema(value: Any) -> Any:
    return json_schema(value) if isinstance(value, dict) else value


def _nullable(made: dict[str, Any]) -> dict[str, Any]:
    kind = made.get("type")
    if isinstance(kind, str) and kind != "null":
        made["type"] = [kind, "null"]
        if isinstance(made.get("enum"), list) and None not in made["enum"]:
            made["enum"] = [*made["enum"], None]
    elif isinstance(made.get("anyOf"), list):
        made["anyOf"] = [*made["anyOf"], {"type": "null"}]
    return made
