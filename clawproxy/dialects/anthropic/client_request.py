"""A Messages request, from JSON and headers to `ChatRequest`.

Rule 1: a parameter of the vocabulary is checked, with its path in the error, and becomes a field.
Rule 2: any other parameter stays in `extra` and goes out again only to a provider of this dialect, with the version and the
        betas (`anthropic-version`, `anthropic-beta`) that it was written for. Betas are not judged here, only bounded.
Rule 3: a request without `anthropic-version` is one of 2023-06-01 (Anthropic refuses it; many clients of gateways leave it out).
        Any later date is taken, since providers know what it means; what is no date is refused.
Rule 4: parameters that would steer the gateway's own connection, or ask for another model than the one authorised, are refused
        by name, as in every dialect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clawproxy.dialects import jsonio
from clawproxy.dialects.anthropic.client_blocks import messages, system
from clawproxy.dialects.anthropic.words import DATE, NAME, VERSION, WITHOUT_SAMPLING
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_plain import MAX_OUTPUT
from clawproxy.dialects.openai_chat.client_request import FORBIDDEN
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import EMPTY, ChatRequest, ResponseFormat, Tool, ToolChoice

_KNOWN = frozenset(
    {
        "model",
        "messages",
        "system",
        "stream",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "metadata",
    }
)
_SAMPLING = ("temperature", "top_p", "top_k")
_TOOL = frozenset({"type", "name", "description", "input_schema", "strict"})
_MODES: Mapping[str, Any] = {"auto": "auto", "none": "none", "any": "required", "tool": "tool"}
_THINKING = ("adaptive", "enabled", "disabled", "between_tools")
_EFFORT = re.compile(r"[a-z_]{1,32}")
_BETA = re.compile(r"[A-Za-z0-9._:=/+-]{1,128}")
_MAX_BETAS = 64
_SIMPLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def decode_request(body: bytes, limits: Mapping[str, int], head: Head) -> ChatRequest:
    """One request. `limits` may hold `json_depth` and `messages`, as in the configuration.

    Raises:
        ClawError: `invalid_json`, `json_too_deep`, `invalid_request`, `unknown_parameter`; the last two with `param`.
    """
    fields = jsonio.decode(body, depth=limits.get("json_depth", 64))
    if not isinstance(fields, dict):
        raise ClawError("invalid_request", "The body must be a JSON object.")
    for name in sorted(FORBIDDEN & fields.keys()):
        raise ClawError("unknown_parameter", f"`{name}` is not a parameter of this API.", param=name)
    version, headers = _headers(head)
    counting = head.path.endswith("/count_tokens")
    model = check.text(check.need(fields, "model", ""), "model")
    if not model:
        check.refuse("model", "not be empty")
    said = {name: value for name, value in fields.items() if value is not None}
    if version >= WITHOUT_SAMPLING:
        for name in _SAMPLING:
            if name in said:
                words = f"{name}: Extra inputs are not permitted (anthropic-version {version} has no sampling parameters)."
                raise ClawError("invalid_request", words, param=name)
    extra = check.beyond(fields, _KNOWN)
    effort, form = _output_config(said.get("output_config"), extra)
    choice, parallel = _tool_choice(said.get("tool_choice"), extra)
    return ChatRequest(
        model=model,
        messages=(
            *system(said.get("system")),
            *messages(check.need(fields, "messages", ""), limits.get("messages", 100_000), documents=version < WITHOUT_SAMPLING),
        ),
        stream=_stream(said, counting),
        max_tokens=None if counting else check.integer(check.need(fields, "max_tokens", ""), "max_tokens", 0, MAX_OUTPUT),
        temperature=check.number(said["temperature"], "temperature", 0, 1) if "temperature" in said else None,
        top_p=check.number(said["top_p"], "top_p", 0, 1) if "top_p" in said else None,
        top_k=check.integer(said["top_k"], "top_k", 0, MAX_OUTPUT) if "top_k" in said else None,
        stop=_stop(said.get("stop_sequences")),
        tools=_tools(said.get("tools")),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=form,
        reasoning_effort=effort,
        reasoning_budget=_thinking(said.get("thinking"), extra),
        metadata=_metadata(said.get("metadata")),
        include_usage=True,
        dialect=NAME,
        extra=extra or EMPTY,
        operation="count_tokens" if counting else "chat",
        headers=headers,
    )


def _headers(head: Head) -> tuple[str, tuple[tuple[str, str], ...]]:
    """`(version, the headers that go on)`."""
    version = head.get("anthropic-version")
    if version is not None and DATE.fullmatch(version) is None:
        raise ClawError("invalid_request", "`anthropic-version` must be a date, as 2023-06-01.", param="anthropic-version")
    headers = [] if version is None else [("anthropic-version", version)]
    betas = [beta.strip() for line in head.all("anthropic-beta") for beta in line.split(",")]
    betas = [beta for beta in betas if beta]
    if len(betas) > _MAX_BETAS or not all(map(_BETA.fullmatch, betas)):
        words = f"`anthropic-beta` must be at most {_MAX_BETAS} names, separated by commas."
        raise ClawError("invalid_request", words, param="anthropic-beta")
    if betas:
        headers.append(("anthropic-beta", ",".join(betas)))
    return version or VERSION, tuple(headers)


def _stream(said: Mapping[str, Any], counting: bool) -> bool:
    stream = check.flag(said.get("stream", False), "stream")
    if stream and counting:
        check.refuse("stream", "be absent where tokens are counted")
    return stream


def _stop(value: Any) -> tuple[str, ...]:
    items = [] if value is None else check.array(value, "stop_sequences", longest=8192)
    return tuple([check.text(item, f"stop_sequences[{number}]") for number, item in enumerate(items)])


def _tools(value: Any) -> tuple[Tool, ...]:
    items = [] if value is None else check.array(value, "tools", longest=10_000)
    return tuple([_tool(item, f"tools[{number}]") for number, item in enumerate(items)])


def _tool(value: Any, where: str) -> Tool:
    """A tool of the client's; Anthropic's own (`web_search_20250305`, `bash_20250124`, toolsets, ...) is kept whole in `extra`,
    its `type` the sign that it is one."""
    fields = check.mapping(value, where)
    kind = fields.get("type")
    if kind is not None:
        check.token(kind, f"{where}.type")
    if kind not in (None, "custom"):
        name = fields.get("name", kind)
        return Tool(check.token(name, f"{where}.name", longest=256), extra=fields)
    name = check.token(check.need(fields, "name", where), f"{where}.name", longest=256)
    description, strict = fields.get("description"), fields.get("strict")
    return Tool(
        name,
        None if description is None else check.text(description, f"{where}.description"),
        check.mapping(check.need(fields, "input_schema", where), f"{where}.input_schema"),
        None if strict is None else check.flag(strict, f"{where}.strict"),
        check.beyond(fields, _TOOL) or EMPTY,
    )


def _tool_choice(value: Any, extra: dict[str, Any]) -> tuple[ToolChoice | None, bool | None]:
    """`(choice, parallel_tool_calls)`."""
    if value is None:
        return None, None
    fields = check.mapping(value, "tool_choice")
    kind = check.need(fields, "type", "tool_choice")
    if not isinstance(kind, str) or kind not in _MODES:
        check.refuse("tool_choice.type", "be auto, any, tool or none")
    name = None
    if kind == "tool":
        name = check.token(check.need(fields, "name", "tool_choice"), "tool_choice.name", longest=256)
    alone = fields.get("disable_parallel_tool_use")
    rest = check.beyond(fields, frozenset({"type", "name", "disable_parallel_tool_use"}))
    if rest:
        extra["tool_choice"] = rest
    parallel = None if alone is None else not check.flag(alone, "tool_choice.disable_parallel_tool_use")
    return ToolChoice(_MODES[kind], name), parallel


def _thinking(value: Any, extra: dict[str, Any]) -> int | None:
    """The budget; 0 where thinking is disabled. How a model thinks by its own measure stays in `extra`."""
    if value is None:
        return None
    fields = check.mapping(value, "thinking")
    kind = check.need(fields, "type", "thinking")
    if kind not in _THINKING:
        check.refuse("thinking.type", f"be one of {', '.join(_THINKING)}")
    budget: int | None
    if kind == "enabled":
        budget = check.integer(check.need(fields, "budget_tokens", "thinking"), "thinking.budget_tokens", 1, MAX_OUTPUT)
    else:
        budget = 0 if kind == "disabled" else None
    rest = check.beyond(fields, frozenset({"type", "budget_tokens"} if kind == "enabled" else {"type"}))
    if budget is None:
        extra["thinking"] = {"type": kind, **rest}
    elif rest:
        extra["thinking"] = rest
    return budget


def _output_config(value: Any, extra: dict[str, Any]) -> tuple[str | None, ResponseFormat | None]:
    """`(effort, format)`."""
    if value is None:
        return None, None
    fields = check.mapping(value, "output_config")
    effort, said = fields.get("effort"), fields.get("format")
    if effort is not None and (not isinstance(effort, str) or not _EFFORT.fullmatch(effort)):
        check.refuse("output_config.effort", "be a word such as low, medium, high, xhigh or max")
    rest = check.beyond(fields, frozenset({"effort", "format"}))
    form = None
    if said is not None:
        inner = check.mapping(said, "output_config.format")
        if check.need(inner, "type", "output_config.format") != "json_schema":
            check.refuse("output_config.format.type", "be json_schema")
        schema = check.mapping(check.need(inner, "schema", "output_config.format"), "output_config.format.schema")
        form = ResponseFormat("json_schema", {"name": "response", "schema": schema, "strict": True})
        if beside := check.beyond(inner, frozenset({"type", "schema"})):
            rest["format"] = beside
    if rest:
        extra["output_config"] = rest
    return effort, form


def _metadata(value: Any) -> Mapping[str, Any]:
    """`user_id`, and what else there may be: bounded, without control characters, since it ends in logs and labels."""
    if value is None:
        return EMPTY
    fields = check.mapping(value, "metadata")
    if len(fields) > 16:
        check.refuse("metadata", "hold at most 16 pairs")
    for key, item in fields.items():
        if not key.isprintable() or not 0 < len(key) <= 64:
            check.refuse("metadata", "have keys of 1 to 64 printable characters")
        where = f"metadata.{key}" if _SIMPLE.fullmatch(key) else "metadata"
        if item is not None:
            check.token(item, where, longest=1024, empty=True)
    return fields
