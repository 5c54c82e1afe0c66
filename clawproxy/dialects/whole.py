"""An answer that is one JSON document: collected, and read when all of it is there.

Rule: what can not be read is a `Failed` event, never an exception: `cut` where the document only stops too early, `malformed`
where it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from clawproxy.errors import ProviderFault
from clawproxy.events import Batch, End, Event, Failed

MAX_BODY = 64 * 1024 * 1024


class WholeDecoder:
    """`ProviderDecoder` for one document.

    Args:
        read: the events of a whole body. It may raise what msgspec raises, or ValueError. A `Failed` as the last of them ends the
            answer; else `End` is added.
        dialect: the format the body is in.
    """

    def __init__(self, read: Callable[[bytes], list[Event]], dialect: str, limit: int = MAX_BODY) -> None:
        self.done = False
        self._read = read
        self._dialect = dialect
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self._failed = False

    def feed(self, data: bytes) -> Batch | None:
        if self.done or self._failed:
            return None
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._limit:
            self._pieces.clear()
            return self._fail(ProviderFault("provider_error.too_large"))
        return None

    def close(self) -> Batch | None:
        if self.done or self._failed:
            return None
        body = b"".join(self._pieces)
        self._pieces.clear()
        try:
            body.decode()  # msgspec does not look into fields it skips; a client would
            events = self._read(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            cut = str(error) == "Input data was truncated"
            return self._fail(ProviderFault("provider_error.cut" if cut else "provider_error.malformed"))
        if events and isinstance(events[-1], Failed):
            self._failed = True
            return Batch(events, dialect=self._dialect)
        self.done = True
        return Batch([*events, End()], raw=body, dialect=self._dialect)

    def _fail(self, error: ProviderFault) -> Batch:
        self._failed = True
        return Batch([Failed(error)], dialect=self._dialect)
