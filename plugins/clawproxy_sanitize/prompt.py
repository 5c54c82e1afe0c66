"""Every text of a request, and the request with those texts changed.

Rule 1: what a model or a provider would read as text is looked at: messages of all roles, their parts and their files' names,
        reasoning, tool calls and tool results, tools' names, descriptions and schemas, stop sequences, who the user is said to
        be, metadata, and what travels in `extra`, names of fields included.
Rule 2: inline media (base64) is not text, but for files that say they are text: those are read as their model would read them.
        URLs are addresses: changed, they lead nowhere.
Rule 3: signed reasoning that would have to be changed is left out: changed, its provider would refuse it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from attrs import evolve

from clawproxy.messages import ChatRequest, FilePart, Message, Part, TextPart, Thinking, Tool, ToolCall
from clawproxy_sanitize.values import deep, strings

Change = Callable[[str], str]
_TEXTUAL = ("text/", "application/json", "application/xml", "application/yaml", "application/x-yaml", "application/javascript")


def texts(request: ChatRequest) -> list[str]:
    found: list[str] = []
    for message in request.messages:
        content = message.content
        if isinstance(content, str):
            found.append(content)
        elif content:
            for part in content:
                _of_part(part, found)
        for call in message.tool_calls:
            found += (call.name, call.arguments)
        if message.name:
            found.append(message.name)
        if message.reasoning:
            found.append(message.reasoning)
        for thought in message.thinking:
            found.append(thought.text)
            if thought.extra:
                found += strings(thought.extra)
        if message.extra:
            found += strings(message.extra)
    for tool in request.tools:
        found.append(tool.name)
        if tool.description:
            found.append(tool.description)
        if tool.parameters:
            found += strings(tool.parameters)
        if tool.extra:
            found += strings(tool.extra)
    found += request.stop
    if request.user:
        found.append(request.user)
    if request.metadata:
        found += strings(request.metadata)
    if request.response_format is not None and request.response_format.schema:
        found += strings(request.response_format.schema)
    if request.extra:
        found += strings(request.extra)
    return found


def _of_part(part: Part, found: list[str]) -> None:
    if isinstance(part, TextPart):
        found.append(part.text)
    elif isinstance(part, FilePart):
        if part.filename:
            found.append(part.filename)
        if (text := _file_text(part)) is not None:
            found.append(text)
    if part.extra:
        found += strings(part.extra)


def changed(request: ChatRequest, change: Change) -> ChatRequest:
    """The request with `change` applied to each of its texts."""
    form, choice = request.response_format, request.tool_choice
    return evolve(
        request,
        messages=tuple(_message(message, change) for message in request.messages),
        tools=tuple(_tool(tool, change) for tool in request.tools),
        tool_choice=None if choice is None else evolve(choice, name=_maybe(choice.name, change)),
        stop=tuple(change(stop) for stop in request.stop),
        user=_maybe(request.user, change),
        metadata=deep(request.metadata, change),
        response_format=None if form is None else evolve(form, schema=deep(form.schema, change)),
        extra=deep(request.extra, change),
    )


def _maybe(text: str | None, change: Change) -> str | None:
    return None if text is None else change(text)


def _message(message: Message, change: Change) -> Message:
    content = message.content
    if isinstance(content, str):
        content = change(content)
    elif content:
        content = tuple(_part(part, change) for part in content)
    return evolve(
        message,
        content=content,
        tool_calls=tuple(_call(call, change) for call in message.tool_calls),
        name=_maybe(message.name, change),
        thinking=tuple(thought for thought in message.thinking if not _differs(thought, change)),
        reasoning=_maybe(message.reasoning, change),
        extra=deep(message.extra, change),
    )


def _call(call: ToolCall, change: Change) -> ToolCall:
    return evolve(call, name=change(call.name), arguments=change(call.arguments))


def _differs(thought: Thinking, change: Change) -> bool:
    return change(thought.text) != thought.text or deep(thought.extra, change) is not thought.extra


def _part(part: Part, change: Change) -> Part:
    extra = deep(part.extra, change)
    if isinstance(part, TextPart):
        return evolve(part, text=change(part.text), extra=extra)
    if isinstance(part, FilePart):
        data, text = part.data, _file_text(part)
        if text is not None and (made := change(text)) != text:
            data = base64.b64encode(made.encode("utf-8", "surrogatepass")).decode()
        return evolve(part, data=data, filename=_maybe(part.filename, change), extra=extra)
    return evolve(part, extra=extra)


def _file_text(part: FilePart) -> str | None:
    """What an enclosed file of text says; None for any other."""
    if part.data is None or part.media_type is None or not part.media_type.lower().startswith(_TEXTUAL):
        return None
    try:
        return base64.b64decode(part.data).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return part.data


def _tool(tool: Tool, change: Change) -> Tool:
    return evolve(
        tool,
        name=change(tool.name),
        description=_maybe(tool.description, change),
        parameters=deep(tool.parameters, change),
        extra=deep(tool.extra, change),
    )
