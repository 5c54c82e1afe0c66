"""A provider's HTTP/1.1 answer: one strict check of the head, then one of two engines for the rest. No I/O here.

Rule 1: the head must match the grammar of RFC 9112 to the letter before an engine sees it: CRLF only, no obs-fold, no control
        characters, a three-digit status, at most 64 KiB. Engines differ in what they forgive; this check does not.
Rule 2: framing is decided here (RFC 9112, 6.3). Content-Length with Transfer-Encoding, two Content-Lengths, or any coding but
        `chunked` is an error, not a choice.
Rule 3: interim answers (1xx) are skipped, at most ten; 101 is an error, as nobody asked to switch.
Rule 4: httptools (llhttp) where it is installed, else h11. Both pass the same tests; h11 alone forgives a bare LF or
        an odd character in the lines around chunks.
Rule 5: the plain case has a short way: a 200 whose head came in one read and has exactly one framing header, plainly spelt, is
        judged by one pattern, and a body of known length is counted without an engine. Whatever the pattern does not take goes
        the long way; a property test holds that the two say the same. Measured: a small whole answer 6 us -> 1.4, a chunked
        one whose head has 26 fields 20 us -> 7.5. (Chunks are llhttp's: 0.3 us for a read of one; in Python it is 1.2.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, Protocol

import h11
from msgspec import Struct

try:
    import httptools
except ImportError:  # no wheel for this interpreter
    HAVE_HTTPTOOLS = False
else:
    HAVE_HTTPTOOLS = True

MAX_HEAD = 65536
MAX_INTERIM = 10

Framing = Literal["none", "length", "chunked", "close"]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]*"
_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: " + _TEXT + rb")?\r\n((?:" + _TOKEN + rb":" + _TEXT + rb"\r\n)*)\r\n")
_FIELD = re.compile(rb"([^:\r\n]+):([^\r]*)\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"content-encoding"})

# The plain head of rule 5. Nothing is tried twice (possessive): a name says which branch is meant. The first branch is only
# there because most names begin with another letter than the four that matter.
_OTHER = (
    rb"(?:[!#$%&'*+\-.^_`|~0-9ABD-SU-Zabd-su-z][!#$%&'*+\-.^_`|~0-9A-Za-z]*+:" + _TEXT + rb"+\r\n"
    rb"|(?!(?i:content-length|transfer-encoding|connection|content-encoding):)" + _TOKEN + rb"+:" + _TEXT + rb"+\r\n"
    rb"|(?i:connection: ?keep-alive)\r\n)*+"
)
_PLAIN = re.compile(
    rb"HTTP/1\.1 200(?: "
    + _TEXT
    + rb"+)?\r\n"
    + _OTHER
    + rb"(?:(?i:content-length): ?([0-9]{1,18})|(?i:transfer-encoding: ?chunked))\r\n"
    + _OTHER
    + rb"\r\n"
)
_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
"""All an engine needs to know of such a head."""


class BadAnswer(Exception):
    """The bytes are not an HTTP/1.1 answer. Its text is ours, and short.

    `body`: what was still good before the place. It may hold the terminal event, after which nothing else matters.
    """

    def __init__(self, cause: str, body: bytes = b"") -> None:
        super().__init__(cause)
        self.body = body


class ResponseHead(Struct, frozen=True, gc=False):  # a Struct, as one is made for each answer: 0.1 us, attrs takes 1
    status: int
    block: bytes
    """As sent, from the status line to the empty line."""
    framing: Framing
    length: int | None
    keep_alive: bool

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """As sent, values with their white space."""
        # Behind the status line, whose reason may hold a colon.
        return _FIELD.findall(self.block, self.block.index(b"\n") + 1)

    def headers(self, allowed: Callable[[str], bool]) -> dict[str, str]:
        """The headers whose lower-case name is allowed; of several the first; values cut at 1,024 characters."""
        found: dict[str, str] = {}
        for name, value in self.fields:
            key = name.decode("ascii").lower()
            if key not in found and allowed(key):
                found[key] = value.strip(b" \t").decode("latin-1")[:1024]
        return found


def parse_head(block: bytes | bytearray) -> ResponseHead:
    """`block`: from the status line to the empty line. Raises BadAnswer."""
    match = _HEAD.fullmatch(block)
    if match is None:
        raise BadAnswer("its head breaks RFC 9112")
    status = int(match[2])
    fields = _FIELD.findall(match[3])
    seen: dict[bytes, bytes] = {}
    for name, value in fields:
        key = name.lower()
        if key in _FRAMING:
            if key in seen and key != b"connection":
                raise BadAnswer(f"two {key.decode()} headers")
            seen[key] = (seen[key] + b"," if key in seen else b"") + value.strip(b" \t").lower()
    if seen.get(b"content-encoding", b"identity") != b"identity":
        raise BadAnswer("a content coding nobody asked for")
    framing, length = _framing(status, match[1], seen)
    connection = {token.strip(b" \t") for token in seen.get(b"connection", b"").split(b",")}
    keep_alive = framing != "close" and match[1] == b"1" and b"close" not in connection
    return ResponseHead(status, bytes(block), framing, length, keep_alive)


def _framing(status: int, minor: bytes, seen: dict[bytes, bytes]) -> tuple[Framing, int | None]:
    coding, length = seen.get(b"transfer-encoding"), seen.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise BadAnswer("content-length together with transfer-encoding")
        if coding != b"chunked" or minor == b"0":
            raise BadAnswer("a transfer coding other than chunked")
    elif length is not None and not _LENGTH.fullmatch(length):
        raise BadAnswer("a content-length that is not a number")
    if status < 200 or status in (204, 304):
        return "none", None
    if coding is not None:
        return "chunked", None
    return ("length", int(length)) if length is not None else ("close", None)


# --- engines ---------------------------------------------------------------------------------------------------------------


class Engine(Protocol):
    """Takes the whole answer, head included, however it was cut."""

    @property
    def complete(self) -> bool:
        """The body has ended, by its own framing."""
        ...

    @property
    def extra(self) -> bool:
        """Bytes came after the end: the connection must not be used again."""
        ...

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`. Raises BadAnswer with those before the fault; nothing may be fed after it."""
        ...


