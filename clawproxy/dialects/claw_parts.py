"""The pieces a Claw request is made of: checked values, content parts, messages, tools. Used by `dialects.claw` only.

Every function takes the value and where it stands (`messages[2].content`), and raises ClawError("invalid_request") with that
place as `param`. Messages name the place and the rule, never the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from clawproxy.dialects import jsonio
from clawproxy.errors import ClawError
from clawproxy.messages import AudioPart, FilePart, ImagePart, Message, Part, Role, TextPart, Thinking, Tool, ToolCall

_ROLES: Mapping[object, Role] = {
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}", re.ASCII)
_IMAGE_TYPE = re.compile(r"image/[a-z0-9][a-z0-9.+-]{0,63}", re.ASCII)
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,127}", re.ASCII)
_DATA_URL = re.compile(r"data:([^;,]{1,80});base64,", re.ASCII)
_URL = re.compile(r"https?://[!-~]{1,8192}", re.ASCII | re.IGNORECASE)
_AUDIO = re.compile(r"[a-z0-9]{1,16}", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,512}")


def invalid(where: str, rule: str) -> NoReturn:
    raise ClawError("invalid_request", f"`{where}` {rule}.", param=where)


def string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        invalid(where, "must be a string")
    return value


def flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        invalid(where, "must be true or false")
    return value


def integer(value: Any, where: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        invalid(where, "must be an integer")
    if not low <= value <= high:
        invalid(where, f"must be from {low} to {high}")
    return value


def number(value: Any, where: str, low: float, high: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        invalid(where, "must be a number")
    if not low <= value <= high:  # false for NaN, too
        invalid(where, f"must be from {low:g} to {high:g}")
    return value


def obj(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        invalid(where, "must be an object")
    return value


def array(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        invalid(where, "must be a list")
    if len(value) > most:
        invalid(where, f"may hold at most {most} items")
    return value


# --- content ---------------------------------------------------------------------------------------------------------------


def content(value: Any, where: str) -> str | tuple[Part, ...]:
    """A string, or a list of parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        invalid(where, "must be a string or a list of content parts")
    return tuple(_part(item, f"{where}[{index}]") for index, item in enumerate(array(value, where, 10_000)))


def _part(value: Any, where: str) -> Part:
    part = obj(value, where)
    kind = part.get("type")
    if kind == "text":
        return TextPart(string(part.get("text"), f"{where}.text"))
    if kind == "image":
        return _image(part, where)
    if kind == "image_url":  # the OpenAI shape
        inner = part.get("image_url")
        return _image({"url": inner} if isinstance(inner, str) else obj(inner, f"{where}.image_url"), f"{where}.image_url")
    if kind == "audio":
        return _audio(part, where)
    if kind == "input_audio":
        return _audio(obj(part.get("input_audio"), f"{where}.input_audio"), f"{where}.input_audio")
    if kind == "file":
        inner = part.get("file")  # the OpenAI shape
        return _file(part, where) if inner is None else _file(_openai_file(obj(inner, f"{where}.file")), f"{where}.file")
    invalid(f"{where}.type", "must be text, image, audio or file")


def _image(part: Mapping[str, Any], where: str) -> ImagePart:
    """By `url` (http, https: passed on, never fetched here; or `data:`), or by base64 `data` with `media_type`."""
    detail = part.get("detail")
    if detail is not None and detail not in ("auto", "low", "high"):
        invalid(f"{where}.detail", "must be auto, low or high")
    url, data = part.get("url"), part.get("data")
    if (url is None) == (data is None):
        invalid(where, "must have either `url` or `data`")
    if url is not None:
        text = string(url, f"{where}.url")
        inline = _DATA_URL.match(text)
        if inline is None:
            if _URL.fullmatch(text) is None:
                invalid(f"{where}.url", "must be an http, https or base64 data URL")
            return ImagePart(url=text, detail=detail)
        media_type, data = inline[1], text[inline.end() :]
    else:
        media_type = string(part.get("media_type"), f"{where}.media_type")
    if _IMAGE_TYPE.fullmatch(media_type) is None:
        invalid(where, "must have an image media type")
    return ImagePart(data=_base64(data, where), media_type=media_type, detail=detail)


