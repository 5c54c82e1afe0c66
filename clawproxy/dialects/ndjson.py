"""Newline-delimited JSON, one document a line (https://github.com/ndjson/ndjson-spec), as bytes.

Rule 1: a line ends with LF; a CR before it belongs to the end, not to the line. JSON holds neither outside its escapes, so
        nothing else is looked at. Blank lines are skipped.
Rule 2: what is held back between reads is bounded and looked at once, however small the pieces.
Rule 3: lines that were whole before one that is too long are given all the same (`TooLarge.lines`), so that an answer is the same
        however it was cut.
"""

from __future__ import annotations

MAX_LINE = 4 * 1024 * 1024
"""Bytes of one line, its CR included."""


class TooLarge(ValueError):
    """A line passed the limit. The decoder is of no more use."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        """What was whole before it."""
        super().__init__("a line is too long")


class NDJSONDecoder:
    """Bytes in, whole lines out. `feed` may be given any cut of the stream."""

    __slots__ = ("_held", "_limit")

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._held = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, without their ends.

        Raises:
            TooLarge: a line, whole or not, is longer than the limit.
        """
        end = data.rfind(b"\n") + 1
        held = self._held
        if not end:
            held += data
            self._check(len(held), [])
            return []
        block = bytes(held) + data[:end] if held else data[:end]
        held.clear()
        held += data[end:]
        lines: list[bytes] = []
        for piece in block.split(b"\n"):
            self._check(len(piece), lines)
            line = piece.rstrip(b"\r \t")
            if line:
                lines.append(line)
        self._check(len(held), lines)
        return lines

    def _check(self, size: int, lines: list[bytes]) -> None:
        if size > self._limit:
            raise TooLarge(lines)

    def close(self) -> bytes:
        """The last line, where the stream ended without its LF; b"" where nothing is left."""
        left = bytes(self._held).rstrip(b"\r \t")
        self._held.clear()
        return left
