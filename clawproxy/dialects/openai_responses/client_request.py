"""A Responses request, from JSON to `ChatRequest`.

Rule 1: a parameter of the vocabulary is checked, with its path in the error, and becomes a field; its null means "not said".
Rule 2: any other parameter stays in `extra` and goes out again only to a provider of this dialect. Where only part of one is
        harmless to lose elsewhere, the other parts stand apart under their paths (`reasoning.mode`, `include[1]`): so it is these
        that `translate.leftovers` refuses, by name.
Rule 3: the gateway keeps no answers. `previous_response_id` and `conversation` are the provider's own to resolve; what runs
        without a connection (`background`) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_plain import MAX_OUTPUT
from clawproxy.dialects.openai_chat.client_request import FORBIDDEN, _effort, _metadata
from clawproxy.dialects.openai_responses.items import messages
from clawproxy.dialects.openai_responses.tools import NAME, read_choice, read_tools
from clawproxy.errors import ClawError
from clawproxy.messages import EMPTY, ChatRequest, Message, ResponseFormat

_KNOWN = frozenset(
    {
        "model",
        "input",
        "instructions",
        "stream",
        "max_output_tokens",
        "temperature",
        "top_p",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "text",
        "reasoning",
        "include",
        "user",
        "metadata",
        "background",
    }
)
_ALSO: Mapping[str, Callable[[Any, str], object]] = {
    "store": check.flag,
    "service_tier": check.token,
    "truncation": check.token,
    "top_logprobs": lambda value, name: check.integer(value, name, 0, 20),
    "max_tool_calls": lambda value, name: check.integer(value, name, 1, 1_000_000),
    "prompt_cache_key": lambda value, name: check.token(value, name, longest=1024, empty=True),
    "safety_identifier": lambda value, name: check.token(value, name, longest=256),
    "previous_response_id": lambda value, name: check.token(value, name, longest=512),
    "client_metadata": check.mapping,
    "prompt": check.mapping,
    "stream_options": check.mapping,
    "context_management": check.array,
}
_HARMLESS_INCLUDE = frozenset({"reasoning.encrypted_content"})
_BY_REFERENCE = ("previous_response_id", "conversation", "prompt")
"""With one of these there may be no `input`."""


def decode_request(body: bytes, limits: Mapping[str, int]) -> ChatRequest:
    """One request. `limits` may hold `json_depth` and `messages`, as in the configuration.

    Raises:
        ClawError: `invalid_json`, `json_too_deep`, `invalid_request`, `unknown_parameter`, `unsupported_parameter`; all but the
            first two with `param`.
    """
    fields = jsonio.decode(body, depth=limits.get("json_depth", 64))
    if not isinstance(fields, dict):
        raise ClawError("invalid_request", "The body must be a JSON object.")
    return from_fields(fields, limits)


def from_fields(fields: dict[str, Any], limits: Mapping[str, int]) -> ChatRequest:
    """The same, from a document that is decoded already. Raises ClawError."""
    for name in sorted(FORBIDDEN & fields.keys()):
        raise ClawError("unknown_parameter", f"`{name}` is not a parameter of this API.", param=name)
    said = {name: value for name, value in fields.items() if value is not None}
    if "background" in said and check.flag(said["background"], "background"):
        raise ClawError(
            "unsupported_parameter",
            "`background` is not served here: an answer lives as long as its connection.",
            param="background",
        )
    model = check.text(check.need(fields, "model", ""), "model")
    if not model:
        check.refuse("model", "not be empty")
    extra = check.beyond(said, _KNOWN)
    for name in _ALSO.keys() & extra.keys():
        _ALSO[name](extra[name], name)
    _include(said.get("include"), extra)
    tools = read_tools(said.get("tools"), extra)
    return ChatRequest(
        model,
        _messages(said, limits.get("messages", 100_000)),
        check.flag(said.get("stream", False), "stream"),
        check.integer(said["max_output_tokens"], "max_output_tokens", 1, MAX_OUTPUT) if "max_output_tokens" in said else None,
        check.number(said["temperature"], "temperature", 0, 2) if "temperature" in said else None,
        check.number(said["top_p"], "top_p", 0, 1) if "top_p" in said else None,
        tools=tools,
        tool_choice=read_choice(said.get("tool_choice"), extra),
        parallel_tool_calls=(
            check.flag(said["parallel_tool_calls"], "parallel_tool_calls") if "parallel_tool_calls" in said else None
        ),
        response_format=_text(said.get("text"), extra),
        reasoning_effort=_reasoning(said.get("reasoning"), extra),
        user=check.token(said["user"], "user", longest=256, empty=True) if "user" in said else None,
        metadata=_metadata(said.get("metadata")),
        include_usage=True,  # this format always tells
        dialect=NAME,
        extra=extra or EMPTY,
    )


def _messages(said: Mapping[str, Any], longest: int) -> tuple[Message, ...]:
    if "input" in said:
        read = messages(said["input"], longest)
    elif any(name in said for name in _BY_REFERENCE):
        read = []
    else:
        raise ClawError("invalid_request", "`input` is missing.", param="input")
    instructions = said.get("instructions")
    if instructions is not None:
        # The sign tells it from a system message among the items: it goes back to its own place.
        read.insert(0, Message("system", check.text(instructions, "instructions"), extra={"instructions": True}))
    return tuple(read)


def _include(value: Any, extra: dict[str, Any]) -> None:
    if value is None:
        return
    for place, name in enumerate(check.array(value, "include", longest=64)):
        check.token(name, f"include[{place}]")
        if name in _HARMLESS_INCLUDE:
            extra.setdefault("include", []).append(name)
        else:
            extra[f"include[{place}]"] = name


def _reasoning(value: Any, extra: dict[str, Any]) -> str | None:
    if value is None:
        return None
    for name, item in check.mapping(value, "reasoning").items():
        if name in ("summary", "generate_summary"):
            extra[f"reasoning.{name}"] = None if item is None else check.token(item, f"reasoning.{name}", longest=32)
        elif name != "effort":
            extra[f"reasoning.{name}"] = item
    return _effort(value.get("effort"))


def _text(value: Any, extra: dict[str, Any]) -> ResponseFormat | None:
    if value is None:
        return None
    fields = check.mapping(value, "text")
    for name, item in fields.items():
        if name != "format":
            extra[f"text.{name}"] = item
    form = fields.get("format")
    if form is None:
        return None
    inner = check.mapping(form, "text.format")
    mode = check.need(inner, "type", "text.format")
    if mode in ("text", "json_object"):
        return ResponseFormat(mode)
    if mode != "json_schema":
        check.refuse("text.format.type", "be text, json_object or json_schema")
    check.text(check.need(inner, "name", "text.format"), "text.format.name")
    check.mapping(check.need(inner, "schema", "text.format"), "text.format.schema")
    return ResponseFormat("json_schema", {name: item for name, item in inner.items() if name != "type"})
