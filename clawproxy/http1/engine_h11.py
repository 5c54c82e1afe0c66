"""The reference engine: h11, pure Python (112-135 us a request), used where httptools has no wheel."""

from __future__ import annotations

import h11

from clawproxy.http1.engine import EngineRefused, RawHead

# h11's own bound on a head or a chunk line. The strict check has its own, smaller one.
_MAX_EVENT = 1024 * 1024


class H11Engine:
    __slots__ = ("_connection", "complete")

    def __init__(self) -> None:
        self.complete = False
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_EVENT)

    def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise EngineRefused(str(error)) from error

    def head(self, data: bytes) -> RawHead:
        self._connection.receive_data(data)
        event = self._next()
        if not isinstance(event, h11.Request):
            raise EngineRefused("the head is not whole")
        if not self.body(b""):
            return RawHead(event.method, event.target, event.http_version.decode("ascii"), list(event.headers))
        raise EngineRefused("a body came with the head")

    def body(self, data: bytes) -> bytes:
        if data:
            self._connection.receive_data(data)
        pieces: list[bytes] = []
        while not self.complete:
            event = self._next()
            if isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.complete = True
            else:
                break
        return b"".join(pieces)
