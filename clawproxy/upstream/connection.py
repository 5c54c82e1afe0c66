"""One HTTP/1.1 connection to a provider: a request goes out in one write, an answer comes in.

Rule 1: raises ProviderFault and Cancelled, nothing else. After either the connection is closed by whoever holds it.
Rule 2: a request whose first byte was accepted is never sent again: `Unsent` is raised only where the kernel took nothing.
Rule 3: a send that fails half-way may have an answer before it (413, 401): it is read first; without one it is a cut.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from clawproxy.errors import ProviderFault
from clawproxy.upstream.faults import Kind, cause_of, fault
from clawproxy.upstream.response_parser import DEFAULT_ENGINE, BadAnswer, Engine, ResponseHead, ResponseParser
from clawproxy.upstream.wire import Wire


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
        "_limit",
        "_parser",
        "_pending",
        "_provider",
        "_received",
        "_spoilt",
        "_wire",
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
        self._pending = b""
        self._deferred: ProviderFault | None = None
        self._received = 0
        self._spoilt = False
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
        self._parser = ResponseParser(self._engine)
        self._received = 0
        while True:
            self._pending = self._feed(await self._network())
            head = self._parser.head
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
        if self._parser.complete:
            return None
        data = self._feed(await self._network())
        return data if data or not self.body_ended else None

    @property
    def body_ended(self) -> bool:
        return self._parser.complete

    # --- afterwards ------------------------------------------------------------------------------------------------------

    def reusable(self) -> bool:
        """Whether the answer has ended cleanly and another request may follow. Takes in an end that is already here: the last
        chunk often comes a moment after the terminal event."""
        if self._spoilt:
            return False
        if not self._parser.complete:
            try:
                data = self._wire.receive_nowait()
                if data:
                    self._parser.feed(data)
            except (OSError, BadAnswer):
                return False
        return self._parser.reusable

    def quiet(self) -> bool:
        return self._wire.quiet()

    def close(self) -> None:
        self._wire.close()

    # --- inside ----------------------------------------------------------------------------------------------------------

    async def _network(self) -> bytes:
        try:
            return await self._wire.receive()
        except OSError as error:
            self._spoilt = True
            raise self._fault("cut", cause_of(error)) from error
        except trio.ClosedResourceError:
            self._spoilt = True
            raise self._fault("cut", "the gateway closed the connection") from None

    def _feed(self, data: bytes) -> bytes:
        if not data:
            self._spoilt = True
            if not self._parser.eof():
                where = "in its answer" if self._parser.head is not None else "before its answer"
                raise self._fault("cut", f"connection closed {where}")
            return b""
        self._received += len(data)
        if self._received > self._limit:
            self._spoilt = True
            raise self._fault("too_large", "over limits.response")
        try:
            return self._parser.feed(data)
        except BadAnswer as error:
            self._spoilt = True
            malformed = self._fault("malformed", str(error))
            if not error.body:
                raise malformed from None
            self._deferred = malformed
            return error.body

    def _fault(self, kind: Kind, cause: str) -> ProviderFault:
        head = self._parser.head
        return fault(kind, self._provider, cause, sent=True, status=head.status if head is not None else None)
