"""What a wire format is to this provider: how it reads a request, and how it writes each thing a script can say.

Rule 1: one format, one file (`openai_chat` is the first). A format knows no sockets, no time and no scripts.
Rule 2: nothing here comes from `clawproxy.dialects`: a test provider that shares the codec under test proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import define, field, frozen


class BadRequest(Exception):
    """A request this provider refuses, the way its real counterpart would."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        super().__init__(message)


@frozen(slots=True)
class Asked:
    """What a script needs to know about a request."""

    model: str
    stream: bool = False
    prompt: str = ""
    """The text of the last user message."""
    words: int = 0
    """Words in all messages: the input tokens this provider reports."""
    usage: bool = False
    """Whether a stream is to report usage."""
    counts: bool = False
    """Whether only a count of the prompt's tokens is asked for."""
    options: Mapping[str, Any] = field(factory=dict)
    """What else a format's encoder needs to know."""
    cached: int = 0
    """Of `words`, those that the provider's prompt cache had."""


@frozen(slots=True)
class Figures:
    """Tokens, as reported: they need not make sense."""

    input: int
    output: int
    total: int
    cached: int = 0
    reasoning: int = 0


@define(slots=True)
class Answer:
    """An answer in one piece, for requests without streaming."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tools: list[tuple[str, str]] = field(factory=list)
    """`(name, arguments)`."""
    finish: str | None = None
    usage: Figures | None = None


class Encoder(Protocol):
    """Writes one answer. Each method gives the bytes of whole events; none keeps any back."""

    content_type: str
    """Of a stream."""
    stop: str
    """The finish reason of an answer that ends by itself."""
    called: str
    """The finish reason of an answer that calls tools."""

    def begin(self) -> bytes: ...
    def text(self, piece: str) -> bytes: ...
    def reasoning(self, piece: str) -> bytes: ...
    def refusal(self, piece: str) -> bytes: ...
    def tool(self, index: int, name: str) -> bytes: ...
    def arguments(self, index: int, piece: str) -> bytes: ...
    def finish(self, reason: str) -> bytes: ...
    def usage(self, figures: Figures) -> bytes: ...
    def done(self) -> bytes: ...
    def error(self, message: str, kind: str, code: str | None) -> bytes: ...
    def comment(self, text: str) -> bytes: ...
    def bad_json(self) -> bytes: ...
    def unknown_event(self) -> bytes: ...

    def whole(self, answer: Answer) -> bytes:
        """The body of an answer without streaming."""
        ...

    def whole_error(self, message: str, kind: str, code: str | None) -> bytes:
        """The body of a 200 that holds an error."""
        ...


class Format(Protocol):
    name: str
    answers: Sequence[str]
    """Paths that take a POST and play a script."""
    pattern: re.Pattern[str] | None
    """The same, for paths that hold a name."""
    lists: Sequence[str]
    """Paths whose GET lists the models."""

    def read(self, body: Any, target: str) -> Asked:
        """From the JSON body and the request target. Raises BadRequest."""
        ...

    def encoder(self, asked: Asked, serial: int) -> Encoder: ...

    def error_body(self, status: int, message: str | None = None, param: str | None = None, code: str | None = None) -> bytes:
        """The error document; without `message` the words this status usually comes with."""
        ...

    def models(self, names: Sequence[str]) -> bytes: ...
