"""The Claw WebSocket format, version 1: requests in, server frames out. No I/O.

Rule 1: types are checked strictly (a bool is no integer, a number in a string is no number, null is not "left out").
Rule 2: an unknown key inside `parameters` is refused by name; anywhere else it is ignored, so both sides may grow.
Rule 3: what this version can not do is refused by name, never accepted and ignored.
Rule 4: a server frame is one JSON object in UTF-8 whose first key is `type`. Those of a request carry `id`, `request_id` and
        `seq` (0, 1, 2 ...). Text that arrived together is one frame. A lone surrogate becomes U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, cast

from clawproxy.dialects.claw_frames import Answer, Whole, auth_ok, error, going_away, pong
from clawproxy.dialects.claw_parts import array, content, flag, integer, invalid, json_schema_format, message, number, obj, string
from clawproxy.dialects.claw_parts import tool as decode_tool
from clawproxy.errors import ClawError
from clawproxy.messages import ChatRequest, Message, Part, ResponseFormat, Tool, ToolChoice

__all__ = [
    "NAME", "PROTOCOL", "Answer", "Whole", "auth_ok", "deadline", "decode_append", "decode_request", "error", "going_away",
    "pong", "valid_id",
]  # fmt: skip

NAME: Final = "claw"
PROTOCOL: Final = "claw.v1"
ON_DISCONNECT: Final = ("cancel", "grace", "drain", "detach")
"""What `on_disconnect` may say; this version does `cancel`."""
MAX_DEADLINE_MS: Final = 86_400_000
_EFFORT = re.compile(r"[a-z][a-z_-]{0,31}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def valid_id(value: object) -> bool:
    """A request's id: 1 to 128 characters, none of them a control character."""
    return isinstance(value, str) and 0 < len(value) <= 128 and _CONTROL.search(value) is None


def deadline(frame: Mapping[str, Any]) -> float | None:
    """Seconds of `deadline_ms`; None where there is none, or where `decode_request` will refuse it."""
    value = frame.get("deadline_ms")
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_DEADLINE_MS:
        return value / 1000
    return None


def decode_append(frame: Mapping[str, Any]) -> Message:
    """An `llm_append`: what the user says while being answered. Raises ClawError("invalid_request")."""
    body = content(frame.get("content"), "content")
    if not body:
        invalid("content", "must not be empty")
    return Message("user", body)


def decode_request(
    frame: Mapping[str, Any], max_messages: int = 100_000, streamed: str | tuple[Part, ...] | None = None
) -> ChatRequest:
    """An `llm_request`, already parsed from JSON.

    Args:
        streamed: the whole prompt of a request with `prompt_stream`, the piece in `frame` included; `messages` go before it.

    Raises:
        ClawError: `invalid_request`, `unknown_parameter` or `unsupported_parameter`, with `param`.
    """
    _not_yet(frame)
    model = string(frame.get("model"), "model")
    if not model:
        invalid("model", "must not be empty")
    messages = _messages(frame, max_messages) if streamed is None else _streamed(frame, max_messages, streamed)
    if frame.get("system") is not None:
        messages = (Message("system", string(frame["system"], "system")), *messages)
    values: dict[str, Any] = {}
    given = frame.get("parameters")
    if given is not None:
        for name, value in obj(given, "parameters").items():
            decode = PARAMETERS.get(name)
            if decode is None:
                param = f"parameters.{_printable(name)}"
                raise ClawError("unknown_parameter", f"The parameter `{param}` is not known.", param=param)
            values[name] = decode(value, f"parameters.{name}")
    metadata = checked_metadata(frame.get("metadata"))
    user = metadata.get("user_id")
    return ChatRequest(
        model=model,
        messages=messages,
        stream=values.pop("stream", True),
        user=user if isinstance(user, str) else None,
        metadata=metadata,
        include_usage=True,
        dialect=NAME,
        **values,
    )


def _not_yet(frame: Mapping[str, Any]) -> None:
    """Refuse what version 1 of the protocol has and this server does not, and check `deadline_ms`."""
    flag(frame.get("prompt_stream", False), "prompt_stream")
    mode = frame.get("on_disconnect", "cancel")
    if mode != "cancel":
        if mode in ON_DISCONNECT:
            raise ClawError("invalid_request", "Only `on_disconnect: cancel` is supported for now.", param="on_disconnect")
        invalid("on_disconnect", f"must be one of {', '.join(ON_DISCONNECT)}")
    for name in ("idempotency_key", "session_id"):
        if frame.get(name) is not None:
            raise ClawError("unsupported_parameter", f"`{name}` is not supported yet; leave it out.", param=name)
    if "deadline_ms" in frame:
        integer(frame["deadline_ms"], "deadline_ms", 1, MAX_DEADLINE_MS)


