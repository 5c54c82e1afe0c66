"""The last good head of a connection, to recognise the next one by.

A client that keeps its connection sends the same head again and again; what changes is the length of the body, and often an id of
the request's own. A head that is byte for byte one that passed the strict check and both readings, but for those, needs neither
again (0.6 us instead of 20-60, 1.5 where an id changes).

Rule 1: only the plain case is known: POST, HTTP/1.1, a body with a length that is not zero, no `Expect`, no `Upgrade`.
Rule 2: nothing is decided here: `recognise` gives the very `Head` that `parse_head` would give, or nothing.
Rule 3: what may vary stands in `VARYING`; nobody decides anything by those fields, and here their values are visible ASCII.
"""

from __future__ import annotations

import re

from clawproxy.http1.head import Head

LARGEST = 8 * 1024
"""Bytes of a head worth keeping as long as its connection lives."""
VARYING = ("x-request-id", "x-client-request-id", "traceparent", "x-stainless-retry-count")
# No zero, no leading zero, and far from any integer's bound: what else a length may be, the full check says.
_DIGITS = re.compile(rb"[1-9][0-9]{0,14}")
_VARIES = re.compile(rb"\r\n((?i:" + "|".join(VARYING).encode() + rb")): ?([\x21-\x7e]{1,128})(?=\r\n)")


_WORD = re.compile(rb"[\x21-\x7e]{1,128}")


class KnownHead:
    """One head, whole and checked."""

    __slots__ = ("_after", "_pieces", "_said", "head", "varied")

    def __init__(self, head: Head, before: bytes, after: bytes) -> None:
        self.head = head
        """The head as it was recognised last."""
        self.varied = False
        """Whether it then differed from the one before in more than its length."""
        whole = before + b"0" + after
        marks = [(len(before), len(before) + 1, "content-length", _DIGITS)]
        for match in _VARIES.finditer(whole):
            name = match[1].decode().lower()
            if sum(name == field[0] for field in head.headers) == 1:
                marks.append((match.start(2), match.end(2), name, _WORD))
        place = 0
        pieces: list[tuple[bytes, str, re.Pattern[bytes]]] = []
        for start, end, name, pattern in sorted(marks, key=lambda mark: mark[0]):
            pieces.append((whole[place:start], name, pattern))
            place = end
        self._pieces = tuple(pieces)
        """What stands before each value that may vary, its field, and what it may be. No pattern is made for a head: compiling
        one takes milliseconds, and each connection brings its own."""
        self._after = whole[place:]
        self._said: list[bytes] = []

    @classmethod
    def of(cls, raw: bytes, head: Head) -> KnownHead | None:
        """Args: raw: the bytes from which `parse_head` made `head`. None where it is not the plain case."""
        length = head.content_length
        if not length or head.method != "POST" or head.version != "1.1" or len(raw) > LARGEST:
            return None
        if head.get("expect") is not None or head.get("upgrade") is not None:
            return None
        digits = b"%d" % length
        at = raw.index(digits, raw.lower().index(b"\r\ncontent-length:"))
        made = cls(head, raw[:at], raw[at + len(digits) :])
        made.recognise(raw)
        made.varied = False
        return made

    def recognise(self, data: bytes) -> int:
        """Where the head ends that `data` begins with, and `head` is that head then; 0 where it is another, or not whole."""
        place, said = 0, []
        for before, _, pattern in self._pieces:
            if not data.startswith(before, place):
                return 0
            match = pattern.match(data, place + len(before))
            if match is None:
                return 0
            said.append(match[0])
            place = match.end()
        if not data.startswith(self._after, place):
            return 0
        if said == self._said:
            self.varied = False
        else:
            self._become(said)
        return place + len(self._after)

    def _become(self, said: list[bytes]) -> None:
        changed = {name: value.decode("ascii") for (_, name, _), value in zip(self._pieces, said, strict=True)}
        length, old = int(changed["content-length"]), self.head
        headers = tuple([field if field[0] not in changed else (field[0], changed[field[0]]) for field in old.headers])
        self.varied = any(
            now != was and name != "content-length"
            for (_, name, _), now, was in zip(self._pieces, said, self._said, strict=False)
        )
        self._said = said
        if headers != old.headers:
            self.head = Head(old.method, old.target, old.path, old.query, headers, old.keep_alive, length, False, "1.1")
