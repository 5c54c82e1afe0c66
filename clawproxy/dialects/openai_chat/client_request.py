"""A Chat Completions request, from JSON to `ChatRequest`.

Rule 1: a parameter of the vocabulary is checked, with its path in the error, and becomes a field; its null means "not said"
        (but for `max_tokens` and `max_completion_tokens`, whose null is refused: THREATS J-03).
Rule 2: any other parameter stays in `extra` and goes out again only to a provider of this dialect. Those in `_ALSO` are
        checked on the way, since the gateway itself counts on them (`n` multiplies what an answer costs).
Rule 3: parameters that would steer the gateway's own connection (`api_base`, `proxy`, ...: SS-01), or ask a provider for
        another model than the one authorised (`models`, `fallbacks`), are refused by name.
Rule 4: `extra` holds nothing but the client's own names and values. Where one field of the vocabulary has two names here, the
        older one is assumed unless `extra` holds the newer (`max_completion_tokens`, a message's `reasoning`); its value there
        is never sent, the field's is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_messages import messages
from clawproxy.dialects.openai_chat.client_plain import MAX_OUTPUT, SEED, decode_plain
from clawproxy.errors import ClawError
from clawproxy.messages import EMPTY, ChatRequest, ResponseFormat, Tool, ToolChoice

FORBIDDEN: frozenset[str] = frozenset(
    {
        "api_base",
        "api_key",
        "api_type",
        "api_version",
        "aws_access_key_id",
        "aws_region_name",
        "aws_secret_access_key",
        "aws_session_token",
        "azure_ad_token",
        "azure_endpoint",
        "base_url",
        "callbacks",
        "client",
        "custom_llm_provider",
        "endpoint",
        "endpoint_url",
        "extra_body",
        "extra_headers",
        "extra_query",
        "fallbacks",
        "headers",
        "host",
        "max_retries",
        "mock_response",
        "model_list",
        "models",
        "num_retries",
        "organization",
        "proxies",
        "proxy",
        "request_timeout",
        "success_callback",
        "timeout",
        "url",
        "vertex_credentials",
        "vertex_location",
        "vertex_project",
    }
)

_KNOWN = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "temperature",
        "top_p",
        "stop",
        "seed",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
        "user",
        "metadata",
        "frequency_penalty",
        "presence_penalty",
    }
)
_TOOL = frozenset({"type", "function"})
_FUNCTION = frozenset({"name", "description", "parameters", "strict"})
_SIMPLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_EFFORT = re.compile(r"[a-z_]{1,32}")

_ALSO: Mapping[str, Callable[[Any, str], object]] = {
    "n": lambda value, name: check.integer(value, name, 1, 128),
    "logprobs": check.flag,
    "top_logprobs": lambda value, name: check.integer(value, name, 0, 20),
    "logit_bias": check.mapping,
    "store": check.flag,
    "service_tier": check.token,
    "verbosity": check.token,
    "prompt_cache_key": lambda value, name: check.token(value, name, longest=1024, empty=True),
    "safety_identifier": lambda value, name: check.token(value, name, longest=256),
    "prediction": check.mapping,
    "audio": check.mapping,
    "web_search_options": check.mapping,
    "modalities": check.array,
    "functions": check.array,
}


def decode_request(body: bytes, limits: Mapping[str, int]) -> ChatRequest:
    """One request. `limits` may hold `json_depth` and `messages`, as in the configuration.

    Raises:
        ClawError: `invalid_json`, `json_too_deep`, `invalid_request`, `unknown_parameter`; the last two with `param`.
    """
    return decode_plain(body, limits) or decode_any(body, limits)


def decode_any(body: bytes, limits: Mapping[str, int]) -> ChatRequest:
    """The same for every request there may be, whatever it holds."""
    fields = jsonio.decode(body, depth=limits.get("json_depth", 64))
    if not isinstance(fields, dict):
        raise ClawError("invalid_request", "The body must be a JSON object.")
    for name in sorted(FORBIDDEN & fields.keys()):
        raise ClawError("unknown_parameter", f"`{name}` is not a parameter of this API.", param=name)
    model = check.text(check.need(fields, "model", ""), "model")
    if not model:
        check.refuse("model", "not be empty")
    extra = check.beyond(fields, _KNOWN)
    for name in _ALSO.keys() & extra.keys():
        if extra[name] is not None:
            _ALSO[name](extra[name], name)
    said = {name: value for name, value in fields.items() if value is not None}
    stream = check.flag(said.get("stream", False), "stream")
    tool_choice = _tool_choice(said, extra)
    return ChatRequest(
        model=model,
        messages=messages(check.need(fields, "messages", ""), limits.get("messages", 100_000)),
        stream=stream,
        max_tokens=_max_tokens(fields),
        temperature=_number(said, "temperature", 0, 2),
        top_p=_number(said, "top_p", 0, 1),
        stop=_stop(said.get("stop")),
        seed=check.integer(said["seed"], "seed", -SEED, SEED - 1) if "seed" in said else None,
        tools=_tools(said.get("tools")),
        tool_choice=tool_choice,
        parallel_tool_calls=_flag(said, "parallel_tool_calls"),
        response_format=_response_format(said.get("response_format"), extra),
        reasoning_effort=_effort(said.get("reasoning_effort")),
        user=check.token(said["user"], "user", longest=256, empty=True) if "user" in said else None,
        metadata=_metadata(said.get("metadata")),
        include_usage=_stream_options(said.get("stream_options"), stream, extra),
        dialect="openai_chat",
        top_k=_top_k(extra),
        frequency_penalty=_number(said, "frequency_penalty", -2, 2),
        presence_penalty=_number(said, "presence_penalty", -2, 2),
        extra=extra or EMPTY,
    )


def _number(said: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    return check.number(said[name], name, low, high) if name in said else None


def _top_k(extra: dict[str, Any]) -> int | None:
    """No parameter of OpenAI's, but of many that speak like it. Their own words for "all" (-1, 0, null) stay in `extra`."""
    value = extra.get("top_k")
    if type(value) is not int or not 0 < value < 2**31:
        return None
    del extra["top_k"]
    return value


