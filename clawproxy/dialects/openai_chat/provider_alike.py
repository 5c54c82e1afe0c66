"""Chunks that are alike but for their text: nearly all of a stream. What is the same is read once.

    data: {"id":"chatcmpl-1",...,"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\\n\\n
    |------------------------------ head ------------------------------|      |---------- tail ----------|

Rule 1: between head and tail stands one JSON string, checked by the JSON parser; so the whole is the same document but for
        that string.
Rule 2: that the string is what the client reads is not guessed from its name: a chunk with another string there must say
        just that string, in one event.
Rule 3: what is not alike in every other byte is read in full.

Measured: 0.2 us a token among many, 0.6 alone, where reading it in full takes 1.9.
"""

from __future__ import annotations

import re

import msgspec

from clawproxy.dialects.openai_chat.provider_chunk import content_events, decode
from clawproxy.events import Event, Text

TRIES = 3
"""Chunks studied in one stream: a provider that changes more than the text would have each studied in vain."""

_CONTENT = re.compile(rb'"content": ?("(?:[^"\\]|\\.)+")')
_string = msgspec.json.Decoder(str).decode
_strings = msgspec.json.Decoder(list[str]).decode
_PROBE = "\0probe"
_PROBE_JSON = msgspec.json.encode(_PROBE)


class Alike:
    """What the chunks of one stream have in common, once `study` has found it."""

    __slots__ = ("_between", "_head", "_tail", "tries")

    def __init__(self) -> None:
        self._head = self._tail = self._between = b""
        self.tries = TRIES

    def study(self, wire: bytes) -> None:
        """`wire`: an event, `data: ` and blank line included, that said nothing but a text."""
        self.tries -= 1
        found = _CONTENT.search(wire)
        if found is None or wire[:6] != b"data: " or wire.count(b"\n") != 2:
            return
        head, tail = wire[: found.start(1)], wire[found.end(1) :]
        chunk = decode(head[6:] + _PROBE_JSON + tail[:-2])
        if chunk.error or chunk.usage is not None or not chunk.choices or len(chunk.choices) > 1:
            return
        events: list[Event] = []
        delta = chunk.choices[0].delta
        if delta is not None and not chunk.choices[0].finish_reason:
            content_events(delta, events)
        if events == [Text(_PROBE)]:
            self._head, self._tail, self._between = head, tail, tail + head

    def read(self, data: bytes, place: int, events: list[Event]) -> int:
        """Append the texts of the events from `place` on that are alike; where they end, `place` if there is none."""
        head = self._head
        if not head or not data.startswith(head, place):
            return place
        first = place + len(head)
        between = data.find(b"\n\n", first) + 2
        if between > 1 and data.startswith(head, between):
            return self._several(data, first, events) or self._one(data, first, between, events) or place
        return self._one(data, first, between, events) or place

    def _one(self, data: bytes, first: int, end: int, events: list[Event]) -> int:
        """Args: first: where its string begins. end: behind its blank line. Returns 0 where it is not alike."""
        tail = self._tail
        if end < 2 or not data.startswith(tail, end - len(tail)):
            return 0
        try:
            text = _string(data[first : end - len(tail)])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return 0
        if not text:
            return 0
        events.append(Text(text))
        return end

    def _several(self, data: bytes, first: int, events: list[Event]) -> int:
        """The row of alike events from `first` on at once, as one array of strings; 0 where it is not one row.

        That there are as many strings as pieces means that each is one, for a piece that was not would leave its own chunk no
        JSON. (`data.split(between)` is shorter, and ten times as dear: so long a text is prepared anew before each piece.)
        """
        head, tail = self._head, self._tail[:-2]
        begin, end = len(head), -len(tail)
        blocks = data[first - begin :].split(b"\n\n")
        blocks.pop()  # what no blank line has ended
        while not (blocks[-1].startswith(head) and blocks[-1].endswith(tail)):
            blocks.pop()  # what ends the row: a finish, the figures, the marker
            if not blocks:
                return 0
        pieces = [block[begin:end] for block in blocks]
        row = self._between.join(pieces)
        if not data.startswith(row, first):
            return 0
        try:
            texts = _strings(b"[%b]" % b",".join(pieces))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return 0
        if len(texts) != len(pieces) or "" in texts:
            return 0
        events.extend(map(Text, texts))
        return first + len(row) + len(self._tail)
