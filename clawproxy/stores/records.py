"""Ledger records as rows and as journal lines. No I/O.

A journal line is `CRC KIND JSON LF` without the spaces: eight hex digits of CRC-32 over what follows them, `o` (opened) or
`c` (closed), and a JSON array of the record's fields in their order. JSON escapes LF, so a line is one line; a line without its
LF, or with a wrong CRC, was torn by a crash.

Rule 1: fields are only ever added at the end of `LedgerOpen` and `LedgerClose`, so that an older journal still reads.
Rule 2: what is written can be folded: integers fit SQLite's and can not overflow its sums, texts are bounded valid UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any
from zlib import crc32

import attrs
import msgspec

from clawproxy.stores.base import LedgerClose, LedgerOpen

OPEN_FIELDS: tuple[str, ...] = tuple(field.name for field in attrs.fields(LedgerOpen))
CLOSE_FIELDS: tuple[str, ...] = tuple(field.name for field in attrs.fields(LedgerClose))

MAX_TEXT = 512
"""Characters of one text field that are kept: a client may name a model with a megabyte."""
MAX_TOKENS = 2**40
MAX_NANO = 2**53
_LONG = 4096
"""Bytes of a line beyond which its texts are looked at."""

Values = tuple[Any, ...]

_open_values = attrgetter(*OPEN_FIELDS)
_close_values = attrgetter(*CLOSE_FIELDS)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[Any, ...]).decode

_OPEN_INTS = frozenset(map(OPEN_FIELDS.index, ("number", "generation", "reserved_input", "reserved_output")))
_CLOSE_INTS = frozenset(
    map(CLOSE_FIELDS.index, ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost_nano"))
)
_COST = CLOSE_FIELDS.index("cost_nano")


def open_line(row: LedgerOpen) -> bytes:
    return _line(b"o", _open_values(row), _OPEN_INTS)


def close_line(row: LedgerClose) -> bytes:
    return _line(b"c", _close_values(row), _CLOSE_INTS)


def _line(kind: bytes, values: Values, ints: frozenset[int]) -> bytes:
    for index in ints:
        value = values[index]
        if value is not None and not 0 <= value <= MAX_TOKENS:
            values = _clamped(kind, values, ints)
            break
    try:
        body = kind + _encode(values)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can carry and UTF-8 can not
        body = kind + _encode(_bounded(values))
    if len(body) > _LONG:
        body = kind + _encode(_bounded(values))
    return b"%08x%b\n" % (crc32(body), body)


def _clamped(kind: bytes, values: Values, ints: frozenset[int]) -> Values:
    out = list(values)
    for index in ints:
        if out[index] is not None:
            most = MAX_NANO if kind == b"c" and index == _COST else MAX_TOKENS
            out[index] = max(0, min(int(out[index]), most))
    return tuple(out)


def _bounded(values: Values) -> Values:
    return tuple(value[:MAX_TEXT].encode("utf-8", "replace").decode() if isinstance(value, str) else value for value in values)


def read_line(line: bytes) -> tuple[str, Values] | None:
    """A line without its LF: its kind (`o` or `c`) and its values, padded with None to today's fields. None where it is torn
    or was damaged."""
    try:
        if int(line[:8], 16) != crc32(line[8:]):
            return None
        kind, values = line[8:9], _decode(line[9:])
    except (ValueError, msgspec.MsgspecError):
        return None
    names = {b"o": OPEN_FIELDS, b"c": CLOSE_FIELDS}.get(kind)
    if names is None or not values or type(values[0]) is not str:
        return None
    values = values[: len(names)] + (None,) * (len(names) - len(values))
    return kind.decode(), values


def read_lines(lines: Iterable[bytes]) -> tuple[list[tuple[str, Values]], int]:
    """The readable records of whole lines, and how many lines were not readable."""
    records: list[tuple[str, Values]] = []
    broken = 0
    for line in lines:
        if not line:  # a writer ends a torn line with an LF of its own
            continue
        record = read_line(line)
        if record is None:
            broken += 1
        else:
            records.append(record)
    return records, broken
