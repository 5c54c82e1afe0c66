"""Messages as the input items of a Responses request.

Rule 1: `extra` and `thinking` go out only if the request came in this format.
Rule 2: reasoning that only the gateway has numbered (`items.OWN_REASONING`) is not sent: no provider knows it. What is encrypted
        goes without that number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, assert_never

from clawproxy.dialects import translate
from clawproxy.dialects.openai_responses.items import OWN_REASONING, opaque
from clawproxy.dialects.openai_responses.tools import NAME, Names, unwrapped
from clawproxy.messages import EMPTY, AudioPart, ChatRequest, FilePart, ImagePart, Message, Part, TextPart, Thinking


def write_input(request: ChatRequest) -> tuple[str | None, list[dict[str, Any]]]:
    """`(instructions, input)`.

    Raises:
        ClawError: unsupported_parameter, for content this format has no place for.
    """
    same = request.dialect == NAME
    instructions: str | None = None
    names = Names(request.tools if same else ())
    items: list[dict[str, Any]] = []
    for number, message in enumerate(request.messages):
        if same and instructions is None and message.extra.get("instructions") is True:
            instructions = message.text()
        else:
            items.extend(_items(message, same, f"messages[{number}]", names))
    return instructions, items


def _items(message: Message, same: bool, where: str, names: Names) -> Iterator[dict[str, Any]]:
    extra: Mapping[str, Any] = message.extra if same else EMPTY
    if extra and (item := opaque(message)) is not None:
        yield item
        return
    if message.role == "tool":
        output = _content(message, same, f"{where}.content", "input_text")
        yield {"type": "function_call_output", **extra, "call_id": message.tool_call_id or "", "output": output}
        return
    if message.role != "assistant":
        yield {
            **_less(extra, "instructions"),
            "type": "message",
            "role": message.role,
            "content": _content(message, same, f"{where}.content", "input_text"),
        }
        return
    for thought in message.thinking:
        if same and thought.dialect == NAME and (item := _reasoning(thought)) is not None:
            yield item
    if message.content is not None and message.content != ():
        content = _content(message, same, f"{where}.content", "output_text")
        yield {**_less(extra, "tool_calls"), "type": "message", "role": "assistant", "content": content}
    raws = {item.get("call_id"): item for item in extra.get("tool_calls", ())}
    for call in message.tool_calls:
        raw = raws.get(call.id, {})
        if raw.get("type") == "custom_tool_call":
            yield {**raw, "call_id": call.id, "input": unwrapped(call.arguments)}
        else:
            said = {} if "namespace" in raw else names.said(call.name)
            yield {**raw, "type": "function_call", "call_id": call.id, **said, "arguments": call.arguments}


def _less(extra: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if name not in names}


def _reasoning(thought: Thinking) -> dict[str, Any] | None:
    item: dict[str, Any] = {"summary": [], **thought.extra, "type": "reasoning"}
    if thought.data is not None:
        item["encrypted_content"] = thought.data
    if thought.id is not None and not thought.id.startswith(OWN_REASONING):
        item["id"] = thought.id
    elif thought.data is None and thought.id is not None:
        return None
    return item


def _content(message: Message, same: bool, where: str, kind: str) -> str | list[dict[str, Any]]:
    """`kind`: what a text part is called on this side of the conversation."""
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    return [_part(part, same, f"{where}[{place}]", kind) for place, part in enumerate(content)]


def _part(part: Part, same: bool, where: str, kind: str) -> dict[str, Any]:
    extra: Mapping[str, Any] = part.extra if same else EMPTY
    if isinstance(part, TextPart):
        if extra.get("type") == "refusal":
            return {**extra, "refusal": part.text}
        return {**extra, "type": kind, "text": part.text}
    if kind == "output_text":
        translate.refuse(where, "can not be part of an assistant's message in the Responses format")
    if isinstance(part, ImagePart):
        image: dict[str, Any] = {**extra, "type": "input_image"}
        if part.detail is not None or not same:
            image["detail"] = part.detail or "auto"
        if part.data is not None:
            image["image_url"] = f"data:{part.media_type or 'image/png'};base64,{part.data}"
        elif part.url is not None:
            image["image_url"] = part.url
        return image
    if isinstance(part, AudioPart):
        return {**extra, "type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}
    if isinstance(part, FilePart):
        data = part.data
        if data is not None and part.media_type is not None:
            data = f"data:{part.media_type};base64,{data}"
        said = {"file_data": data, "file_id": part.file_id, "file_url": part.url, "filename": part.filename}
        if data is not None and part.filename is None:
            said["filename"] = "document"  # inline data is refused without a name
        return {**extra, "type": "input_file"} | {name: value for name, value in said.items() if value is not None}
    assert_never(part)
