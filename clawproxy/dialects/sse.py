"""Server-sent events, read as WHATWG HTML 9.2 says (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Rule 1: a line ends with CR LF, LF or CR, and with nothing else. `str.splitlines` splits on eight other characters that may
        stand in JSON, so this file works on bytes and never calls it.
Rule 2: the common case (`data: {...}` LF LF, whole events in a read) costs a few searches in C; the rest may cost more.
Rule 3: what is held back between reads is bounded and looked at once, however small the pieces.
Rule 4: `wire` is what may be passed on for an event: its own bytes where they are nothing but `event` and `data` lines in
        LF form, otherwise the same event written anew. A provider's comments, ids and retry times end here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_EVENT = 4 * 1024 * 1024
"""Bytes of one event, its line ends included."""

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
# Atomic, or a lone CR LF would be read as CR and then LF.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")


class TooLarge(ValueError):
    """An event passed the limit. The decoder is of no more use."""


class ServerEvent(NamedTuple):
    """One block between blank lines.

    Attributes:
        data: the `data` lines joined by LF; None where they hold nothing (a comment, a lone `event` line): no client would be
            told of such a block.
        wire: the bytes that stand for this event, blank line included; b"" where `data` is None.
        name: the `event` field, b"" where absent (a client then sees `message`).
        id: the `id` field of this very block, None where absent.
    """

    data: bytes | None
    wire: bytes
    name: bytes = b""
    id: bytes | None = None


_new = tuple.__new__
"""A NamedTuple's own constructor takes three times as long; this one runs once a token."""


class SSEDecoder:
    """Bytes in, whole events out. `feed` may be given any cut of the stream."""

    __slots__ = ("_held", "_limit", "_searched", "_started")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._held = bytearray()
        self._searched = 0  # no blank line ends before this place in `_held`
        self._started = False
        self._limit = limit

    @property
    def idle(self) -> bool:
        """Nothing is held: what comes next begins an event."""
        return self._started and not self._held

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that are whole now.

        Raises:
            TooLarge: an event, whole or not, is longer than the limit.
        """
        if (
            data[:6] == b"data: "
            and data[-2:] == b"\n\n"
            and data.count(b"\n") == 2
            and b"\r" not in data
            and self._started
            and not self._held
            and 8 < len(data) <= self._limit
        ):
            return [_new(ServerEvent, (data[6:-2], data, b"", None))]  # one read, one event, one line: most streams are only this
        return self._feed(data)

    def _feed(self, data: bytes) -> list[ServerEvent]:
        held = self._held
        held += data
        if not self._started:
            if len(held) < 3 and _BOM.startswith(held):
                return []
            self._started = True
            if held.startswith(_BOM):
                del held[:3]
        end = self._last_blank_line()
        if end == 0:
            if len(held) > self._limit:
                raise TooLarge
            return []
        block = bytes(memoryview(held)[:end])
        del held[:end]
        self._searched = 0
        if len(held) > self._limit:
            raise TooLarge
        if b"\r" in block:
            block = _LINE_END.sub(b"\n", block)
        events = []
        for piece in block.split(b"\n\n"):
            if len(piece) > self._limit:
                raise TooLarge
            if piece[:6] == b"data: " and len(piece) > 6 and b"\n" not in piece:
                events.append(_new(ServerEvent, (piece[6:], piece + b"\n\n", b"", None)))
            elif piece and (event := _parse(piece)) is not None:
                events.append(event)
        return events

    def _last_blank_line(self) -> int:
        """Where the last whole event in `_held` ends; 0 where none does."""
        held = self._held
        start = max(0, self._searched - 3)  # a blank line may have been cut: CR LF CR | LF
        end = 0
        if held.find(b"\r", start) < 0:
            found = held.rfind(b"\n\n", start)
            end = found + 2 if found >= 0 else 0
        else:
            for match in _BLANK_LINE.finditer(held, start):
                end = match.end()
        self._searched = len(held)
        return end

    def close(self) -> bytes:
        """What is left when the stream ends: an event that no blank line ended. WHATWG says to discard it; the caller may know
        better (`data: [DONE]` without a line end is common)."""
        left = bytes(self._held)
        self._held.clear()
        return left


def _parse(block: bytes) -> ServerEvent | None:
    """One block of LF-ended lines, none of them blank but perhaps at either end."""
    name, ident = b"", None
    data: list[bytes] = []
    seen, plain = False, True
    for line in block.split(b"\n"):
        if not line:
            continue
        field, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        else:
            plain = False
            if field == b"id" and b"\0" not in value:
                ident = value
        seen = True
    if not seen:
        return None
    joined = b"\n".join(data)
    if not joined:  # WHATWG: an event with an empty data buffer is not dispatched
        return ServerEvent(None, b"", name, ident)
    wire = block.strip(b"\n") + b"\n\n" if plain else encode_event(joined, name)
    return ServerEvent(joined, wire, name, ident)


def encode_event(data: bytes, name: bytes = b"") -> bytes:
    """One event in LF form. `data` may hold LF; CR must not be in it (JSON never holds either)."""
    lines = b"".join(b"data: " + line + b"\n" for line in data.split(b"\n"))
    return (b"event: " + name + b"\n" if name else b"") + lines + b"\n"
