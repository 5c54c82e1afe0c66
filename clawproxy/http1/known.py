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


class KnownHead:
    """One head, whole and checked."""

    __slots__ = ("_after", "_before", "_names", "_pattern", "_said", "head", "varied")

    def __init__(self, head: Head, before: bytes, after: bytes) -> None:
        self.head = head
        """The head as it was recognised last."""
        self.varied = False
        """Whether it then differed from the one before in more than its length."""
        self._before = before
        self._after = after
        self._names: tuple[str, ...] = ()
        self._said: tuple[bytes, ...] = ()
        self._pattern: re.Pattern[bytes] | None = None
        self._vary()

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

    def _vary(self) -> None:
        """Make the pattern, where the head holds fields that vary, each of them once."""
        whole = self._before + b"0" + self._after
        found = list(_VARIES.finditer(whole))
        names = tuple([match[1].decode().lower() for match in found])
        if not found or any(sum(name == field[0] for field in self.head.headers) != 1 for name in names):
            return
        pieces, place = [], 0
        length = len(self._before)
        for start, end, pattern in sorted(
            [(match.start(2), match.end(2), rb"([\x21-\x7e]{1,128})") for match in found]
            + [(length, length + 1, rb"(?P<length>[1-9][0-9]{0,14})")]
        ):
            pieces += [re.escape(whole[place:start]), pattern]
            place = end
        self._pattern = re.compile(b"".join([*pieces, re.escape(whole[place:])]))
        self._names = names
        self._said = tuple([match[2] for match in found])

    def recognise(self, data: bytes) -> int:
        """Where the head ends that `data` begins with, and `head` is that head then; 0 where it is another, or not whole."""
        if self._pattern is not None:
            return self._recognise_varying(self._pattern, data)
        if not data.startswith(self._before):
            return 0
        match = _DIGITS.match(data, len(self._before))
        if match is None or not data.startswith(self._after, match.end()):
            return 0
        length = int(match[0])
        if length != self.head.content_length:
            self._become(length, {"content-length": str(length)})
        return match.end() + len(self._after)

    def _recognise_varying(self, pattern: re.Pattern[bytes], data: bytes) -> int:
        match = pattern.match(data)
        if match is None:
            return 0
        at = pattern.groupindex["length"]
        said = tuple([value for number, value in enumerate(match.groups(), 1) if number != at])
        length = int(match[at])
        self.varied = said != self._said
        if self.varied or length != self.head.content_length:
            self._said = said
            changed = dict(zip(self._names, [value.decode("ascii") for value in said], strict=True))
            self._become(length, changed | {"content-length": str(length)})
        return match.end()

    def _become(self, length: int, changed: dict[str, str]) -> None:
        old = self.head
        headers = tuple([field if field[0] not in changed else (field[0], changed[field[0]]) for field in old.headers])
        self.head = Head(old.method, old.target, old.path, old.query, headers, old.keep_alive, length, False, "1.1")
