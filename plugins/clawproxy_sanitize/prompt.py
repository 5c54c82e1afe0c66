"""Every text of a request, and the request with those texts changed.

Rule: what a model or a provider would read as text is looked at: messages of all roles, their parts, reasoning, tool calls and
tool results, tools' descriptions and schemas, and what travels in `extra`. Inline media (base64) is not text. Signed reasoning
that would have to be changed is left out: changed, its provider would refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import evolve

from clawproxy.messages import ChatRequest, Message, Part, TextPart, Tool


def texts(request: ChatRequest) -> list[str]:
    found: list[str] = []
    for message in request.messages:
        content = message.content
        if isinstance(content, str):
            found.append(content)
        elif content:
            for part in content:
                if isinstance(part, TextPart):
                    found.append(part.text)
                if part.extra:
                    found += _strings(part.extra)
        if message.tool_calls:
            found += [call.arguments for call in message.tool_calls]
        if message.reasoning:
            found.append(message.reasoning)
        if message.thinking:
            found += [thought.text for thought in message.thinking]
        if message.extra:
            found += _strings(message.extra)
    for tool in request.tools:
        if tool.description:
            found.append(tool.description)
        if tool.parameters:
            found += _strings(tool.parameters)
        if tool.extra:
            found += _strings(tool.extra)
    if request.response_format is not None and request.response_format.schema:
        found += _strings(request.response_format.schema)
    if request.extra:
        found += _strings(request.extra)
    return found


def changed(request: ChatRequest, change: Callable[[str], str]) -> ChatRequest:
    """The request with `change` applied to each of its texts."""
    form = request.response_format
    return evolve(
        request,
        messages=tuple(_message(message, change) for message in request.messages),
        tools=tuple(_tool(tool, change) for tool in request.tools),
        response_format=None if form is None else evolve(form, schema=_deep(form.schema, change)),
        extra=_deep(request.extra, change),
    )


def _message(message: Message, change: Callable[[str], str]) -> Message:
    content = message.content
    if isinstance(content, str):
        content = change(content)
    elif content:
        content = tuple(_part(part, change) for part in content)
    return evolve(
        message,
        content=content,
        tool_calls=tuple(evolve(call, arguments=change(call.arguments)) for call in message.tool_calls),
        thinking=tuple(thought for thought in message.thinking if change(thought.text) == thought.text),
        reasoning=None if message.reasoning is None else change(message.reasoning),
        extra=_deep(message.extra, change),
    )


def _part(part: Part, change: Callable[[str], str]) -> Part:
    extra = _deep(part.extra, change)
    return evolve(part, text=change(part.text), extra=extra) if isinstance(part, TextPart) else evolve(part, extra=extra)


def _tool(tool: Tool, change: Callable[[str], str]) -> Tool:
    return evolve(
        tool,
        description=None if tool.description is None else change(tool.description),
        parameters=_deep(tool.parameters, change),
        extra=_deep(tool.extra, change),
    )


def _strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value, keys of objects left out. Depth is bounded by the reader of the request (64)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)


def _deep(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with `change` applied to its strings; containers without any change stay themselves."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        items = {key: _deep(each, change) for key, each in value.items()}
        return items if any(items[key] is not each for key, each in value.items()) else value
    if isinstance(value, list | tuple):
        made = [_deep(each, change) for each in value]
        return made if any(new is not old for new, old in zip(made, value, strict=True)) else value
    return value
