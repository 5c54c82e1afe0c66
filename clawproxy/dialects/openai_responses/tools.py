"""The tools of a Responses request: from JSON to the vocabulary, and back.

Rule 1: what any provider can offer to its model becomes a `Tool`: a function as it is; a custom (freeform) tool as a function
        of one string, `input`; a function inside a namespace under the name `NAMESPACE__NAME`. `Names` turns calls back.
Rule 2: what only a Responses provider runs itself (`file_search`, `mcp`, ...) stays as it came, in the request's `extra` under
        `tools[N]`, where other formats refuse it by that name.
Rule 3: one of these is harmless to lose: a web search whose client keeps it off the web (`external_web_access: false`). Codex
        offers it with every request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import msgspec

from clawproxy.dialects.openai_chat import check
from clawproxy.messages import EMPTY, ChatRequest, Tool, ToolChoice

NAME = "openai_responses"
CACHED_SEARCH = "web_search"
"""The name in `extra` of Rule 3's tools: `[(place, tool), ...]`."""

_PLACED = re.compile(r"tools\[([0-9]+)\]")
_FUNCTION = frozenset({"type", "name", "description", "parameters", "strict"})
_CUSTOM = frozenset({"name", "description"})


def read_tools(value: Any, extra: dict[str, Any]) -> tuple[Tool, ...]:
    """The tools that have a word in the vocabulary; the others go to `extra`."""
    if value is None:
        return ()
    tools: list[Tool] = []
    for place, item in enumerate(check.array(value, "tools", longest=1024)):
        where = f"tools[{place}]"
        fields = check.mapping(item, where)
        kind = check.token(check.need(fields, "type", where), f"{where}.type")
        if kind == "function":
            tools.append(_function(fields, where))
        elif kind == "custom":
            tools.append(_custom(fields, where))
        elif kind == "namespace" and _flat(fields):
            tools.extend(_namespace(fields, where))
        elif kind.startswith("web_search") and fields.get("external_web_access") is False:
            extra.setdefault(CACHED_SEARCH, []).append((place, fields))
        else:
            extra[where] = fields
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        check.refuse("tools", "have names that differ")
    return tuple(tools)


