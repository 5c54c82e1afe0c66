"""The same redaction over text that comes in pieces.

Rule 1: however a text is cut, what comes out, joined, is what `Scanner.redact` makes of the whole.
        But for openings: the letters that all secrets of a format begin with (`sk-`, `https://name:`) go on at once, and may
        stand before what replaces the rest. They stay in sight, so that a secret is known wherever it is cut.
Rule 2: other text is held only while it may be the beginning of a match; at most `BOUND` bytes of it. A longer match is replaced
        at the bound, and what goes on like it is dropped; a longer beginning that is no match yet is let go.
Rule 3: a short piece is held whole, so that an event stays one event; a long one is cut where the doubt begins.
"""

from __future__ import annotations

import re
from collections import deque

from clawproxy.context import Scanned
from clawproxy_sanitize.scanner import Match, Scanner, decode, encode, noted, width

BOUND = 8192
SHORT = 64
LONG = 512
"""From this many bytes held, new ones are looked at an eighth more at a time: else a long key would be read again for each
token of it."""
LEAK = 12
"""Characters of an unfinished secret that must not be let go together."""
_WIDEST = 4
"""Bytes of a character at most."""
_LIKE_A_KEY = re.compile(r"[A-Za-z0-9+/=_-]*")
_LIKE_A_BLOCK = re.compile(r"[A-Za-z0-9+/=_.\\\s-]*")


