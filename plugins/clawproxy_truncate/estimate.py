"""Tokens, estimated as `clawproxy.counting` does: bytes of UTF-8 / 4, rounded up, and 4 for each message around its text.

English prose has about 4 bytes a token and code fewer, so this is a guess of the right size, not a bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from clawproxy.counting import estimate, text_bytes
from clawproxy.messages import Message, TextPart, Tool

PER_MESSAGE = 4
PER_MEDIA = 1000
"""An image, a sound or a document: providers count them by their own rules, which its bytes do not tell."""


def text_tokens(text: str) -> int:
    return estimate(text_bytes(text))


def message_tokens(message: Message) -> int:
    tokens = PER_MESSAGE
    content = message.content
    if isinstance(content, str):
        tokens += text_tokens(content)
    elif content:
        for part in content:
            tokens += text_tokens(part.text) if isinstance(part, TextPart) else PER_MEDIA
    for call in message.tool_calls:
        tokens += text_tokens(call.name) + text_tokens(call.arguments)
    if message.reasoning:
        tokens += text_tokens(message.reasoning)
    for thought in message.thinking:
        tokens += text_tokens(thought.text) + text_tokens(thought.data or "")
    return tokens


def tool_tokens(tools: Sequence[Tool]) -> int:
    """The tools' descriptions and schemas stand in the prompt too."""
    tokens = 0
    for tool in tools:
        tokens += PER_MESSAGE + text_tokens(tool.name) + text_tokens(tool.description or "")
        if tool.parameters:
            tokens += estimate(len(msgspec.json.encode(dict(tool.parameters))))
    return tokens
