"""The last good head of a connection, to recognise the next one by.

A client that keeps its connection sends the same head again and again; what changes is the length of the body. A head that is
byte for byte one that passed the strict check and both readings, but for the digits of `Content-Length`, needs neither again
(0.6 us instead of 20-60).

Rule 1: only the plain case is known: POST, HTTP/1.1, a body with a length that is not zero, no `Expect`, no `Upgrade`.
Rule 2: nothing is decided here: `recognise` gives the very `Head` that `parse_head` would give, or nothing.
"""

from __future__ import annotations

import re

from clawproxy.http1.head import Head

LARGEST = 8 * 1024
"""Bytes of a head worth keeping as long as its connection lives."""
# No zero, no leading zero, and far from any integer's bound: what else a length may be, the full check says.
_DIGITS = re.compile(rb"[1-9][0-9]{0,14}")


class KnownHead:
    """One head, whole and checked."""

    __slots__ = ("_after", "_before", "head")

    def __init__(self, head: Head, before: bytes, after: bytes) -> None:
        self.head = head
        """The head as it was recognised last."""
        self._before = before
        self._after = after

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
        return cls(head, raw[:at], raw[at + len(digits) :])

    def recognise(self, data: bytes) -> int:
        """Where the head ends that `data` begins with, and `head` is that head then; 0 where it is another, or not whole."""
        if not data.startswith(self._before):
            return 0
        match = _DIGITS.match(data, len(self._before))
        if match is None or not data.startswith(self._after, match.end()):
            return 0
        length = int(match[0])
        if length != self.head.content_length:
            old, text = self.head, str(length)
            headers = tuple([field if field[0] != "content-length" else (field[0], text) for field in old.headers])
            self.head = Head(old.method, old.target, old.path, old.query, headers, old.keep_alive, length, False, "1.1")
        return match.end() + len(self._after)
