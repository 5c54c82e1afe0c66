"""One HTTP/1.1 connection to a provider: a request goes out in one write, an answer comes in.

Rule 1: raises ProviderFault and Cancelled, nothing else. After either the connection is closed by whoever holds it.
Rule 2: a request whose first byte was accepted is never sent again: `Unsent` is raised only where the kernel took nothing.
Rule 3: a send that fails half-way may have an answer before it (413, 401): it is read first; without one it is a cut.
Rule 4: where a dialect's terminal marker came and only the last chunk is still to come, the connection may be kept: it owes
        exactly `0 CR LF CR LF` (or what is left of it), and carries no request before that is read.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from clawproxy.errors import ProviderFault
from clawproxy.upstream.faults import Kind, cause_of, fault
from clawproxy.upstream.response_parser import DEFAULT_ENGINE, BadAnswer, Engine, ResponseHead, ResponseParser
from clawproxy.upstream.wire import Wire

LAST_CHUNK = b"0\r\n\r\n"
_BETWEEN = (b"\r\n", b"\r\n0", b"\r\n0\r", b"\r\n0\r\n\r")
"""How a read ends that ended a chunk, or in the last one."""


class Unsent(Exception):
    """The connection failed before any byte of the request was accepted: it may be sent on another one."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Connection:
    """Attributes `created` and `idle_since` are the pool's: seconds of `trio.current_time()`."""

    __slots__ = (
        "_deferred",
        "_engine",
        "_last",
        "_limit",
        "_owes_end",
        "_parser",
        "_pending",
        "_provider",
        "_received",
        "_spoilt",
        "_wire",
        "body_ended",
        "created",
        "idle_since",
    )

    def __init__(self, provider: str, wire: Wire, limit: int, engine: Callable[[], Engine] = DEFAULT_ENGINE) -> None:
        """`limit`: the bytes one answer may hold, as received."""
        self._provider = provider
        self._wire = wire
        self._limit = limit
        self._engine = engine
        self._parser = ResponseParser(engine)
        self._pending = self._last = b""
        self._deferred: ProviderFault | None = None
        self._received = 0
        self._spoilt = False
        self._owes_end = False
        self.body_ended = False
        self.created = self.idle_since = trio.current_time()

    # --- the request -----------------------------------------------------------------------------------------------------

    async def send(self, request: bytes) -> None:
        """Raises Unsent where nothing of it was accepted."""
        try:
            await self._wire.send(request)
        except OSError as error:
            self._spoilt = True
            if not self._wire.accepted:
                raise Unsent(cause_of(error)) from error

    # --- the answer ------------------------------------------------------------------------------------------------------

    async def read_head(self) -> ResponseHead:
        """The final answer's head. Body bytes that came with it are kept for `read`."""
        self._parser = parser = ResponseParser(self._engine)
        self._received = 0
        self.body_ended = False
        receive = self._wire.receive_first
        while True:
            try:
                data = await receive()
            except (OSError, trio.ClosedResourceError) as error:
                raise self._broken(error) from (error if isinstance(error, OSError) else None)
            self._pending = self._feed(data)
            receive = self._wire.receive
            head = parser.head
            if head is not None:
                if head.status < 300 and head.length is not None and head.length > self._limit:
                    raise self._fault("too_large", f"it declares {head.length} bytes, over limits.response")
                return head

    async def read(self) -> bytes | None:
        """The body bytes of one network read (b"" where it held none), None after the end of the body."""
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        if self._deferred is not None:
            raise self._deferred
        if self.body_ended:
            return None
        try:
            data = await self._wire.receive()
        except (OSError, trio.ClosedResourceError) as error:
            raise self._broken(error) from (error if isinstance(error, OSError) else None)
        data = self._feed(data)
        return data if data or not self._parser.complete else None

    # --- afterwards ------------------------------------------------------------------------------------------------------

    def reusable(self, finished: bool = False) -> bool:
        """Whether the answer has ended cleanly and another request may follow. Takes in an end that is already here: the last
        chunk often comes a moment after the terminal event.

        `finished`: that event was seen, so where nothing more is here, `quiet` looks for the end when it is next asked.
        """
        if self._spoilt:
            return False
        parser = self._parser
        if not parser.complete:
            try:
                data = self._wire.receive_nowait()
                if data:
                    parser.feed(data)
            except (OSError, BadAnswer):
                return False
            if data is None and finished and parser.chunked and self._last.endswith(_BETWEEN):
                self._owes_end = True
                self._last = b""
                return True
        return parser.reusable

    @property
    def owes_end(self) -> bool:
        """It was `reusable` only on the word of the dialect: the last chunk had not come."""
        return self._owes_end

    def quiet(self) -> bool:
        return (not self._owes_end or self._take_end()) and self._wire.quiet()

    def close(self) -> None:
        self._wire.close()

    # --- inside ----------------------------------------------------------------------------------------------------------

    def _take_end(self) -> bool:
        """Whether what was owed, and nothing else, has come. The parser judges it too: it knows if a chunk was still open."""
        try:
            data = self._wire.receive_nowait()
            if not data or not LAST_CHUNK.endswith(data):
                return False
            self._parser.feed(data)
        except (OSError, BadAnswer):
            return False
        self._owes_end = False
        return self._parser.reusable

    def _broken(self, error: OSError | trio.ClosedResourceError) -> ProviderFault:
        self._spoilt = True
        return self._fault("cut", cause_of(error) if isinstance(error, OSError) else "the gateway closed the connection")

    def _feed(self, data: bytes) -> bytes:
        if not data:
            self._spoilt = True
            self.body_ended = self._parser.eof()
            if not self.body_ended:
                where = "in its answer" if self._parser.head is not None else "before its answer"
                raise self._fault("cut", f"connection closed {where}")
            return b""
        self._last = data
        self._received += len(data)
        if self._received > self._limit:
            self._spoilt = True
            raise self._fault("too_large", "over limits.response")
        parser = self._parser
        try:
            body = parser.feed(data)
        except BadAnswer as error:
            self._spoilt = True
            malformed = self._fault("malformed", str(error))
            if not error.body:
                raise malformed from None
            self._deferred = malformed
            return error.body
        self.body_ended = parser.complete
        return body

    def _fault(self, kind: Kind, cause: str) -> ProviderFault:
        head = self._parser.head
        return fault(kind, self._provider, cause, sent=True, status=head.status if head is not None else None)