def _named(fields: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    name = check.token(check.need(fields, "name", where), f"{where}.name", longest=256)
    said = fields.get("description")
    return name, None if said is None else check.text(said, f"{where}.description")


def _function(fields: dict[str, Any], where: str) -> Tool:
    name, description = _named(fields, where)
    parameters, strict = fields.get("parameters"), fields.get("strict")
    return Tool(
        name,
        description,
        None if parameters is None else check.mapping(parameters, f"{where}.parameters"),
        None if strict is None else check.flag(strict, f"{where}.strict"),
        check.beyond(fields, _FUNCTION) or EMPTY,
    )


def _custom(fields: dict[str, Any], where: str) -> Tool:
    """A custom tool's input is any text; its grammar goes to that text's description, for models that can not be held to it."""
    name, description = _named(fields, where)
    words = "The whole input of this tool, as plain text."
    form = fields.get("format")
    if isinstance(form, dict) and isinstance(form.get("definition"), str):
        words += f" It must match this grammar ({form.get('syntax', 'lark')}):\n{form['definition']}"
    schema = {
        "type": "object",
        "properties": {"input": {"type": "string", "description": words}},
        "required": ["input"],
        "additionalProperties": False,
    }
    return Tool(name, description, schema, None, check.beyond(fields, _CUSTOM))


def _flat(fields: Mapping[str, Any]) -> bool:
    """Whether a namespace holds nothing but functions."""
    inner = fields.get("tools")
    return isinstance(inner, list) and all(isinstance(item, dict) and item.get("type") == "function" for item in inner)


def _namespace(fields: dict[str, Any], where: str) -> Iterable[Tool]:
    space, _ = _named(fields, where)
    around = {name: value for name, value in fields.items() if name != "tools"}
    for number, item in enumerate(fields["tools"]):
        tool = _function(item, f"{where}.tools[{number}]")
        yield Tool(joined(space, tool.name), tool.description, tool.parameters, tool.strict, {**tool.extra, "namespace": around})


def joined(space: str | None, name: str) -> str:
    """The one name of a function in a namespace."""
    if not space:
        return name
    return space + name if space.endswith("__") else f"{space}__{name}"


class Names:
    """What the tools of one request are called in this format, by their names in the vocabulary."""

    __slots__ = ("_custom", "_spaced")

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._custom: set[str] = set()
        self._spaced: dict[str, tuple[str, str]] = {}
        for tool in tools:
            if not tool.extra:
                continue
            if tool.extra.get("type") == "custom":
                self._custom.add(tool.name)
            around = tool.extra.get("namespace")
            if isinstance(around, dict) and isinstance(space := around.get("name"), str):
                self._spaced[tool.name] = space, tool.name[len(joined(space, "")) :]

    def is_custom(self, name: str) -> bool:
        return name in self._custom

    def said(self, name: str) -> dict[str, str]:
        """The `name`, and where there is one the `namespace`, of a call."""
        if name in self._spaced:
            space, own = self._spaced[name]
            return {"name": own, "namespace": space}
        return {"name": name}


def wrapped(text: str) -> str:
    """A custom tool's input as the arguments of the function that stands for it."""
    return msgspec.json.encode({"input": text}).decode()


def unwrapped(arguments: str) -> str:
    """The other way round; what is no such object is taken for the input itself."""
    try:
        said = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return arguments
    if isinstance(said, dict) and isinstance(said.get("input"), str):
        return cast(str, said["input"])
    return arguments


# --- writing them ----------------------------------------------------------------------------------------------------------


def write_tools(request: ChatRequest) -> list[dict[str, Any]]:
    """For a Responses provider, or to be repeated to the client. Tools of another format are written so that they mean the
    same: `strict` is true here where it is not said."""
    same = request.dialect == NAME
    written: list[dict[str, Any]] = []
    for tool in request.tools:
        extra = dict(tool.extra) if same else {}
        around = extra.pop("namespace", None)
        if extra.get("type") == "custom":
            written.append({**extra, "name": tool.name} | _described(tool))
            continue
        name = tool.name
        if around is not None:
            name = name[len(joined(around["name"], "")) :]
        fields = {**extra, "type": "function", "name": name} | _described(tool)
        if tool.parameters is not None or not same:
            fields["parameters"] = tool.parameters if tool.parameters is not None else {"type": "object", "properties": {}}
        if tool.strict is not None or not same:
            fields["strict"] = tool.strict or False
        if around is None:
            written.append(fields)
        elif written and written[-1].get("type") == "namespace" and written[-1]["name"] == around["name"]:
            written[-1]["tools"].append(fields)
        else:
            written.append({**around, "tools": [fields]})
    if same and request.extra:
        placed = [(int(found[1]), tool) for name, tool in request.extra.items() if (found := _PLACED.fullmatch(name))]
        for place, raw in sorted([*placed, *request.extra.get(CACHED_SEARCH, ())], key=lambda pair: pair[0]):
            written.insert(place, raw)
    return written


def _described(tool: Tool) -> dict[str, str]:
    return {} if tool.description is None else {"description": tool.description}


def without_tools(extra: Mapping[str, Any]) -> dict[str, Any]:
    """`extra` less what `read_tools` put there."""
    return {name: value for name, value in extra.items() if name != CACHED_SEARCH and not _PLACED.fullmatch(name)}


# --- the choice among them -------------------------------------------------------------------------------------------------


def read_choice(value: Any, extra: dict[str, Any]) -> ToolChoice | None:
    if value is None:
        return None
    if value in ("auto", "none", "required"):
        return ToolChoice(cast(Literal["auto", "none", "required"], value))
    if not isinstance(value, dict):
        check.refuse("tool_choice", "be auto, none, required or an object that names a tool")
    if value.get("type") in ("function", "custom"):
        name = check.token(check.need(value, "name", "tool_choice"), "tool_choice.name", longest=256)
        space = value.get("namespace")
        return ToolChoice("tool", joined(space if isinstance(space, str) else None, name))
    extra["tool_choice"] = value  # one that only a Responses provider understands
    return None


def write_choice(request: ChatRequest) -> Any:
    """None where nothing was said."""
    choice = request.tool_choice
    if choice is None:
        return request.extra.get("tool_choice") if request.dialect == NAME else None
    if choice.mode != "tool" or choice.name is None:
        return choice.mode
    names = Names(request.tools if request.dialect == NAME else ())
    return {"type": "custom" if names.is_custom(choice.name) else "function", **names.said(choice.name)}