class _Sink:
    """What llhttp calls. Not the engine itself: that would be a reference cycle per answer."""

    __slots__ = ("complete", "extra", "on_body", "pieces", "whole")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append  # called once a chunk: with no frame of Python's own
        self.whole = 0
        self.complete = False
        self.extra = False

    def on_message_begin(self) -> None:
        self.extra = self.complete

    def on_message_complete(self) -> None:
        if not self.complete:
            self.complete = True
            self.whole = len(self.pieces)


class HttptoolsEngine:
    __slots__ = ("_parser", "_sink")

    def __init__(self) -> None:
        self._sink = _Sink()
        self._parser: Any = httptools.HttpResponseParser(self._sink)

    @property
    def complete(self) -> bool:
        return self._sink.complete

    @property
    def extra(self) -> bool:
        return self._sink.extra

    def feed(self, data: bytes) -> bytes:
        sink = self._sink
        if self.complete:
            sink.extra = True
            return b""
        pieces = sink.pieces
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not sink.complete:
                raise BadAnswer("its body breaks RFC 9112", b"".join(pieces)) from None
            sink.extra = True
        if sink.extra:
            del pieces[sink.whole :]
        if not pieces:
            return b""
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body


class H11Engine:
    __slots__ = ("_connection", "complete", "extra")

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        # h11 reads an answer only once it has seen a request; what it asked does not matter, but for HEAD and CONNECT.
        self._connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
        self._connection.send(h11.EndOfMessage())
        self.complete = False
        self.extra = False

    def feed(self, data: bytes) -> bytes:
        if self.complete:
            self.extra = True
            return b""
        pieces: list[bytes] = []
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self.complete = True
                    self.extra = bool(self._connection.trailing_data[0])
                    break
                elif event is h11.NEED_DATA:
                    break
        except h11.RemoteProtocolError:
            raise BadAnswer("its body breaks RFC 9112", b"".join(pieces)) from None
        return b"".join(pieces)