def _audio(part: Mapping[str, Any], where: str) -> AudioPart:
    form = string(part.get("format"), f"{where}.format")
    if _AUDIO.fullmatch(form) is None:
        invalid(f"{where}.format", "must be a short name like wav or mp3")
    return AudioPart(_base64(part.get("data"), f"{where}.data"), form)


def _file(part: Mapping[str, Any], where: str) -> FilePart:
    """By base64 `data` with `media_type`, by a provider's `file_id`, or by `url` (passed on, never fetched here; or `data:`)."""
    named = {name: part[name] for name in ("data", "file_id", "url") if part.get(name) is not None}
    if len(named) != 1:
        invalid(where, "must have one of `data`, `file_id` and `url`")
    filename = None if part.get("filename") is None else _name(part["filename"], f"{where}.filename")
    if "file_id" in named:
        return FilePart(file_id=_name(named["file_id"], f"{where}.file_id"), filename=filename)
    media_type, data = part.get("media_type"), named.get("data")
    if "url" in named:
        text = string(named["url"], f"{where}.url")
        inline = _DATA_URL.match(text)
        if inline is not None:
            media_type, data = inline[1], text[inline.end() :]
        elif _URL.fullmatch(text) is None:
            invalid(f"{where}.url", "must be an http, https or base64 data URL")
    if (media_type is not None or data is not None) and _MEDIA_TYPE.fullmatch(string(media_type, f"{where}.media_type")) is None:
        invalid(f"{where}.media_type", "must be a media type like application/pdf")
    if data is not None:
        return FilePart(data=_base64(data, where), filename=filename, media_type=media_type)
    return FilePart(url=named["url"], filename=filename, media_type=media_type)


def _openai_file(inner: Mapping[str, Any]) -> dict[str, Any]:
    """`file_data` is a data URL there."""
    return {"url": inner.get("file_data"), "file_id": inner.get("file_id"), "filename": inner.get("filename")}


def _name(value: Any, where: str) -> str:
    text = string(value, where)
    if _NAME.fullmatch(text) is None:
        invalid(where, "must have 1 to 512 characters and no control characters")
    return text


def _base64(value: Any, where: str) -> str:
    text = string(value, where)
    if len(text) % 4 or _BASE64.fullmatch(text) is None:
        invalid(where, "must be base64")
    return text


# --- messages and tools ----------------------------------------------------------------------------------------------------


def message(value: Any, where: str) -> Message:
    item = obj(value, where)
    name = item.get("role")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        invalid(f"{where}.role", f"must be one of {', '.join(_ROLES.values())}")
    calls = item.get("tool_calls")
    if calls is not None and role != "assistant":
        invalid(f"{where}.tool_calls", "belongs to assistant messages")
    tool_calls = tuple(
        _tool_call(call, f"{where}.tool_calls[{index}]")
        for index, call in enumerate(array(calls, f"{where}.tool_calls", 1024) if calls is not None else ())
    )
    reasoning, thinking = _thoughts(item, where, role)
    body = item.get("content")
    if body is None and not (tool_calls or reasoning or thinking):
        invalid(f"{where}.content", "is missing")
    tool_call_id = item.get("tool_call_id")
    if role == "tool" or tool_call_id is not None:
        tool_call_id = string(tool_call_id, f"{where}.tool_call_id")
    failed = item.get("is_error")
    if failed is not None and role != "tool":
        invalid(f"{where}.is_error", "belongs to tool messages")
    speaker = item.get("name")
    return Message(
        role,
        None if body is None else content(body, f"{where}.content"),
        tool_calls=tool_calls,
        tool_call_id=tool_call_id,
        name=None if speaker is None else string(speaker, f"{where}.name"),
        reasoning=reasoning,
        thinking=thinking,
        is_error=None if failed is None else flag(failed, f"{where}.is_error"),
        pinned=flag(item.get("pinned", False), f"{where}.pinned"),
    )


