"""Ollama's requests, from JSON to `ChatRequest`.

Rule 1: `stream` is true unless it is said to be false. A client gets usage in any case, for the last line always has it.
Rule 2: an option the vocabulary has a field for becomes that field; any other stands in `extra` as `options.NAME`, so that a
        refusal names it, and goes out again only to Ollama.
Rule 3: `think: true` is effort `medium`, and back: Ollama takes the two as the same, and most models only know the first.
Rule 4: what `/api/generate` can say and a chat can not (`raw`, `template`, `suffix`, `context`) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clawproxy.dialects.functions import document, model_name, read_tools, schema_format
from clawproxy.dialects.ollama.client_messages import images, messages
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_plain import MAX_OUTPUT, SEED
from clawproxy.dialects.translate import refuse
from clawproxy.messages import EMPTY, ChatRequest, Message, Part, ResponseFormat, TextPart

NAME = "ollama"
_COMMON = frozenset({"model", "stream", "think", "format", "options"})
_CHAT = _COMMON | {"messages", "tools"}
_GENERATE = _COMMON | {"prompt", "system", "images"}
_EMBED = frozenset({"model", "input", "prompt", "options"})
_OPTIONS = frozenset({"temperature", "top_p", "top_k", "seed", "num_predict", "stop", "frequency_penalty", "presence_penalty"})
_NOT_A_CHAT = ("raw", "template", "suffix", "context")
_EFFORT = re.compile(r"[a-z]{1,32}")


def decode_chat(body: bytes, limits: Mapping[str, int]) -> ChatRequest:
    """`POST /api/chat`. Raises ClawError: `invalid_json`, `json_too_deep`, `invalid_request`, `unknown_parameter`."""
    fields = document(body, limits)
    told = messages(check.need(fields, "messages", ""), limits.get("messages", 100_000))
    return ChatRequest(
        model=model_name(fields),
        messages=told,
        tools=read_tools(fields.get("tools")),
        **_settings(fields, check.beyond(fields, _CHAT)),
    )


def decode_generate(body: bytes, limits: Mapping[str, int]) -> ChatRequest:
    """`POST /api/generate`: one prompt, told as a chat of one turn. Raises as `decode_chat`, and `unsupported_parameter`."""
    fields = document(body, limits)
    for name in _NOT_A_CHAT:
        if fields.get(name):
            refuse(name, "can not be honoured here: a prompt is sent on as a chat; use /api/chat")
    extra = check.beyond(fields, _GENERATE | set(_NOT_A_CHAT))
    told: list[Message] = []
    if fields.get("system"):
        told.append(Message("system", check.text(fields["system"], "system")))
    prompt = check.text(fields.get("prompt") or "", "prompt")
    pictures = images(fields.get("images"), "images")
    if not prompt and not pictures:  # to Ollama this means "load the model", which is not a question
        check.refuse("prompt", "not be empty")
    content: str | tuple[Part, ...] = prompt
    if pictures:
        content = (TextPart(prompt), *pictures) if prompt else pictures
    told.append(Message("user", content))
    return ChatRequest(model=model_name(fields), messages=tuple(told), **_settings(fields, extra))


def decode_embed(body: bytes, limits: Mapping[str, int], *, old: bool) -> ChatRequest:
    """`POST /api/embed` (`input`: a text or several), or the `old` `/api/embeddings` (`prompt`: one text). Raises as above."""
    fields = document(body, limits)
    extra = check.beyond(fields, _EMBED)
    name = "prompt" if old else "input"
    said = check.need(fields, name, "")
    listed = [said] if isinstance(said, str) or old else check.array(said, name, longest=limits.get("messages", 100_000))
    texts = [check.text(item, name if item is said else f"{name}[{number}]") for number, item in enumerate(listed)]
    if not texts:
        check.refuse(name, "hold at least one text")
    _options(fields.get("options"), extra, frozenset())
    if extra.get("truncate") is True:
        del extra["truncate"]  # Ollama's default
    return ChatRequest(
        model=model_name(fields),
        messages=tuple([Message("user", text) for text in texts]),
        dialect=NAME,
        extra=extra or EMPTY,
        operation="embeddings",
    )


def _settings(fields: Mapping[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ChatRequest that both ways of asking share."""
    if extra.get("logprobs") is False:
        del extra["logprobs"]
    stream = fields.get("stream")
    return {
        "stream": True if stream is None else check.flag(stream, "stream"),
        "reasoning_effort": _think(fields.get("think")),
        "response_format": _format(fields.get("format")),
        "include_usage": True,
        "dialect": NAME,
        **_options(fields.get("options"), extra, _OPTIONS),
        "extra": extra or EMPTY,
    }


def _think(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "medium" if value else "none"
    if not isinstance(value, str) or not _EFFORT.fullmatch(value):
        check.refuse("think", "be true, false, or a level such as low, medium or high")
    return value


def _format(value: Any) -> ResponseFormat | None:
    if value is None or value == "":
        return None
    if value == "json":
        return ResponseFormat("json_object")
    if not isinstance(value, dict):
        check.refuse("format", 'be "json" or a JSON Schema')
    return schema_format(value)


def _options(value: Any, extra: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The options that are fields of the vocabulary; the others go to `extra`."""
    if value is None:
        return {}
    options = {name: item for name, item in check.mapping(value, "options").items() if item is not None}
    made: dict[str, Any] = {}
    for name, low, high in (("temperature", 0, 100), ("top_p", 0, 1), ("frequency_penalty", -2, 2), ("presence_penalty", -2, 2)):
        if name in known and name in options:
            made[name] = check.number(options[name], f"options.{name}", low, high)
    for name, most in (("top_k", 2**31 - 1), ("seed", SEED - 1)):
        if name in known and name in options:
            made[name] = check.integer(_whole(options[name]), f"options.{name}", -most if name == "seed" else 0, most)
    if "num_predict" in known and "num_predict" in options:
        most = check.integer(_whole(options["num_predict"]), "options.num_predict", -2, MAX_OUTPUT)
        if most > 0:
            made["max_tokens"] = most
        else:  # -1 is without end, -2 until the context is full
            extra["options.num_predict"] = most
    if "stop" in known and "stop" in options:
        stop = options["stop"]
        listed = [stop] if isinstance(stop, str) else check.array(stop, "options.stop", longest=64)
        made["stop"] = tuple([check.text(item, f"options.stop[{number}]") for number, item in enumerate(listed)])
    for name, item in options.items():
        if name not in known:
            extra[f"options.{name}"] = item
    return made


def _whole(value: Any) -> Any:
    """Ollama reads 5.0 as 5."""
    return int(value) if type(value) is float and value.is_integer() else value
