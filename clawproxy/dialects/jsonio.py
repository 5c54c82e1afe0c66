"""JSON in and out: RFC 8259, strict, bounded before the parser sees it.

Rule 1: one pass over the bytes outside strings bounds nesting, the number of values and the size of integers; only then does
        the parser run. C parsers recurse (orjson #458, msgspec #1033), and a million empty arrays cost more than they weigh.
Rule 2: what is decoded can be encoded again: integers fit 64 bits, strings hold no lone surrogate, there is no NaN.
Rule 3: an error says where (line, column, byte), never what: the text is somebody's.

Why the pass may trust itself: it agrees with the parser on every prefix that is valid JSON, and a parser stops where the
document stops being valid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import msgspec

from clawproxy.errors import ClawError

encode = msgspec.json.encode

MAX_VALUES = 131_072
"""Separators (commas outside strings) and containers in one document: a chat of 40,000 messages fits."""

_NOT_BRACKETS = bytes(b for b in range(256) if b not in b"[]{}")
_STEPS = bytes({0x5B: 1, 0x7B: 1, 0x5D: 255, 0x7D: 255}.get(b, 0) for b in range(256))  # as signed bytes: +1, -1
_LONG_INTEGER = re.compile(rb"(?<![0-9.])[0-9]{19,}(?![0-9.eE])")
_LONG_STRINGS = 4096
"""Bytes a string has on the average, from which on a document is walked through string by string."""
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_PLACE = re.compile(r"\(byte (\d+)\)")


def decode(data: bytes, *, depth: int = 64, values: int = MAX_VALUES) -> Any:
    """Decode one JSON document. Of duplicate keys the last counts.

    Raises:
        ClawError: `json_too_deep`; `invalid_json` with the place (also for what RFC 8259 allows but nobody can use: lone
            surrogates, NUL in a key, integers beyond 64 bits); `invalid_request` where it holds too many values.
    """
    if not _is_small(data, depth, values):
        _measure(data, depth, values)
    try:
        document = msgspec.json.decode(data)
    except UnicodeDecodeError:
        raise ClawError("invalid_json", _at(data, _first_bad_byte(data), "this is not UTF-8")) from None
    except RecursionError:  # only where `depth` was set beyond the interpreter's own limit
        raise ClawError("json_too_deep") from None
    except (msgspec.DecodeError, ValueError) as error:
        place = _PLACE.search(str(error))
        raise ClawError("invalid_json", _at(data, int(place[1])) if place else None) from None
    if b"\\u0000" in data and any("\0" in key for key in _keys(document)):
        raise ClawError("invalid_json", "The body is not valid JSON for this gateway: a key holds U+0000.")
    return document


def _is_small(data: bytes, depth: int, values: int) -> bool:
    """Whether `_measure` has nothing to refuse, whatever in `data` is a string and what is not: 0.7 us where it takes 2.5."""
    return len(data) <= values and data.count(b"[") + data.count(b"{") <= depth and b"0" * 19 not in data.translate(_ZEROS)


def _measure(data: bytes, depth: int, values: int) -> None:
    """Refuse what nests too deep, holds too many values or an integer beyond 64 bits. Linear, in C but for a few calls."""
    outside = data
    if b"\\" in outside:  # pairs first, so that the quote of `\\"` stays what it is: the end of a string
        outside = outside.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = outside.count(b'"')
    if quotes > 4 * (values + 1):  # each value brings two strings at most: itself and its key
        raise ClawError("invalid_request", f"The JSON holds more than {values} values.")
    long = len(outside) > _LONG_STRINGS * (quotes + 1)
    outside = b"".join(_between(outside) if long else outside.split(b'"')[::2])
    opened = outside.count(b"[") + outside.count(b"{")
    if opened > depth:
        # Beyond the bound on containers the rest need not be looked at: it is refused either way.
        steps = outside.translate(_STEPS, _NOT_BRACKETS)[: 2 * values]
        if max(accumulate(memoryview(steps).cast("b")), default=0) > depth:
            raise ClawError("json_too_deep", None if depth == 64 else f"The JSON is nested deeper than {depth} levels.")
    if opened + outside.count(b",") > values:
        raise ClawError("invalid_request", f"The JSON holds more than {values} values.")
    for match in _LONG_INTEGER.finditer(outside):
        digits = match[0]
        negative = outside[match.start() - 1 : match.start()] == b"-"
        if len(digits) > 20 or int(digits) > (2**63 if negative else 2**64 - 1):
            raise ClawError("invalid_json", "The body is not valid JSON for this gateway: an integer does not fit 64 bits.")


def _between(data: bytes) -> Iterator[bytes]:
    """What stands outside of strings, and no copy of what stands in them: pictures are megabytes."""
    begin = 0
    while (end := data.find(b'"', begin)) >= 0:
        yield data[begin:end]
        begin = data.find(b'"', end + 1) + 1
        if not begin:
            return
    yield data[begin:]


def _keys(document: Any) -> Iterator[str]:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _first_bad_byte(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0  # pragma: no cover - only called where decoding fails


def _at(data: bytes, place: int, what: str = "it breaks") -> str:
    """`The body is not valid JSON (RFC 8259, UTF-8): it breaks at line 3, column 7 (byte 52).` Columns count bytes, from 1."""
    before = data[:place]
    line = before.count(b"\n") + 1
    column = place - before.rfind(b"\n")
    return f"The body is not valid JSON (RFC 8259, UTF-8): {what} at line {line}, column {column} (byte {place})."