DEFAULT_ENGINE: Callable[[], Engine] = HttptoolsEngine if HAVE_HTTPTOOLS else H11Engine


class ResponseParser:
    """One answer. `feed` what arrives; `head` is there once it is whole; `complete` once the body has ended."""

    __slots__ = ("_buffer", "_engine", "_interim", "_left", "_make", "complete", "head")

    def __init__(self, engine: Callable[[], Engine] = DEFAULT_ENGINE) -> None:
        self._make = engine
        self._engine: Engine | None = None
        self._buffer: bytearray | None = None
        self._interim = 0
        self._left = 0
        self.head: ResponseHead | None = None
        self.complete = False

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request."""
        if not self.complete or self.head is None or not self.head.keep_alive:
            return False
        return self._left == 0 if self._engine is None else not self._engine.extra

    @property
    def chunked(self) -> bool:
        """Whether a last chunk ends it, after which the connection may carry another request."""
        return self.head is not None and self.head.framing == "chunked" and self.head.keep_alive

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`, b"" where there are none (yet). Raises BadAnswer as an engine does."""
        if self.head is None:
            return self._feed_head(data)
        engine = self._engine
        if engine is None:
            return self._count(data)
        body = engine.feed(data)
        self.complete = engine.complete
        return body

    def eof(self) -> bool:
        """The connection ended. Whether the body may end so (RFC 9112, 6.3, case 8); if not, it was cut."""
        if self.head is not None and self.head.framing == "close":
            self.complete = True
        return self.complete

    # --- the short way ---------------------------------------------------------------------------------------------------

    def _feed_head(self, data: bytes) -> bytes:
        match = _PLAIN.match(data) if self._buffer is None else None
        if match is None or (end := match.end()) > MAX_HEAD:
            return self._any_head(data)
        if match[1] is not None:
            self._left = int(match[1])
            self.head = ResponseHead(200, data[:end], "length", self._left, True)
            return self._count(data[end:])
        self.head = ResponseHead(200, data[:end], "chunked", None, True)
        self._engine = engine = self._make()
        engine.feed(_CHUNKED)
        return self.feed(data[end:]) if len(data) > end else b""

    def _count(self, data: bytes) -> bytes:
        """Body bytes of an answer of known length. More than that leaves `_left` below zero."""
        self._left = left = self._left - len(data)
        if left > 0:
            return data
        already, self.complete = self.complete, True
        if left == 0:
            return data
        return b"" if already else data[:left]

    # --- the long way ----------------------------------------------------------------------------------------------------

    def _any_head(self, data: bytes) -> bytes:
        if self._buffer is None:
            self._buffer = bytearray()
        buffer = self._buffer
        start = max(0, len(buffer) - 3)
        buffer += data
        while True:
            end = buffer.find(b"\r\n\r\n", start) + 4
            if (end if end >= 4 else len(buffer)) > MAX_HEAD:
                raise BadAnswer("its head is larger than 64 KiB")
            if end < 4:
                if _BARE_LF.search(buffer, start):
                    raise BadAnswer("its head breaks RFC 9112")
                return b""
            head = parse_head(buffer[:end])
            if head.status >= 200:
                self.head = head
                self._engine = self._make()
                self._buffer = None
                return self.feed(bytes(buffer))
            self._interim += 1
            if head.status == 101 or self._interim > MAX_INTERIM:
                raise BadAnswer("an interim answer nobody asked for")
            del buffer[:end]
            start = 0
