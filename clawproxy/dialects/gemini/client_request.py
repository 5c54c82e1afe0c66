"""A request of a Gemini client, from its path and JSON to `ChatRequest`.

Rule 1: a parameter of the vocabulary is checked, with its path in the error, and becomes a field.
Rule 2: any other stays in `extra` under its whole path (`generationConfig.responseLogprobs`, `tools[0].googleSearch`), so that
        a refusal names it well, and goes out again only to a provider of this format.
Rule 3: what the vocabulary holds in another spelling (a schema of Google's kind) is kept in `extra` as well, for this format
        alone. It counts only while the vocabulary's value is still what it said: a policy may have changed that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from clawproxy.dialects import jsonio
from clawproxy.dialects.gemini.client_contents import Contents, read_part, simple, system_message
from clawproxy.dialects.gemini.client_path import Asked, read_target
from clawproxy.dialects.gemini.names import NAME, camel
from clawproxy.dialects.gemini.schemas import json_schema
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_request import FORBIDDEN
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import EMPTY, ChatRequest, Message, Part, ResponseFormat, Tool, ToolChoice

MAX_OUTPUT = 10_000_000
SEED = 2**31
_KNOWN = frozenset({"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "model"})
_CONFIG = frozenset(
    {
        "temperature",
        "topP",
        "topK",
        "maxOutputTokens",
        "stopSequences",
        "seed",
        "candidateCount",
        "presencePenalty",
        "frequencyPenalty",
        "responseMimeType",
        "responseSchema",
        "responseJsonSchema",
        "thinkingConfig",
    }
)
_DECLARATION = frozenset({"name", "description", "parameters", "parametersJsonSchema"})
_LEVEL = re.compile(r"[A-Za-z_]{1,32}")


def decode_request(body: bytes, limits: Mapping[str, int], head: Head) -> ChatRequest:
    """One request. `limits` may hold `json_depth` and `messages`, as in the configuration.

    Raises:
        ClawError: `invalid_json`, `json_too_deep`, `invalid_request`, with `param`.
    """
    asked = read_target(head)
    fields = jsonio.decode(body, depth=limits.get("json_depth", 64))
    if not isinstance(fields, dict):
        raise ClawError("invalid_request", "The body must be a JSON object.")
    _allowed(fields)
    said = _said(fields)
    longest = limits.get("messages", 100_000)
    if asked.method.endswith("Contents") or asked.method == "embedContent":
        return _embeddings(said, asked, longest)
    if asked.method == "countTokens":
        return _count_tokens(said, asked, longest)
    stream = asked.method == "streamGenerateContent"
    extra = check.beyond(said, _KNOWN)
    return _generate(said, asked, longest, extra, stream=stream, include_usage=stream)


def _allowed(fields: Mapping[str, Any]) -> None:
    """Raises ClawError for what would steer the gateway's own connection, as in every dialect."""
    for name in sorted(FORBIDDEN & fields.keys()):
        raise ClawError("unknown_parameter", f"`{name}` is not a parameter of this API.", param=name)


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in camel(fields).items() if value is not None}


def _generate(said: dict[str, Any], asked: Asked, longest: int, extra: dict[str, Any], **more: Any) -> ChatRequest:
    _same_model(said.get("model"), asked.model)
    messages = Contents().read(check.need(said, "contents", ""), longest)
    if "systemInstruction" in said:
        messages = (system_message(said["systemInstruction"], "systemInstruction"), *messages)
    config = _config(said.get("generationConfig", {}), extra)
    return ChatRequest(
        model=asked.model,
        messages=messages,
        tools=_tools(said.get("tools"), extra),
        tool_choice=_tool_choice(said.get("toolConfig"), extra),
        dialect=NAME,
        extra=extra or EMPTY,
        form="sse" if asked.sse else "",
        **config,
        **more,
    )


def _same_model(value: Any, model: str) -> None:
    """The body may repeat the path's model, and must not ask for another than the one authorised."""
    if value is not None and check.text(value, "model").removeprefix("models/") != model:
        check.refuse("model", "be absent, or the model of the path")


# --- generationConfig ------------------------------------------------------------------------------------------------------