def _messages(frame: Mapping[str, Any], most: int) -> tuple[Message, ...]:
    prompt, messages = frame.get("prompt"), frame.get("messages")
    if prompt is not None and messages is not None:
        _bad_prompt("give `prompt` or `messages`, not both")
    if messages is not None:
        return _conversation(messages, most)
    if prompt is None:
        _bad_prompt("`prompt` or `messages` is missing")
    if not isinstance(prompt, str | list):
        _bad_prompt("it must be a string or a list of content parts")
    if not prompt:
        _bad_prompt("it must not be empty")
    return (Message("user", content(prompt, "prompt")),)


def _conversation(messages: Any, most: int) -> tuple[Message, ...]:
    items = array(messages, "messages", most)
    if not items:
        invalid("messages", "must not be empty")
    return tuple(message(item, f"messages[{index}]") for index, item in enumerate(items))


def _streamed(frame: Mapping[str, Any], most: int, prompt: str | tuple[Part, ...]) -> tuple[Message, ...]:
    if not prompt:
        _bad_prompt("it must not be empty")
    given = frame.get("messages")
    return (*(() if given is None else _conversation(given, most)), Message("user", prompt))


def _bad_prompt(why: str) -> NoReturn:
    raise ClawError("invalid_request", f"Invalid prompt format: {why}.", param="prompt")


def _printable(name: str) -> str:
    """A client's key as it may stand in a message of ours: short, and without anything a terminal or a log might act on."""
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in name[:64])


# --- parameters ------------------------------------------------------------------------------------------------------------


def _stop(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    words = tuple(string(word, f"{where}[{index}]") for index, word in enumerate(array(value, where, 16)))
    if not all(words):
        invalid(where, "must not hold an empty string")
    return words


def _tools(value: Any, where: str) -> tuple[Tool, ...]:
    return tuple(decode_tool(item, f"{where}[{index}]") for index, item in enumerate(array(value, where, 1024)))


def _tool_choice(value: Any, where: str) -> ToolChoice:
    if value == "auto" or value == "none" or value == "required":
        return ToolChoice(value)
    if isinstance(value, dict) and value.get("type") == "function":
        function = obj(value.get("function"), f"{where}.function")
        return ToolChoice("tool", string(function.get("name"), f"{where}.function.name"))
    invalid(where, 'must be auto, none, required or {"type":"function","function":{"name":...}}')


def _response_format(value: Any, where: str) -> ResponseFormat:
    kind = obj(value, where).get("type")
    if kind == "text" or kind == "json_object":
        return ResponseFormat(kind)
    if kind == "json_schema":
        return ResponseFormat("json_schema", json_schema_format(value.get("json_schema"), f"{where}.json_schema"))
    invalid(f"{where}.type", "must be text, json_object or json_schema")


def _effort(value: Any, where: str) -> str:
    if _EFFORT.fullmatch(string(value, where)) is None:
        invalid(where, "must be a word like low, medium or high")
    return cast("str", value)


PARAMETERS: Mapping[str, Callable[[Any, str], Any]] = {
    "max_tokens": lambda value, where: integer(value, where, 1, 2**31 - 1),
    "temperature": lambda value, where: number(value, where, 0.0, 2.0),
    "top_p": lambda value, where: number(value, where, 0.0, 1.0),
    "top_k": lambda value, where: integer(value, where, 1, 2**31 - 1),
    "frequency_penalty": lambda value, where: number(value, where, -2.0, 2.0),
    "presence_penalty": lambda value, where: number(value, where, -2.0, 2.0),
    "stop": _stop,
    "seed": lambda value, where: integer(value, where, -(2**63), 2**63 - 1),
    "stream": flag,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "response_format": _response_format,
    "reasoning_effort": _effort,
    "parallel_tool_calls": flag,
    "reasoning_budget": lambda value, where: integer(value, where, 0, 2**31 - 1),
}


# --- metadata --------------------------------------------------------------------------------------------------------------


def checked_metadata(value: Any) -> dict[str, Any]:
    """Scalars by short names (and `tags`, a list of strings), without control characters: they end in logs and ledgers (I-02)."""
    if value is None:
        return {}
    items = obj(value, "metadata")
    if len(items) > 64:
        invalid("metadata", "may hold at most 64 keys")
    result: dict[str, Any] = {}
    for name, item in items.items():
        if not valid_id(name) or len(name) > 64:
            invalid("metadata", "keys must have 1 to 64 characters and no control characters")
        where = f"metadata.{_printable(name)}"
        if name == "tags" and isinstance(item, list):
            result[name] = tuple(_word(tag, f"{where}[{index}]") for index, tag in enumerate(array(item, where, 64)))
        elif isinstance(item, str):
            result[name] = _word(item, where)
        elif item is None or (isinstance(item, bool | int | float) and abs(item) < 2**63):  # false for NaN, too
            result[name] = item
        else:
            invalid(where, "must be a string, a number below 2^63, a boolean or null")
    for name in ("user_id", "app"):
        if result.get(name) is not None and not isinstance(result[name], str):
            invalid(f"metadata.{name}", "must be a string")
    return result


def _word(value: Any, where: str) -> str:
    text = string(value, where)
    if len(text) > 512 or _CONTROL.search(text) is not None:
        invalid(where, "must have at most 512 characters and no control characters")
    return text
