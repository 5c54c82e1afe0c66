"""Requests out of bytes, HTTP/1.1, without I/O; strict, because what a gateway under test writes is on trial too.

Rule 1: RFC 9112 to the letter for framing: CRLF only, one Content-Length of digits, or Transfer-Encoding `chunked`, never both.
Rule 2: it keeps whatever has not been asked for yet; `limit` bounds a body, `HEAD_LIMIT` a head.
"""

from __future__ import annotations

import re

from attrs import frozen

HEAD_LIMIT = 64 * 1024

_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*")
_TARGET = re.compile(rb"[!-~]+")


class Malformed(Exception):
    """What came is no HTTP/1.1 request. `status` is how to answer; the connection ends with it."""

    def __init__(self, problem: str, status: int = 400) -> None:
        self.status = status
        super().__init__(problem)


@frozen(slots=True)
class Request:
    """`headers`: names as written, values as latin-1, in order. `path` is the target before any `?`."""

    method: str
    target: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    keep_alive: bool


@frozen(slots=True)
class _Head:
    method: str
    target: str
    headers: list[tuple[str, str]]
    length: int
    chunked: bool
    keep_alive: bool
    expects: bool


class RequestReader:
    """`feed` bytes, take `next` requests."""

    def __init__(self, limit: int = 64 * 1024 * 1024) -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._head: _Head | None = None
        self._body = bytearray()

    @property
    def pending(self) -> int:
        """Bytes held that no request has taken yet."""
        return len(self._buffer) + len(self._body)

    @property
    def started(self) -> bool:
        """Whether a request has begun to arrive."""
        return self._head is not None or bool(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def expects_continue(self) -> bool:
        """True once for each head that asks for `100 Continue` before its body."""
        if self._head is None or not self._head.expects or self._buffer:
            return False
        head = self._head
        self._head = _Head(head.method, head.target, head.headers, head.length, head.chunked, head.keep_alive, False)
        return True

    def next(self) -> Request | None:
        """The next whole request, None while more bytes are needed. Raises Malformed."""
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0 and len(self._buffer) <= HEAD_LIMIT:
                return None
            if end < 0 or end > HEAD_LIMIT:
                raise Malformed("the request head is larger than 64 KiB", 431)
            self._head = _parse(bytes(self._buffer[:end]), self._limit)
            del self._buffer[: end + 4]
        head = self._head
        body = self._chunks() if head.chunked else self._sized(head.length)
        if body is None:
            return None
        self._head = None
        return Request(head.method, head.target, head.target.partition("?")[0], head.headers, body, head.keep_alive)

    def _sized(self, length: int) -> bytes | None:
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _chunks(self) -> bytes | None:
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > 1024:
                    raise Malformed("a chunk's size line is too long")
                return None
            size_text = bytes(self._buffer[:end]).partition(b";")[0].rstrip(b" \t")
            if re.fullmatch(rb"[0-9a-fA-F]{1,15}", size_text) is None:
                raise Malformed("a chunk's size is not hexadecimal")
            size = int(size_text, 16)
            if len(self._body) + size > self._limit:
                raise Malformed("the body is too large", 413)
            if len(self._buffer) < end + 2 + size + 2:
                return None
            if self._buffer[end + 2 + size : end + 4 + size] != b"\r\n":
                raise Malformed("a chunk does not end where it should, or trailers came")
            self._body += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 4 + size]
            if size == 0:
                body = bytes(self._body)
                self._body.clear()
                return body


def _parse(data: bytes, limit: int) -> _Head:
    first, *lines = data.split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or not _METHOD.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise Malformed("the request line is not METHOD TARGET VERSION")
    if parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Malformed("the version is not HTTP/1.1", 505)
    headers: list[tuple[str, str]] = []
    lengths: list[str] = []
    codings: list[str] = []
    connection, hosts, expects = "", 0, False
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            raise Malformed("a header line is not NAME: VALUE")
        name, value = match[1].decode("ascii"), match[2].decode("latin-1")
        headers.append((name, value))
        lower = name.lower()
        if lower == "content-length":
            lengths.append(value)
        elif lower == "transfer-encoding":
            codings.append(value.lower())
        elif lower == "connection":
            connection = value.lower()
        elif lower == "host":
            hosts += 1
        elif lower == "expect":
            expects = value.lower() == "100-continue"
    if hosts != 1 and parts[2] == b"HTTP/1.1":
        raise Malformed("there is not exactly one Host header")
    if codings and (codings != ["chunked"] or lengths):
        raise Malformed("the body is framed in more than one way, or not as chunked")
    if len(lengths) > 1 or (lengths and re.fullmatch("[0-9]{1,15}", lengths[0]) is None):
        raise Malformed("Content-Length is not one number")
    length = int(lengths[0]) if lengths else 0
    if length > limit:
        raise Malformed("the body is too large", 413)
    options = [option.strip() for option in connection.split(",")]
    keep_alive = "close" not in options and (parts[2] == b"HTTP/1.1" or "keep-alive" in options)
    return _Head(parts[0].decode(), parts[1].decode(), headers, length, bool(codings), keep_alive, expects)