def _config(value: Any, extra: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ChatRequest` that `generationConfig` says."""
    where = "generationConfig"
    said = _said(check.mapping(value, where))
    for name, item in check.beyond(said, _CONFIG).items():
        extra[f"{where}.{name}"] = item
    made: dict[str, Any] = {}

    def take(name: str, field: str, read: Callable[[Any, str], Any]) -> None:
        if name in said:
            made[field] = read(said[name], f"{where}.{name}")

    take("temperature", "temperature", lambda item, path: check.number(item, path, 0, 2))
    take("topP", "top_p", lambda item, path: check.number(item, path, 0, 1))
    take("topK", "top_k", _whole)
    take("maxOutputTokens", "max_tokens", lambda item, path: check.integer(_integral(item), path, 1, MAX_OUTPUT))
    take("stopSequences", "stop", _stop)
    take("seed", "seed", lambda item, path: check.integer(_integral(item), path, -SEED, SEED - 1))
    take("presencePenalty", "presence_penalty", lambda item, path: check.number(item, path, -2, 2))
    take("frequencyPenalty", "frequency_penalty", lambda item, path: check.number(item, path, -2, 2))
    if "candidateCount" in said:
        count = check.integer(_integral(said["candidateCount"]), f"{where}.candidateCount", 1, 128)
        if count > 1:
            extra[f"{where}.candidateCount"] = count
    made["response_format"] = _response_format(said, where, extra)
    if "thinkingConfig" in said:
        _thinking(said["thinkingConfig"], f"{where}.thinkingConfig", made, extra)
    return made


def _integral(value: Any) -> Any:
    """Protobuf's JSON may write 5 as 5.0."""
    return int(value) if type(value) is float and value.is_integer() and abs(value) < 2**53 else value


def _whole(value: Any, path: str) -> int:
    return check.integer(_integral(value), path, 0, 1_000_000)


def _stop(value: Any, path: str) -> tuple[str, ...]:
    listed = check.array(value, path, longest=16)
    return tuple([check.text(item, f"{path}[{number}]") for number, item in enumerate(listed)])


def _response_format(said: dict[str, Any], where: str, extra: dict[str, Any]) -> ResponseFormat | None:
    kind = said.get("responseMimeType")
    if kind is not None:
        check.text(kind, f"{where}.responseMimeType")
    schema = said.get("responseJsonSchema")
    own = said.get("responseSchema")
    if kind is not None and kind not in ("text/plain", "application/json"):  # text/x.enum
        for name in ("responseMimeType", "responseSchema", "responseJsonSchema"):
            if name in said:
                extra[f"{where}.{name}"] = said[name]
        return None
    if own is not None:
        extra[f"{where}.responseSchema"] = check.mapping(own, f"{where}.responseSchema")
        schema = json_schema(own) if schema is None else schema
    if schema is not None:
        check.mapping(schema, f"{where}.responseJsonSchema")
        return ResponseFormat("json_schema", {"name": "response", "schema": schema})
    return ResponseFormat("json_object") if kind == "application/json" else None


def _thinking(value: Any, where: str, made: dict[str, Any], extra: dict[str, Any]) -> None:
    said = _said(check.mapping(value, where))
    level = said.pop("thinkingLevel", None)
    if level is not None:
        if not isinstance(level, str) or _LEVEL.fullmatch(level) is None:
            check.refuse(f"{where}.thinkingLevel", "be a word such as MINIMAL, LOW, MEDIUM or HIGH")
        if level.upper() != "THINKING_LEVEL_UNSPECIFIED":
            made["reasoning_effort"] = level.lower()
    budget = said.pop("thinkingBudget", None)
    if budget is not None:
        tokens = check.integer(_integral(budget), f"{where}.thinkingBudget", -1, MAX_OUTPUT)
        if tokens < 0:  # as the model likes, which is what is meant where nothing is said
            extra[f"{where}.thinkingBudget"] = tokens
        else:
            made["reasoning_budget"] = tokens
    if "includeThoughts" in said:
        check.flag(said["includeThoughts"], f"{where}.includeThoughts")
    for name, item in said.items():
        extra[f"{where}.{name}"] = item


# --- tools -----------------------------------------------------------------------------------------------------------------


def _tools(value: Any, extra: dict[str, Any]) -> tuple[Tool, ...]:
    if value is None:
        return ()
    tools: list[Tool] = []
    for number, item in enumerate(check.array(value, "tools", longest=1024)):
        where = f"tools[{number}]"
        fields = camel(check.mapping(item, where))
        for name, other in fields.items():
            if name != "functionDeclarations":
                extra[f"{where}.{name}"] = other  # {} turns a tool on
        within = f"{where}.functionDeclarations"
        for place, each in enumerate(check.array(fields.get("functionDeclarations") or [], within, longest=1024)):
            tools.append(_declaration(each, f"{within}[{place}]"))
    return tuple(tools)


def _declaration(value: Any, where: str) -> Tool:
    fields = _said(check.mapping(value, where))
    extra = check.beyond(fields, _DECLARATION)
    description = fields.get("description")
    parameters = fields.get("parametersJsonSchema")
    if parameters is not None:
        parameters = check.mapping(parameters, f"{where}.parametersJsonSchema")
    elif "parameters" in fields:
        extra["parameters"] = check.mapping(fields["parameters"], f"{where}.parameters")
        parameters = json_schema(extra["parameters"])
    return Tool(
        check.token(check.need(fields, "name", where), f"{where}.name", longest=256),
        None if description is None else check.text(description, f"{where}.description"),
        parameters,
        extra=extra or EMPTY,
    )


def _tool_choice(value: Any, extra: dict[str, Any]) -> ToolChoice | None:
    if value is None:
        return None
    fields = _said(check.mapping(value, "toolConfig"))
    where = "toolConfig.functionCallingConfig"
    config = _said(check.mapping(fields.pop("functionCallingConfig", {}), where))
    for name, item in fields.items():
        extra[f"toolConfig.{name}"] = item
    mode = check.text(config.pop("mode", ""), f"{where}.mode").upper()
    names = check.array(config.pop("allowedFunctionNames", []), f"{where}.allowedFunctionNames", longest=1024)
    for number, name in enumerate(names):
        check.token(name, f"{where}.allowedFunctionNames[{number}]", longest=256)
    for name, item in config.items():
        extra[f"{where}.{name}"] = item
    if mode not in ("", "MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED"):
        check.refuse(f"{where}.mode", "be AUTO, ANY, NONE or VALIDATED")
    if mode == "ANY" and len(names) == 1:
        return ToolChoice("tool", names[0])
    if names:
        extra[f"{where}.allowedFunctionNames"] = names
    if mode == "VALIDATED":
        extra[f"{where}.mode"] = mode
    if mode == "ANY":
        return ToolChoice("required")
    if mode == "NONE":
        return ToolChoice("none")
    return ToolChoice("auto") if mode in ("AUTO", "VALIDATED") else None


# --- the other operations --------------------------------------------------------------------------------------------------


def _count_tokens(said: dict[str, Any], asked: Asked, longest: int) -> ChatRequest:
    """`contents` alone, or a whole request as it would be sent."""
    if "generateContentRequest" in said:
        said = _said(check.mapping(said["generateContentRequest"], "generateContentRequest"))
    return _generate(said, asked, longest, check.beyond(said, _KNOWN), operation="count_tokens")


def _embeddings(said: dict[str, Any], asked: Asked, longest: int) -> ChatRequest:
    """A message for each input; what is said beside one (`taskType`) stays with its message."""
    single = asked.method == "embedContent"
    if single:
        requests = [said]
    else:
        requests = check.array(check.need(said, "requests", ""), "requests", longest=longest)
        if not requests:
            check.refuse("requests", "hold at least one request")
    return ChatRequest(
        model=asked.model,
        messages=tuple([_input(item, "" if single else f"requests[{n}]", asked) for n, item in enumerate(requests)]),
        dialect=NAME,
        extra=(check.beyond(said, frozenset({"requests"})) or EMPTY) if not single else EMPTY,
        operation="embeddings",
        form=asked.method,
    )


def _input(value: Any, where: str, asked: Asked) -> Message:
    fields = _said(check.mapping(value, where or "body"))
    _same_model(fields.get("model"), asked.model)
    path = f"{where}.content" if where else "content"
    content = camel(check.mapping(check.need(fields, "content", where), path))
    parts = content.get("parts")
    listed = check.array([parts] if isinstance(parts, dict) else parts, f"{path}.parts")
    said: list[Part] = [
        read_part(camel(check.mapping(item, f"{path}.parts[{number}]")), f"{path}.parts[{number}]")
        for number, item in enumerate(listed)
    ]
    if not said:
        check.refuse(f"{path}.parts", "hold at least one part")
    return Message("user", simple(said), extra=check.beyond(fields, frozenset({"model", "content"})) or EMPTY)
