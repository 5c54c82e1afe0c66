"""The strict check of a chunked body's lines (RFC 9112, 7.1), in front of the engines.

Rule 1: a chunk-size line is hex digits, extensions in their grammar, CRLF: nothing between, no white space.
Rule 2: bounds on everything: a line (4 KiB), chunks (10 000), decoded bytes, trailers (16 KiB), and the raw bytes in
        proportion to the decoded ones, so that framing can not cost more than content.
Rule 3: trailers are checked as fields and dropped, and do not reach an engine (llhttp would read a `Content-Length` there as
        the head's); they never change what the head said.
"""

from __future__ import annotations

import re

from clawproxy.errors import ClawError
from clawproxy.http1.headcheck import AT_ONCE, FIELD_LINE, TOKEN

MAX_LINE = 4 * 1024
MAX_CHUNKS = 10_000
MAX_TRAILERS = 16 * 1024
_RAW_SLACK = 64 * 1024
_RAW_FACTOR = 4

_EXTENSION = rb";" + TOKEN + rb"(?:=(?:" + TOKEN + rb'|"[\t\x20\x21\x23-\x5b\x5d-\x7e]*"))?'
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:" + _EXTENSION + rb")*\r\n")
_TRAILER = re.compile(FIELD_LINE)

_SIZE, _DATA, _DATA_END, _TRAILERS = range(4)


class ChunkCheck:
    """Walks over the raw bytes of one body; any cut of the same bytes gives the same verdict."""

    __slots__ = ("_chunks", "_left", "_limit", "_line", "_raw", "_state", "_trailers", "done", "for_engine", "size")

    def __init__(self, limit: int) -> None:
        """Args: limit: the most decoded bytes."""
        self._limit = limit
        self._state = _SIZE
        self._left = 0
        self._line = b""
        self._chunks = self._raw = self._trailers = 0
        self.size = 0
        """Decoded bytes so far."""
        self.done = False
        self.for_engine = 0
        """How many bytes of the last `feed` came before the trailers; the empty line that ends the body is left out as well."""

    def feed(self, data: bytes) -> int:
        """How many bytes of `data` belong to this body: all of them unless it is `done`.

        Raises:
            ClawError: bad_body, body_too_large.
        """
        at, stop = 0, len(data)
        self.for_engine = 0 if self._state == _TRAILERS else stop
        while at < stop and not self.done:
            if self._state == _DATA:
                step = min(self._left, stop - at)
                at += step
                self._left -= step
                self._raw += step
                self.size += step
                if not self._left:
                    self._state = _DATA_END
            elif self._state == _DATA_END:
                at = self._after_data(data, at)
            else:
                trailers = self._state == _TRAILERS
                at = self._one_line(data, at)
                if self._state == _TRAILERS and not trailers:
                    self.for_engine = at
        return at

    def _after_data(self, data: bytes, at: int) -> int:
        expected = b"\r\n"[len(self._line)]
        if data[at] != expected:
            raise ClawError("bad_body", "A chunk does not end where its size says.")
        self._line += data[at : at + 1]
        if len(self._line) == 2:
            self._line = b""
            self._state = _SIZE
            self._raw += 2
        return at + 1

    def _one_line(self, data: bytes, at: int) -> int:
        newline = data.find(b"\n", at)
        end = len(data) if newline < 0 else newline + 1
        held = len(self._line)
        line = self._line + data[at:end] if held else data[at:end]
        if len(line) > MAX_LINE:
            raise ClawError("bad_body", "A line of the chunked framing is longer than 4 KiB.")
        if AT_ONCE.search(line, max(0, held - 1)) is not None and line not in (b"\r", b"\r\n"):
            raise ClawError("bad_body", "The chunked framing holds a bare LF, a bare CR or a control character.")
        if newline < 0:
            self._line = line
            return end
        self._line = b""
        if self._state == _SIZE:
            self._size_line(line)
        else:
            self._trailer_line(line)
        return end

    def _size_line(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise ClawError("bad_body", "A chunk-size line breaks RFC 9112, 7.1.")
        size = int(match[1], 16)
        self._raw += len(line)
        if not size:
            self._state = _TRAILERS
            return
        self._chunks += 1
        if size > self._limit - self.size or self._chunks > MAX_CHUNKS:
            raise ClawError("body_too_large")
        if self._raw > _RAW_SLACK + _RAW_FACTOR * (self.size + size):
            raise ClawError("bad_body", "The chunked framing is larger than what it frames.")
        self._left = size
        self._state = _DATA

    def _trailer_line(self, line: bytes) -> None:
        if line == b"\r\n":
            self.done = True
            return
        self._trailers += len(line)
        if self._trailers > MAX_TRAILERS or _TRAILER.fullmatch(line) is None:
            raise ClawError("bad_body", "The trailers of the body are too large or not `name: value`.")