def _flag(said: Mapping[str, Any], name: str) -> bool | None:
    return check.flag(said[name], name) if name in said else None


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    both = [name for name in ("max_completion_tokens", "max_tokens") if name in fields]
    if not both:
        return None
    limits = [check.integer(fields[name], name, 1, MAX_OUTPUT) for name in both]
    if len(limits) == 2 and limits[0] != limits[1]:
        check.refuse("max_tokens", "be absent, or equal, where `max_completion_tokens` is given")
    return limits[0]


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        check.refuse("stop", "be a string or an array of strings")
    return tuple([check.text(item, f"stop[{number}]") for number, item in enumerate(check.array(value, "stop", longest=16))])


def _tools(value: Any) -> tuple[Tool, ...]:
    if value is None:
        return ()
    return tuple([_tool(item, f"tools[{number}]") for number, item in enumerate(check.array(value, "tools", longest=1024))])


def _tool(value: Any, where: str) -> Tool:
    fields = check.mapping(value, where)
    kind = check.need(fields, "type", where)
    if kind not in ("function", "custom"):
        check.refuse(f"{where}.type", "be function or custom")
    within = f"{where}.{kind}"
    inner = check.mapping(check.need(fields, kind, where), within)
    name = check.token(check.need(inner, "name", within), f"{within}.name", longest=256)
    description = inner.get("description")
    if description is not None:
        check.text(description, f"{within}.description")
    parameters = strict = None
    if kind == "function":
        if inner.get("parameters") is not None:
            parameters = check.mapping(inner["parameters"], f"{within}.parameters")
        if inner.get("strict") is not None:
            strict = check.flag(inner["strict"], f"{within}.strict")
        extra = check.beyond(fields, _TOOL)
        left = check.beyond(inner, _FUNCTION)
    else:
        extra = check.beyond(fields, frozenset({"custom"}))  # keeps `type`: the sign that it is one
        left = check.beyond(inner, frozenset({"name", "description"}))
    if left:
        extra[kind] = left
    return Tool(name, description, parameters, strict, extra or EMPTY)


def _tool_choice(said: Mapping[str, Any], extra: dict[str, Any]) -> ToolChoice | None:
    value = said.get("tool_choice")
    if value is None:
        return None
    if value in ("auto", "none", "required"):
        return ToolChoice(cast(Literal["auto", "none", "required"], value))
    right = "be auto, none, required or an object that names a tool"
    if not isinstance(value, dict):
        check.refuse("tool_choice", right)
    if value.get("type") == "function":
        inner = check.mapping(check.need(value, "function", "tool_choice"), "tool_choice.function")
        name = check.need(inner, "name", "tool_choice.function")
        return ToolChoice("tool", check.token(name, "tool_choice.function.name", longest=256))
    if value.get("type") not in ("custom", "allowed_tools"):
        check.refuse("tool_choice", right)
    extra["tool_choice"] = value  # the vocabulary has no word for these two
    return None


def _response_format(value: Any, extra: dict[str, Any]) -> ResponseFormat | None:
    if value is None:
        return None
    fields = check.mapping(value, "response_format")
    mode = check.need(fields, "type", "response_format")
    rest = check.beyond(fields, frozenset({"type", "json_schema"}))
    if rest:
        extra["response_format"] = rest
    if mode == "json_schema":
        where = "response_format.json_schema"
        inner = check.mapping(check.need(fields, "json_schema", "response_format"), where)
        check.text(check.need(inner, "name", where), f"{where}.name")
        if inner.get("schema") is not None:
            check.mapping(inner["schema"], f"{where}.schema")
        return ResponseFormat("json_schema", inner)
    if mode in ("text", "json_object"):
        return ResponseFormat(cast(Literal["text", "json_object"], mode))
    check.refuse("response_format.type", "be text, json_object or json_schema")


def _effort(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _EFFORT.fullmatch(value):
        check.refuse("reasoning_effort", "be a word such as none, minimal, low, medium, high, xhigh or max")
    return value


def _metadata(value: Any) -> Mapping[str, Any]:
    """At most 16 strings of at most 512 characters, none a control character: they end in logs and labels (I-02)."""
    if value is None:
        return EMPTY
    fields = check.mapping(value, "metadata")
    if len(fields) > 16:
        check.refuse("metadata", "hold at most 16 pairs")
    for key, item in fields.items():
        if not key.isprintable() or not 0 < len(key) <= 64:
            check.refuse("metadata", "have keys of 1 to 64 printable characters")
        # A key is the client's own text: it stands in an error only where it can do no harm there.
        where = f"metadata.{key}" if _SIMPLE.fullmatch(key) else "metadata"
        check.token(item, where, longest=512, empty=True)
    return fields


def _stream_options(value: Any, stream: bool, extra: dict[str, Any]) -> bool:
    """Whether usage is asked for; what else they say goes to `extra`."""
    if value is None:
        return False
    fields = check.mapping(value, "stream_options")
    if not stream:
        check.refuse("stream_options", "be absent unless `stream` is true")
    rest = check.beyond(fields, frozenset({"include_usage"}))
    if rest:
        extra["stream_options"] = rest
    asked = fields.get("include_usage")
    return asked is not None and check.flag(asked, "stream_options.include_usage")
