"""Ledger records as rows and as journal lines. No I/O.

A journal line is `CRC KIND JSON LF` without the spaces: eight hex digits of CRC-32 over what follows them, `o` (opened) or
`c` (closed), and a JSON array of the record's fields in their order. JSON escapes LF, so a line is one line; a line without its
LF, or with a wrong CRC, was torn by a crash. Where an attempt holds something of an account, a TAB follows (which JSON escapes,
too) and an array of entries: what is held (`o`), what is held in addition (`t`, whose record is the id alone), what is charged
at the end (`c`, and whatever was held is let go). Without one, a line has neither.

Rule 1: fields are only ever added at the end of `LedgerOpen` and `LedgerClose`, so that an older journal still reads.
Rule 2: what is written can be folded: integers fit SQLite's and can not overflow its sums, texts are bounded valid UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from clawproxy.stores.base import LedgerClose, LedgerOpen, Unit, Window

OPEN_FIELDS: tuple[str, ...] = LedgerOpen.__struct_fields__
CLOSE_FIELDS: tuple[str, ...] = LedgerClose.__struct_fields__

MAX_TEXT = 512
"""Characters of one text field that are kept: a client may name a model with a megabyte."""
MAX_TOKENS = 2**40
MAX_NANO = 2**53
_INFINITE = float("inf")
_LONG = 4096
"""Bytes of a line beyond which its texts are looked at."""

Values = tuple[Any, ...]


class Entry(Struct, frozen=True, array_like=True, gc=False):
    """What a line says of an account: as JSON an array. Of a hold `amount` is held, of a charge it is charged."""

    scope: str
    unit: Unit
    window: Window
    sliding: bool
    period: int
    """When the window began it counts in, or the part of a sliding one."""
    amount: int
    overrun: int = 0


class Line(NamedTuple):
    """A line, read."""

    kind: str
    """`o`, `c` or `t`."""
    values: Values
    entries: Sequence[Entry] | None = None
    """None where there is no such part."""


Record = TypeVar("Record", LedgerOpen, LedgerClose)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[Any, ...]).decode
_decode_entries = msgspec.json.Decoder(list[Entry]).decode

_OPEN_INTS = frozenset(map(OPEN_FIELDS.index, ("number", "generation", "reserved_input", "reserved_output", "reserved_nano")))
_RESERVED = OPEN_FIELDS.index("reserved_nano")
_CLASSES = tuple(name for name in CLOSE_FIELDS if name.endswith("_tokens"))
_CLOSE_INTS = frozenset(map(CLOSE_FIELDS.index, (*_CLASSES, "cost_nano")))
_COST = CLOSE_FIELDS.index("cost_nano")


def open_record(row: LedgerOpen, entries: Sequence[Entry] | None = None) -> tuple[LedgerOpen, bytes]:
    """The row as its line reads back (rule 2), nearly always itself, and the line."""
    asked, cost = row.reserved_output, row.reserved_nano
    if (
        0 <= row.reserved_input <= MAX_TOKENS
        and (asked is None or 0 <= asked <= MAX_TOKENS)
        and (cost is None or 0 <= cost <= MAX_NANO)
        and 0 <= row.number <= MAX_TOKENS
        and 0 <= row.generation <= MAX_TOKENS
        and -_INFINITE < row.opened < _INFINITE
    ):
        return _record(b"o", row, entries)
    return _read_back(_record(b"o", _clamped(row, _OPEN_INTS, _RESERVED), entries))


def close_record(row: LedgerClose, entries: Sequence[Entry] | None = None) -> tuple[LedgerClose, bytes]:
    """The same of a closing."""
    given, taken, cost = row.input_tokens, row.output_tokens, row.cost_nano
    if (
        (given is None or 0 <= given <= MAX_TOKENS)
        and (taken is None or 0 <= taken <= MAX_TOKENS)
        and (cost is None or 0 <= cost <= MAX_NANO)
        and -_INFINITE < row.closed < _INFINITE
        and ((count := row.cached_tokens) is None or 0 <= count <= MAX_TOKENS)
        and ((count := row.reasoning_tokens) is None or 0 <= count <= MAX_TOKENS)
        and ((count := row.cache_write_tokens) is None or 0 <= count <= MAX_TOKENS)
        and ((count := row.cache_write_1h_tokens) is None or 0 <= count <= MAX_TOKENS)
        and ((count := row.cached_audio_tokens) is None or 0 <= count <= MAX_TOKENS)
        and ((count := row.audio_input_tokens) is None or 0 <= count <= MAX_TOKENS)
        and ((count := row.audio_output_tokens) is None or 0 <= count <= MAX_TOKENS)
        and ((count := row.image_input_tokens) is None or 0 <= count <= MAX_TOKENS)
        and ((count := row.image_output_tokens) is None or 0 <= count <= MAX_TOKENS)
    ):  # one by one: a loop over them takes twice as long
        return _record(b"c", row, entries)
    return _read_back(_record(b"c", _clamped(row, _CLOSE_INTS, _COST), entries))


def top_up_line(id_: str, entries: Sequence[Entry]) -> bytes:
    body = b"t%b\t%b" % (_encode((id_,)), _encode(entries))
    return b"%08x%b\n" % (crc32(body), body)


def open_line(row: LedgerOpen) -> bytes:
    return open_record(row)[1]


def close_line(row: LedgerClose) -> bytes:
    return close_record(row)[1]


def _record(kind: bytes, row: Record, entries: Sequence[Entry] | None) -> tuple[Record, bytes]:
    try:
        body = kind + _encode(row)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can carry and UTF-8 can not
        row = _bounded(row)
        body = kind + _encode(row)
    if len(body) > _LONG:
        row = _bounded(row)
        body = kind + _encode(row)
    if entries is not None:
        body += b"\t" + _encode(entries)
    return row, b"%08x%b\n" % (crc32(body), body)


def _read_back(record: tuple[Record, bytes]) -> tuple[Record, bytes]:
    """What JSON can not say it leaves out (an infinity), or says otherwise."""
    row, line = record
    values: list[Any] = list(_decode(line[9:-1].partition(b"\t")[0]))
    return type(row)(*values), line


def _clamped(row: Record, ints: frozenset[int], cost: int = -1) -> Record:
    out: list[Any] = list(astuple(row))
    for index in ints:
        if out[index] is not None:
            most = MAX_NANO if index == cost else MAX_TOKENS
            out[index] = max(0, min(int(out[index]), most))
    return type(row)(*out)


def _bounded(row: Record) -> Record:
    values: list[Any] = [
        value[:MAX_TEXT].encode("utf-8", "replace").decode() if isinstance(value, str) else value for value in astuple(row)
    ]
    return type(row)(*values)


_NAMES = {b"o": OPEN_FIELDS, b"c": CLOSE_FIELDS, b"t": ("id",)}


def read_line(line: bytes) -> Line | None:
    """A line without its LF; its values are padded with None to today's fields. None where it is torn or was damaged."""
    try:
        if int(line[:8], 16) != crc32(line[8:]):
            return None
        record, tab, rest = line[9:].partition(b"\t")
        values, entries = _decode(record), _decode_entries(rest) if tab else None
    except (ValueError, msgspec.MsgspecError):
        return None
    kind = line[8:9]
    names = _NAMES.get(kind)
    if names is None or not values or type(values[0]) is not str:
        return None
    values = values[: len(names)] + (None,) * (len(names) - len(values))
    return Line(kind.decode(), values, entries)


def read_lines(lines: Iterable[bytes]) -> tuple[list[Line], int]:
    """The readable records of whole lines, and how many lines were not readable."""
    records: list[Line] = []
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
