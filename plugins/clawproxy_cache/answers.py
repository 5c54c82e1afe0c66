"""The answers that are kept: recorded as they come, bounded, the one asked for longest ago thrown out first.

Rule 1: only a whole answer is kept: its terminal marker was seen, it ended for a reason of its own, and it says something.
Rule 2: what is kept is what the provider said, before any plugin changed it: policies see it anew each time it is played.
Rule 3: an answer counts with its bytes and with what its events take, so that `max_bytes` is about memory.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence

from attrs import frozen

from clawproxy.events import (
    CONTENT,
    Batch,
    Embedding,
    Event,
    Finish,
    KeepAlive,
    Opaque,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
)

PIECE = 32 * 1024
"""Bytes played at once, about: a hit is a few writes, and never one without bound."""
_EVENT = 64
_NUMBER = 32
"""Bytes of a float in a tuple."""
_WHOLE = frozenset({"stop", "tool_calls"})
"""Why an answer may end to be worth keeping; None where the provider gives no reason (embeddings)."""


@frozen(slots=True, eq=False)
class Answer:
    batches: Sequence[Batch]
    size: int
    form: tuple[str, bool, bool, str]
    """That of the request it was given to."""
    plain: bool
    """Its events say all of it."""
    stored: float
    """By `time.monotonic()`."""

    def played(self, form: tuple[str, bool, bool, str], plain: bool) -> Sequence[Batch] | None:
        """The batches for an asker of this form; None where they can not be had in it."""
        if form == self.form:
            return self.batches
        if not (plain and self.plain):
            return None
        return [Batch(batch.events, dialect=batch.dialect) for batch in self.batches]


class Answers:
    """All of them, by key."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Answer] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, now: float, oldest: float) -> Answer | None:
        """One that is at most `oldest` seconds old. One that is older than that stays: another client may take it."""
        answer = self._kept.get(key)
        if answer is None or now - answer.stored > oldest:
            return None
        self._kept.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: Answer, most: int) -> None:
        before = self._kept.pop(key, None)
        if before is not None:
            self.size -= before.size
        self._kept[key] = answer
        self.size += answer.size
        while self.size > most:
            _, oldest = self._kept.popitem(last=False)
            self.size -= oldest.size


class Recorder:
    """One answer under way. `see` is called once a batch and must be cheap."""

    __slots__ = ("_batches", "_most", "_pending", "_piece", "failed", "plain", "reason", "says", "size")

    def __init__(self, most: int) -> None:
        self._most = most
        self._batches: list[Batch] = []
        self._pending: list[Batch] = []
        self._piece = 0
        self.size = 0
        self.plain = True
        self.reason: str | None = None
        self.says = False
        """There was content."""
        self.failed = False
        """Larger than one may be."""

    def see(self, batch: Batch) -> None:
        if self.failed:
            return
        size = len(batch.raw) if batch.raw is not None else 0
        for event in batch.events:
            size += _EVENT + _content(event)
            kind = type(event)
            if kind in CONTENT:
                self.says = True
            if kind is Finish:
                self.reason = event.reason  # type: ignore[union-attr]  # by its kind
            elif kind is Opaque:
                self.plain = False
        self.size += size
        if self.size > self._most:
            self.failed = True
            self._batches.clear()
            self._pending.clear()
            return
        self._pending.append(batch)
        self._piece += size
        if self._piece >= PIECE:
            self._join()

    def _join(self) -> None:
        """What is pending as one batch, its bytes kept where each one's stand."""
        pending, self._pending, self._piece = self._pending, [], 0
        if pending:
            events = [event for batch in pending for event in batch.events if type(event) is not KeepAlive]
            raws = [batch.raw for batch in pending if batch.raw is not None]
            dialect = pending[0].dialect
            whole = len(raws) == len(pending) and all(batch.dialect == dialect for batch in pending)
            self._batches.append(Batch(events, raw=b"".join(raws) if whole else None, dialect=dialect))

    def answer(self, form: tuple[str, bool, bool, str], plain: bool, now: float) -> Answer | None:
        """What was recorded, if it is worth keeping."""
        if self.failed or not self.says or (self.reason is not None and self.reason not in _WHOLE):
            return None
        self._join()
        return Answer(tuple(self._batches), self.size, form, plain and self.plain, now)


def _content(event: Event) -> int:
    if isinstance(event, Text | Refused):
        return sys.getsizeof(event.text)
    if isinstance(event, ToolCallDelta):
        return sys.getsizeof(event.arguments) + len(event.name or "") + len(event.call_id or "") + len(event.signature or "")
    if isinstance(event, Reasoning):
        return sys.getsizeof(event.text) + len(event.signature or "") + len(event.data or "")
    if isinstance(event, Embedding):
        return len(event.values) * (1 if isinstance(event.values, str) else _NUMBER)
    return 256  # usage and its raw figures, the beginning
