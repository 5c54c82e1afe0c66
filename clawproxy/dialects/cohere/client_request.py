"""Cohere's requests, from JSON to `ChatRequest`.

Rule 1: a parameter of the vocabulary is checked, with its path in the error, and becomes a field; its null means "not said".
Rule 2: any other (`documents`, `citation_options`, `safety_mode`, `logprobs`...) stays in `extra` and goes out again only to
        Cohere.
Rule 3: `thinking` is a budget: `disabled` is 0. Without a number it is effort `medium`, for this format knows no levels.
Rule 4: vectors are asked for as numbers unless `embedding_types` says otherwise; other types only Cohere can make.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from clawproxy.dialects.cohere.client_messages import NAME, image, messages, part
from clawproxy.dialects.functions import document, model_name, read_tools, schema_format
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_plain import MAX_OUTPUT, SEED
from clawproxy.messages import EMPTY, ChatRequest, Message, ResponseFormat, Tool, ToolChoice

_CHAT = frozenset(
    {
        "model",
        "messages",
        "stream",
        "tools",
        "strict_tools",
        "response_format",
        "max_tokens",
        "stop_sequences",
        "temperature",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "k",
        "p",
        "tool_choice",
        "thinking",
    }
)
_EMBED = frozenset({"model", "texts", "images", "inputs"})


def decode_chat(body: bytes, limits: Mapping[str, int]) -> ChatRequest:
    """`POST /v2/chat`. Raises ClawError: `invalid_json`, `json_too_deep`, `invalid_request`, `unknown_parameter`."""
    fields = document(body, limits)
    extra = {name: value for name, value in check.beyond(fields, _CHAT).items() if value is not None}
    if extra.get("logprobs") is False:
        del extra["logprobs"]
    said = {name: value for name, value in fields.items() if value is not None}
    effort, budget = _thinking(said.get("thinking"))
    return ChatRequest(
        model=model_name(fields),
        messages=messages(check.need(fields, "messages", ""), limits.get("messages", 100_000)),
        stream=check.flag(said.get("stream", False), "stream"),
        max_tokens=_integer(said, "max_tokens", 1, MAX_OUTPUT),
        temperature=_number(said, "temperature", 0, 100),
        top_p=_number(said, "p", 0, 1),
        top_k=_integer(said, "k", 0, 2**31 - 1),
        stop=_stop(said.get("stop_sequences")),
        seed=_integer(said, "seed", -SEED, SEED - 1),
        frequency_penalty=_number(said, "frequency_penalty", 0, 1),
        presence_penalty=_number(said, "presence_penalty", 0, 1),
        tools=_tools(said),
        tool_choice=_tool_choice(said.get("tool_choice")),
        response_format=_response_format(said.get("response_format"), extra),
        reasoning_effort=effort,
        reasoning_budget=budget,
        include_usage=True,
        dialect=NAME,
        extra=extra or EMPTY,
    )


def decode_embed(body: bytes, limits: Mapping[str, int]) -> ChatRequest:
    """`POST /v2/embed`: one of `texts`, `images`, `inputs`. Raises as above."""
    fields = document(body, limits)
    given = [name for name in ("texts", "images", "inputs") if fields.get(name) is not None]
    if len(given) != 1:
        check.refuse("texts", "be given, or else `images` or `inputs`, and only one of them")
    name = given[0]
    listed = check.array(fields[name], name, longest=limits.get("messages", 100_000))
    if not listed:
        check.refuse(name, "hold at least one item")
    extra = {key: value for key, value in check.beyond(fields, _EMBED).items() if value is not None}
    if extra.get("embedding_types") == ["float"]:
        del extra["embedding_types"]  # what is asked for anyhow
    if extra.get("truncate") == "END":
        del extra["truncate"]  # Cohere's default
    return ChatRequest(
        model=model_name(fields),
        messages=tuple([_input(item, name, f"{name}[{number}]") for number, item in enumerate(listed)]),
        include_usage=True,
        dialect=NAME,
        extra=extra or EMPTY,
        operation="embeddings",
    )


def _input(item: Any, kind: str, where: str) -> Message:
    if kind == "texts":
        return Message("user", check.text(item, where))
    if kind == "images":
        return Message("user", (image(item, where),))
    content = check.array(check.need(check.mapping(item, where), "content", where), f"{where}.content")
    if not content:
        check.refuse(f"{where}.content", "hold at least one block")
    places = [f"{where}.content[{number}]" for number in range(len(content))]
    return Message("user", tuple([part(check.mapping(each, place), place) for each, place in zip(content, places, strict=True)]))


def _number(said: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    return check.number(said[name], name, low, high) if name in said else None


def _integer(said: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    return check.integer(said[name], name, low, high) if name in said else None


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    listed = check.array(value, "stop_sequences", longest=16)
    return tuple([check.text(item, f"stop_sequences[{number}]") for number, item in enumerate(listed)])


def _tools(said: Mapping[str, Any]) -> tuple[Tool, ...]:
    tools = read_tools(said.get("tools"))
    if "strict_tools" in said and check.flag(said["strict_tools"], "strict_tools"):
        return tuple([evolve(tool, strict=True) for tool in tools])
    return tools


def _tool_choice(value: Any) -> ToolChoice | None:
    if value is None:
        return None
    if value == "REQUIRED":
        return ToolChoice("required")
    if value == "NONE":
        return ToolChoice("none")
    check.refuse("tool_choice", "be REQUIRED or NONE, or absent")


def _response_format(value: Any, extra: dict[str, Any]) -> ResponseFormat | None:
    if value is None:
        return None
    fields = check.mapping(value, "response_format")
    rest = check.beyond(fields, frozenset({"type", "json_schema"}))
    if rest:
        extra["response_format"] = rest
    mode = check.need(fields, "type", "response_format")
    if mode == "text":
        return ResponseFormat("text")
    if mode != "json_object":
        check.refuse("response_format.type", "be text or json_object")
    if fields.get("json_schema") is None:
        return ResponseFormat("json_object")
    return schema_format(check.mapping(fields["json_schema"], "response_format.json_schema"))


def _thinking(value: Any) -> tuple[str | None, int | None]:
    """Effort and budget."""
    if value is None:
        return None, None
    fields = check.mapping(value, "thinking")
    mode = check.need(fields, "type", "thinking")
    if mode not in ("enabled", "disabled"):
        check.refuse("thinking.type", "be enabled or disabled")
    if mode == "disabled":
        return None, 0
    if fields.get("token_budget") is None:
        return "medium", None
    return None, check.integer(fields["token_budget"], "thinking.token_budget", 1, MAX_OUTPUT)
