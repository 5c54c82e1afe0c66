"""Counting and estimating tokens. Pure functions.

For byte-level BPE a text has at most as many tokens as UTF-8 bytes: that is the upper bound reserved. An estimate is bytes
divided by what a token has on average.

The bound is on text. What an image, a recording or a file comes to is up to the provider, so they are reserved with a provider's
usual maximum; server-side tools and hidden reasoning are not bounded at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, assert_never

import msgspec
from attrs import evolve, frozen

from clawproxy.messages import AudioPart, ChatRequest, FilePart, ImagePart, Message, Part, Route, TextPart, Usage

MESSAGE_OVERHEAD = 8
"""Tokens around each message: role and separators."""
TOOLS_OVERHEAD = 1024
"""What providers themselves say to a model that has tools: up to 804 tokens at Anthropic."""
IMAGE_TOKENS = 49_152
"""gpt-4o-mini counts 2833 and 5667 for each of up to 8 tiles."""
FILE_TOKENS = 131_072
"""A file that is named, and one whose bytes are no text: of a PDF a page of few bytes may be many tokens."""
KEPT_TOKENS = 131_072
"""What a request continues that the provider keeps, where the context window is not stated."""
KEPT = frozenset({"cachedContent", "context", "conversation", "previous_response_id", "prompt"})
"""Of `extra`: names what the provider keeps and will read, at Responses, Gemini and Ollama."""
CLAMP_FACTOR = 4
CLAMP_FLOOR = 16_384
"""A figure up to this is believed however short the prompt: templates, tool preambles and reasoning are not in it."""
UNBOUNDED = 4_000_000
"""What is believed where the gateway can not know: media, tools of the provider, no stated maximum of the answer."""


ANSWERS = ("n", "generationConfig.candidateCount")
"""Of `extra`: how many answers are asked for."""


def text_bytes(text: str) -> int:
    """Bytes in UTF-8, lone surrogates included."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _json_bytes(value: Mapping[str, Any] | None) -> int:
    if not value:
        return 0
    try:
        return len(msgspec.json.encode(dict(value), enc_hook=repr))
    except (TypeError, ValueError, OverflowError):
        return text_bytes(repr(value))


def prompt_bound(request: ChatRequest, window: int | None = None) -> int:
    """At most how many tokens the prompt can be. `window`: the route's, which bounds what the provider keeps of the prompt."""
    total = 0
    for message in request.messages:
        content = message.content
        if type(content) is str and not (
            message.tool_calls or message.reasoning or message.name or message.extra or message.thinking or message.tool_call_id
        ):
            total += MESSAGE_OVERHEAD + (len(content) if content.isascii() else text_bytes(content))
        else:
            total += _message_bound(message)
    if request.tools:
        total += TOOLS_OVERHEAD
    for tool in request.tools:
        total += text_bytes(tool.name) + text_bytes(tool.description or "") + _json_bytes(tool.parameters) + MESSAGE_OVERHEAD
        total += _json_bytes(tool.extra)
    if request.response_format is not None:
        total += _json_bytes(request.response_format.schema)
    if not request.extra:
        return total
    if any(request.extra.get(name) for name in KEPT):
        total += window or KEPT_TOKENS
    return total + _json_bytes(request.extra)


def output_bound(request: ChatRequest, route: Route) -> int | None:
    """At most how many tokens the answer can be; None where nobody said. Each of several answers to one prompt may be as long."""
    longest = request.max_tokens if request.max_tokens is not None else route.max_output_tokens
    if longest is None or not request.extra:
        return longest
    return longest * max([1, *(said for name in ANSWERS if type(said := request.extra.get(name)) is int)])


def _message_bound(message: Message) -> int:
    total = MESSAGE_OVERHEAD
    if isinstance(message.content, str):
        total += text_bytes(message.content)
    else:
        for part in message.content or ():
            total += _part_bound(part)
    for call in message.tool_calls:
        total += text_bytes(call.name) + text_bytes(call.arguments) + text_bytes(call.id) + MESSAGE_OVERHEAD
        total += len(call.signature or "")
    if message.reasoning:
        total += text_bytes(message.reasoning)
    for thought in message.thinking:
        total += text_bytes(thought.text) + len(thought.signature or "") + len(thought.data or "")
        total += _json_bytes(thought.extra)
    total += text_bytes(message.name or "") + text_bytes(message.tool_call_id or "")
    return total + _json_bytes(message.extra)