def _thoughts(item: Mapping[str, Any], where: str, role: Role) -> tuple[str | None, tuple[Thinking, ...]]:
    """`reasoning`, a string, and `thinking`: what `llm_reasoning` messages said, as they came or joined up to the one that has
    a `signature` or `data`. What is signed goes back to its provider unchanged; what no signature follows is plain text."""
    given, pieces = item.get("reasoning"), item.get("thinking")
    if given is None and pieces is None:
        return None, ()
    if role != "assistant":
        invalid(f"{where}.{'reasoning' if pieces is None else 'thinking'}", "belongs to assistant messages")
    plain = [] if given is None else [string(given, f"{where}.reasoning")]
    blocks: list[Thinking] = []
    texts: list[str] = []
    for index, value in enumerate(array(pieces, f"{where}.thinking", 10_000) if pieces is not None else ()):
        here = f"{where}.thinking[{index}]"
        piece = obj(value, here)
        said = {
            name: None if piece.get(name) is None else string(piece[name], f"{here}.{name}")
            for name in ("content", "signature", "data", "reasoning_id", "dialect")
        }
        texts.append(said["content"] or "")
        if said["signature"] is not None or said["data"] is not None:
            if not said["dialect"]:
                invalid(f"{here}.dialect", "is missing: it says whose signature that is")
            text, texts = "".join(texts), []
            blocks.append(Thinking(text, said["signature"], said["data"], said["reasoning_id"], said["dialect"]))
    return "".join([*plain, *texts]) or None, tuple(blocks)


def _tool_call(value: Any, where: str) -> ToolCall:
    """As OpenAI has it, or as `llm_tool_call` said it: `{"call_id", "name", "arguments", "signature"?}`."""
    call = obj(value, where)
    function, inside = call, where
    if "function" in call:
        function, inside = obj(call["function"], f"{where}.function"), f"{where}.function"
    ident = "call_id" if "id" not in call and "call_id" in call else "id"
    arguments = function.get("arguments", "")
    if isinstance(arguments, dict):
        arguments = jsonio.encode(arguments).decode()
    signature = call.get("signature")
    return ToolCall(
        string(call.get(ident), f"{where}.{ident}"),
        string(function.get("name"), f"{inside}.name"),
        string(arguments, f"{inside}.arguments"),
        None if signature is None else string(signature, f"{where}.signature"),
    )


def tool(value: Any, where: str) -> Tool:
    item = obj(value, where)
    if item.get("type") != "function":
        invalid(f"{where}.type", "must be function")
    function = obj(item.get("function"), f"{where}.function")
    name = string(function.get("name"), f"{where}.function.name")
    if not name or len(name) > 256:
        invalid(f"{where}.function.name", "must have 1 to 256 characters")
    description, parameters, strict = function.get("description"), function.get("parameters"), function.get("strict")
    return Tool(
        name,
        None if description is None else string(description, f"{where}.function.description"),
        None if parameters is None else obj(parameters, f"{where}.function.parameters"),
        None if strict is None else flag(strict, f"{where}.function.strict"),
    )


def json_schema_format(value: Any, where: str) -> Mapping[str, Any]:
    """`{"name", "schema", "strict"?, "description"?}`, as `ResponseFormat.schema` has it."""
    item = obj(value, where)
    name, schema = string(item.get("name"), f"{where}.name"), obj(item.get("schema"), f"{where}.schema")
    result: dict[str, Any] = {"name": name, "schema": schema}
    if item.get("strict") is not None:
        result["strict"] = flag(item["strict"], f"{where}.strict")
    if item.get("description") is not None:
        result["description"] = string(item["description"], f"{where}.description")
    return result
