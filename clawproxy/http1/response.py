"""Writing responses: one bytes object per write.

Rule 1: the reason phrase comes from a fixed table; nobody hands one in.
Rule 2: a field value with anything but visible ASCII, space and tab is a ValueError (a bug of ours): what clients or
        providers named goes through `escaped` first.
Rule 3: field names are constants of the code.
Rule 4: `lines` are whole field lines, `name: value CRLF`, that need no check: made of numbers, ids of ours and escaped names.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate

PHRASES: dict[int, str] = {
    101: "Switching Protocols", 200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict",
    410: "Gone", 413: "Content Too Large", 414: "URI Too Long", 415: "Unsupported Media Type", 417: "Expectation Failed",
    421: "Misdirected Request", 422: "Unprocessable Content", 426: "Upgrade Required", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported", 529: "Site Overloaded",
}  # fmt: skip
"""RFC 9110, section 15."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
Headers = Iterable[tuple[str, str]]

_BAD_VALUE = re.compile(r"[^\t\x20-\x7e]")
_UNSAFE = re.compile(r"[^A-Za-z0-9._~:/@+-]")
_LINES: dict[int, str] = {status: f"HTTP/1.1 {status} {phrase}\r\n" for status, phrase in PHRASES.items()}


class _Clock:
    """The Date field (RFC 9110, 6.6.1), made once a second."""

    second = 0
    line = ""

    @classmethod
    def date(cls) -> str:
        now = int(time.time())
        if now != cls.second:
            cls.second, cls.line = now, f"date: {formatdate(now, usegmt=True)}\r\n"
        return cls.line


def escaped(text: str, limit: int = 128) -> str:
    """Any text as a field value: percent-encoded UTF-8 but for `A-Za-z0-9._~:/@+-`, at most `limit` characters of it."""
    if _UNSAFE.search(text) is not None:
        text = _UNSAFE.sub(lambda m: "".join(f"%{b:02X}" for b in m[0].encode("utf-8", "replace")), text[:limit])
    return text[:limit]


def pair(first: str, second: str) -> str:
    """`escaped(first)/escaped(second)`; both are mostly plain, which one look tells."""
    text = f"{first}/{second}"
    return text if len(text) <= 128 and _UNSAFE.search(text) is None else f"{escaped(first)}/{escaped(second)}"


def _fields(headers: Headers) -> str:
    text = ""
    for name, value in headers:
        if _BAD_VALUE.search(value) is not None:
            raise ValueError(f"the value of {name} is not visible ASCII")
        text += f"{name}: {value}\r\n"
    return text


def whole(
    status: int,
    headers: Headers,
    body: bytes,
    *,
    lines: str = "",
    content_type: str = "",
    close: bool = False,
    no_body: bool = False,
) -> bytes:
    """A response with its body and its length, ready to write.

    Args:
        content_type: left out where empty.
        no_body: the answer to HEAD: the length is stated, the body is not sent.
    """
    text = _LINES[status] + _Clock.date() + lines + _fields(headers)
    if content_type:
        text += f"content-type: {content_type}\r\n"
    if status not in (204, 304):
        text += f"content-length: {len(body)}\r\n"
    text += "connection: close\r\n\r\n" if close else "\r\n"
    head = text.encode("ascii")
    return head if no_body or status in (204, 304) else head + body


def stream_head(headers: Headers, *, content_type: str, chunked: bool, close: bool, lines: str = "") -> bytes:
    """The head of a 200 whose length nobody knows yet. Without `chunked` (HTTP/1.0) the end of the connection ends the body."""
    text = _LINES[200] + _Clock.date() + lines + _fields(headers) + f"content-type: {content_type}\r\ncache-control: no-cache\r\n"
    if chunked:
        text += "transfer-encoding: chunked\r\n"
    text += "connection: close\r\n\r\n" if close or not chunked else "\r\n"
    return text.encode("ascii")


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112, 7.1). `data` must not be empty: that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