def _part_bound(part: Part) -> int:
    total = _json_bytes(part.extra)
    match part:
        case TextPart(text):
            return total + text_bytes(text)
        case ImagePart():
            return total + IMAGE_TOKENS
        case AudioPart(data):
            return total + len(data)
        case FilePart(data):
            total += text_bytes(part.filename or "")
            if data is not None and (part.media_type or "").startswith("text/"):
                return total + len(data)
            return total + max(FILE_TOKENS, len(data or ""))
    assert_never(part)


def estimate(size: float, bytes_per_token: float) -> int:
    """Tokens of that many bytes; something is at least one."""
    return max(1, math.ceil(size / bytes_per_token)) if size > 0 else 0


@frozen(slots=True)
class Bounds:
    """The most that is believed of a provider's figures."""

    input: int
    output: int


def bounds(request: ChatRequest, route: Route, reserved_input: int, reserved_output: int | None) -> Bounds:
    open_ended = bool(request.tools or request.extra) or any(
        not isinstance(part, TextPart)
        for message in request.messages
        if not isinstance(message.content, str)
        for part in message.content or ()
    )
    most_input = max(CLAMP_FACTOR * reserved_input, CLAMP_FLOOR, route.context_tokens or UNBOUNDED if open_ended else 0)
    most_output = UNBOUNDED if reserved_output is None else max(CLAMP_FACTOR * reserved_output, CLAMP_FLOOR)
    return Bounds(most_input, most_output)


def is_sane(usage: Usage) -> bool:
    """Whether its figures need no second look: counts, no part above its whole, all below every bound."""
    given, taken = usage.input_tokens, usage.output_tokens
    if type(given) is not int or type(taken) is not int or not (0 <= given <= CLAMP_FLOOR and 0 <= taken <= CLAMP_FLOOR):
        return False
    cached, written, thought = usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens
    return (
        (cached is None or _is_part(cached, given))
        and (written is None or _is_part(written, given))
        and (thought is None or _is_part(thought, taken))
        and _parts_are_sane(usage, given, taken)
    )


def _parts_are_sane(usage: Usage, given: int, taken: int) -> bool:
    for part in (usage.cache_write_1h_tokens, usage.cached_audio_tokens, usage.audio_input_tokens, usage.image_input_tokens):
        if part is not None and not _is_part(part, given):
            return False
    return all(part is None or _is_part(part, taken) for part in (usage.audio_output_tokens, usage.image_output_tokens))


def _is_part(value: object, whole: int) -> bool:
    return type(value) is int and 0 <= value <= whole


def believed(usage: Usage, limits: Bounds) -> tuple[Usage, bool]:
    """The usage with every figure in its bounds, and whether any was not.

    What is no count at all (negative, a float, a string) becomes None, "not said": it is estimated rather than free. Parts of a
    whole are at most the whole.
    """
    given = _count(usage.input_tokens, limits.input)
    taken = _count(usage.output_tokens, limits.output)
    most_in = limits.input if given is None else given
    most_out = limits.output if taken is None else taken
    sane = evolve(
        usage,
        input_tokens=given,
        output_tokens=taken,
        cached_tokens=_count(usage.cached_tokens, most_in),
        cache_write_tokens=_count(usage.cache_write_tokens, most_in),
        reasoning_tokens=_count(usage.reasoning_tokens, most_out),
        cache_write_1h_tokens=_count(usage.cache_write_1h_tokens, most_in),
        cached_audio_tokens=_count(usage.cached_audio_tokens, most_in),
        audio_input_tokens=_count(usage.audio_input_tokens, most_in),
        audio_output_tokens=_count(usage.audio_output_tokens, most_out),
        image_input_tokens=_count(usage.image_input_tokens, most_in),
        image_output_tokens=_count(usage.image_output_tokens, most_out),
    )
    return sane, sane != usage


def _count(value: object, most: int) -> int | None:
    if type(value) is not int or value < 0:  # the provider's word: it can be anything
        return None
    return min(value, most)
