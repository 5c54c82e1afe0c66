"""Tools in the shape that Ollama and Cohere took over from OpenAI: `{"type": "function", "function": {"name", "description",
"parameters"}}`; and what else those two have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_request import FORBIDDEN
from clawproxy.errors import ClawError
from clawproxy.messages import EMPTY, ResponseFormat, Tool

_TOOL = frozenset({"type", "function"})
_FUNCTION = frozenset({"name", "description", "parameters"})


def document(body: bytes, limits: Mapping[str, int]) -> dict[str, Any]:
    """A request's JSON object. Raises ClawError: `invalid_json`, `json_too_deep`, `invalid_request`, `unknown_parameter`."""
    fields = jsonio.decode(body, depth=limits.get("json_depth", 64))
    if not isinstance(fields, dict):
        raise ClawError("invalid_request", "The body must be a JSON object.")
    for name in sorted(FORBIDDEN & fields.keys()):
        raise ClawError("unknown_parameter", f"`{name}` is not a parameter of this API.", param=name)
    return fields


def model_name(fields: Mapping[str, Any]) -> str:
    model = check.text(check.need(fields, "model", ""), "model")
    if not model:
        check.refuse("model", "not be empty")
    return model


def read_tools(value: Any) -> tuple[Tool, ...]:
    if value is None:
        return ()
    return tuple([_read(item, f"tools[{number}]") for number, item in enumerate(check.array(value, "tools", longest=1024))])


def _read(value: Any, where: str) -> Tool:
    fields = check.mapping(value, where)
    if fields.get("type", "function") != "function":
        check.refuse(f"{where}.type", "be function")
    within = f"{where}.function"
    inner = check.mapping(check.need(fields, "function", where), within)
    name = check.token(check.need(inner, "name", within), f"{within}.name", longest=256)
    description, parameters = inner.get("description"), inner.get("parameters")
    extra = check.beyond(fields, _TOOL)
    left = check.beyond(inner, _FUNCTION)
    if left:
        extra["function"] = left
    return Tool(
        name,
        None if description is None else check.text(description, f"{within}.description"),
        None if parameters is None else check.mapping(parameters, f"{within}.parameters"),
        extra=extra or EMPTY,
    )


def write_tool(tool: Tool, same: bool) -> dict[str, Any]:
    """`same`: the request came in the dialect it goes out in."""
    extra = dict(tool.extra) if same else {}
    inner = {**extra.pop("function", {}), "name": tool.name}
    if tool.description is not None:
        inner["description"] = tool.description
    inner["parameters"] = {"type": "object", "properties": {}} if tool.parameters is None else tool.parameters
    return {**extra, "type": "function", "function": inner}


def schema_format(schema: Mapping[str, Any]) -> ResponseFormat:
    """A bare JSON Schema. Other formats want a name for it."""
    return ResponseFormat("json_schema", {"name": "answer", "schema": schema})


def schema_of(wanted: ResponseFormat) -> Mapping[str, Any] | None:
    """The bare JSON Schema of a `json_schema` format; None where it has none."""
    schema = (wanted.schema or {}).get("schema")
    return schema if isinstance(schema, Mapping) else None