class Window:
    """One text. `buffer` is what is not finished, and of what is, as much as a match may begin in and one character more; of it,
    the first `out` bytes have been given out already, and a match may begin from `scan` on."""

    __slots__ = ("_buffer", "_counts", "_dropping", "_out", "_scan", "_scanned", "_scanner", "_sizes", "_wait")

    def __init__(self, scanner: Scanner, counts: dict[str, int], scanned: Scanned | None = None) -> None:
        self._scanner = scanner
        self._scanned = scanned or Scanned()
        self._counts = counts
        self._buffer = b""
        self._out = 0
        self._scan = 0
        self._sizes: deque[int] = deque()
        """Bytes of each piece not yet given out."""
        self._dropping: re.Pattern[str] | None = None
        self._wait = 0
        """The buffer's length from which it is looked at again."""

    @property
    def held(self) -> int:
        """Bytes held back."""
        return len(self._buffer) - self._out

    def passes(self, text: str) -> bool:
        """Whether nothing is held and `text` may go on just as it is; then it is taken in. Else nothing has happened."""
        buffer = self._buffer
        if self._dropping is not None or len(buffer) != self._out:
            return False
        data = encode(text)
        whole = buffer + data
        if not self._scanner.is_clean(whole):
            return False
        if data:
            self._scanned.answer_bytes += len(data)
            size = len(whole)
            start = size - self._scanner.context - _WIDEST
            if start > 0:
                self._buffer = whole[start:]
                self._scan = max(_WIDEST, self._scan - start)
                self._out = size - start
            else:
                self._buffer = whole
                self._out = size
        return True

    def feed(self, text: str) -> list[str] | None:
        """The next piece in; the pieces to pass on now. None: this piece, just as it is. Raises Refusal."""
        if self.passes(text):
            return None
        if not text.isascii():
            clean = self._scanner.unhidden(text, decode(self._buffer[_before(self._buffer, len(self._buffer)) :]), self._counts)
            if clean is not text:
                if not clean:
                    return []
                text = clean
        data = encode(text)
        self._scanned.answer_bytes += len(data)
        if self._dropping is not None:
            match = self._dropping.match(text)
            data = encode(text[match.end() :]) if match is not None else data
            if not data:
                return []
            self._dropping = None
        if data:
            self._buffer += data
            self._sizes.append(len(data))
        if len(self._buffer) < self._wait:
            return []
        out: list[str] = []
        self._advance(out, last=False)
        return out

    def finish(self) -> list[str]:
        """The text is over: what was held, redacted."""
        out: list[str] = []
        self._advance(out, last=True)
        return out

    def interrupt(self) -> list[str]:
        """Another text goes on instead: what was held, redacted. Should this one go on all the same, a secret begun here is
        still known: its beginning was let go only while shorter than `LEAK`."""
        out: list[str] = []
        place = self._matches(out)
        begun = self._scanner.waits(self._buffer, place)
        if begun is None:
            self._give(len(self._buffer), out)
            dropping = _LIKE_A_KEY if place == len(self._buffer) and place > self._scan else None
            self._keep(place, len(self._buffer))
            self._dropping = dropping
        elif (shown := self._scanner.shows(self._buffer, begun, LEAK)) is not None:
            self._give(shown, out)
            self._counts["unfinished"] = self._counts.get("unfinished", 0) + 1
            end = len(self._buffer)
            self._replace(end, b"[redacted:unfinished]", out)
            self._keep(end, end)
            self._dropping = _LIKE_A_KEY
        else:
            self._give(len(self._buffer), out)
            self._keep(place, begun)
        return out

    # --- what happens to the buffer --------------------------------------------------------------------------------------

    def _advance(self, out: list[str], *, last: bool) -> None:
        buffer, scanner = self._buffer, self._scanner
        place = search = self._scan
        while True:
            found = scanner.find(buffer, search)
            begun = None if last else scanner.waits(buffer, search)
            if found is not None and (begun is None or begun > found):
                match = scanner.match(buffer, found)
                if match is None:
                    search = found + width(buffer, found)
                else:
                    place = search = self._take(match, out)
            elif begun is None:
                self._give(len(buffer), out)
                self._keep(place, len(buffer))
                return
            elif len(buffer) - begun <= BOUND:
                self._give(self._cut(begun), out)
                self._keep(place, begun)
                return
            else:
                match = scanner.match(buffer, begun)
                place = search = begun + width(buffer, begun) if match is None else self._take(match, out)
                if match is not None and place == len(buffer):
                    self._keep(place, place)
                    self._dropping = _LIKE_A_BLOCK
                    return

    def _matches(self, out: list[str]) -> int:
        """Take every match there is; returns where the last one ended."""
        place = search = self._scan
        while (found := self._scanner.find(self._buffer, search)) is not None:
            match = self._scanner.match(self._buffer, found)
            if match is None:
                search = found + width(self._buffer, found)
            else:
                place = search = self._take(match, out)
        return place

    def _take(self, match: Match, out: list[str]) -> int:
        noted(match.rule, self._counts)
        if match.rule.action == "flag":
            self._give(match.end, out)
        else:
            self._give(match.start, out)
            self._replace(match.end, match.rule.replaced(self._buffer[match.start : match.end]), out)
        return match.end

    def _give(self, end: int, out: list[str]) -> None:
        """Pass on the buffer up to `end`, as the pieces it came in."""
        while self._out < end:
            size = min(self._sizes[0], end - self._out)
            out.append(decode(self._buffer[self._out : self._out + size]))
            self._consume(size)

    def _replace(self, end: int, replacement: bytes, out: list[str]) -> None:
        out.append(decode(replacement))
        while self._out < end:
            self._consume(min(self._sizes[0], end - self._out))

    def _consume(self, size: int) -> None:
        self._out += size
        if self._sizes[0] == size:
            self._sizes.popleft()
        else:
            self._sizes[0] -= size

    def _cut(self, begun: int) -> int:
        """Where to stop giving out, when a match may begin at `begun`."""
        start = self._out
        for size in self._sizes:
            if start + size > begun:
                return start if size <= SHORT else begun
            start += size
        return begun

    def _keep(self, place: int, begun: int) -> None:
        """Keep what is held, what an opening may stand in, and one character before.

        Args:
            place: where the last match ended.
            begun: where what must wait begins; the buffer's end where nothing does.
        """
        buffer = self._buffer
        scan = max(place, min(begun, len(buffer) - self._scanner.context))
        start = min(_before(buffer, scan), self._out)
        self._buffer = buffer[start:]
        self._out -= start
        self._scan = scan - start
        held = self.held
        self._wait = len(self._buffer) + (held >> 3) if held > LONG else 0


def _before(data: bytes, place: int) -> int:
    """Where the character before `place` begins; 0 at the start."""
    place = max(0, place - 1)
    while place and data[place] & 0xC0 == 0x80:
        place -= 1
    return place
