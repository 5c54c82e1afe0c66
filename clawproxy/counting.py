"""How many tokens a text has: a bound, an estimate, or the exact number. Pure functions, and the one way to count.

Rule 1, the bound: a token of byte-level BPE has at least one byte of UTF-8, so a text has at most as many tokens as bytes. It is
        what is reserved, whatever the model's vocabulary.
Rule 2, exact: where a vocabulary is known for a model's name and installed (`clawproxy[tokenizers]`), its text is counted as the
        provider counts it. Nothing is ever fetched. Of a prompt at most `MOST_COUNTED` bytes are, for it takes the interpreter's
        time (12 ns to 70 ns a byte); the others count by rule 1.
Rule 3, the estimate: bytes through four. English and code have 4 to 5 bytes a token, JSON 3, Chinese 3 to 5 by the vocabulary:
        a guess of the right size, and no bound.
Rule 4: all of this is about text. What an image, a recording or a file comes to is up to the provider, so they are bounded by a
        provider's usual maximum; a provider's own tools and hidden reasoning are not bounded at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, Final, assert_never

import msgspec

from clawproxy.errors import ClawError
from clawproxy.messages import AudioPart, ChatRequest, FilePart, ImagePart, Message, Part, TextPart

Count = Callable[[str], int]
BYTES_PER_TOKEN: Final = 4
MOST_COUNTED: Final = 128 * 1024
"""Bytes of one prompt that are counted exactly: at most about 10 ms."""
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
VOCABULARIES: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("o200k_base", re.compile(r"(openai/)?(chatgpt-4o|gpt-4o|gpt-4\.1|gpt-4\.5|gpt-5|gpt-oss|o[134])([-.:@].*)?")),
    ("cl100k_base", re.compile(r"(openai/)?(gpt-4|gpt-4-.*|gpt-3\.5-turbo.*|text-embedding-3-.*|text-embedding-ada-002)")),
)
"""Whose names tell their vocabulary; of OpenAI's models, for nobody else's is public or exact."""


def text_bytes(text: str) -> int:
    """Bytes in UTF-8, lone surrogates included: at most how many tokens it can be."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def estimate(size: float, bytes_per_token: float = BYTES_PER_TOKEN) -> int:
    """Tokens of so many bytes, more or less; something is at least one."""
    return max(1, -int(-size // bytes_per_token)) if size > 0 else 0


# --- exactly -----------------------------------------------------------------------------------------------------------------


@lru_cache(1024)
def counter_for(model: str) -> Count | None:
    """What counts text as that model does; None where its vocabulary is not known, or not installed."""
    for name, pattern in VOCABULARIES:
        if pattern.fullmatch(model) is not None:
            return _vocabulary(name)
    return None


def installed() -> bool:
    """Whether there are vocabularies at all."""
    return _vocabulary(VOCABULARIES[0][0]) is not None


@lru_cache(8)
def _vocabulary(name: str) -> Count | None:
    """Reading one takes a quarter of a second, so it is asked for when a configuration is loaded."""
    try:
        bindings: Any = import_module("bpe_openai._bindings")  # its other interface copies all ranks and counts lists
    except ImportError:
        return None
    whole: Count = bindings.tokenizer_for_encoding(name).count

    def count(text: str) -> int:
        try:
            return whole(text)
        except UnicodeEncodeError:  # a lone surrogate: providers get the replacement
            return whole(text.encode("utf-8", "replace").decode())

    return count


class Limited:
    """Counts exactly until `most` bytes have been, then by the bound."""

    __slots__ = ("_count", "_left")

    def __init__(self, count: Count, most: int = MOST_COUNTED) -> None:
        self._count = count
        self._left = most

    def __call__(self, text: str) -> int:
        size = text_bytes(text)
        if size > self._left:
            return size
        self._left -= size
        return self._count(text)


class Running:
    """Counts an answer while it comes, in blocks of `BLOCK` characters: at a seam it may be a token or two off."""

    __slots__ = ("_count", "_pieces", "_size", "_tokens")
    BLOCK: Final = 4096

    def __init__(self, count: Count) -> None:
        self._count = count
        self._pieces: list[str] = []
        self._size = 0
        self._tokens = 0

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self._size += len(text)
        if self._size >= self.BLOCK:
            self._tokens += self._count("".join(self._pieces))
            self._pieces.clear()
            self._size = 0

    @property
    def tokens(self) -> int:
        return self._tokens + (self._count("".join(self._pieces)) if self._pieces else 0)


def only_text(request: ChatRequest) -> bool:
    """Whether all of its content is text, so that counting text counts it."""
    return all(
        isinstance(message.content, str) or all(type(part) is TextPart for part in message.content or ())
        for message in request.messages
    )


# --- at most -----------------------------------------------------------------------------------------------------------------


def prompt_bound(request: ChatRequest, window: int | None = None, count: Count = text_bytes) -> int:
    """At most how many tokens the prompt can be. `window`: the route's, which bounds what the provider keeps of the prompt.
    `count`: what counts texts; with the model's own counter the bound is tight."""
    total = 0
    for message in request.messages:
        content = message.content
        if type(content) is str and not (
            message.tool_calls or message.reasoning or message.name or message.extra or message.thinking or message.tool_call_id
        ):
            total += MESSAGE_OVERHEAD + (len(content) if count is text_bytes and content.isascii() else count(content))
        else:
            total += _message_bound(message, count)
    if request.tools:
        total += TOOLS_OVERHEAD
    for tool in request.tools:
        total += count(tool.name) + count(tool.description or "") + _json_bound(tool.parameters) + MESSAGE_OVERHEAD
        total += _json_bound(tool.extra)
    if request.response_format is not None:
        total += _json_bound(request.response_format.schema)
    if not request.extra:
        return total
    if any(request.extra.get(name) for name in KEPT):
        total += window or KEPT_TOKENS
    return total + _json_bound(request.extra)


def _message_bound(message: Message, count: Count) -> int:
    total = MESSAGE_OVERHEAD
    if isinstance(message.content, str):
        total += count(message.content)
    else:
        for part in message.content or ():
            total += _part_bound(part, count)
    for call in message.tool_calls:
        total += count(call.name) + count(call.arguments) + count(call.id) + MESSAGE_OVERHEAD
        total += len(call.signature or "")
    if message.reasoning:
        total += count(message.reasoning)
    for thought in message.thinking:
        total += count(thought.text) + len(thought.signature or "") + len(thought.data or "")
        total += _json_bound(thought.extra)
    total += count(message.name or "") + count(message.tool_call_id or "")
    return total + _json_bound(message.extra)


def _part_bound(part: Part, count: Count) -> int:
    total = _json_bound(part.extra)
    match part:
        case TextPart(text):
            return total + count(text)
        case ImagePart():
            return total + IMAGE_TOKENS
        case AudioPart(data):
            return total + len(data)
        case FilePart(data):
            total += count(part.filename or "")
            if data is not None and (part.media_type or "").startswith("text/"):
                return total + len(data)
            return total + max(FILE_TOKENS, len(data or ""))
    assert_never(part)


def _json_bound(value: Mapping[str, Any] | None) -> int:
    """By its bytes: how a provider writes a schema into its prompt is its own affair."""
    if not value:
        return 0
    try:
        return len(msgspec.json.encode(dict(value), enc_hook=repr))
    except (TypeError, ValueError, OverflowError):
        return text_bytes(repr(value))


def bound_media(request: ChatRequest, most: int) -> None:
    """Raises ClawError where the request's inline media have more than `most` bytes of base64."""
    size = 0
    for message in request.messages:
        if isinstance(message.content, tuple):
            for part in message.content:
                if not isinstance(part, TextPart):  # a `data:` URL may stand where no base64 was found in it
                    size += len(part.data or "") + len(getattr(part, "url", None) or "")
    if size > most:
        words = f"Inline media may hold {most} bytes in one request (setting limits.media)."
        raise ClawError("body_too_large", words, param="messages", setting="limits.media")
