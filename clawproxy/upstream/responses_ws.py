"""Opening an answer over a WebSocket, for a provider whose configuration says `websocket = true`.

Rule 1: one answer at a time on a socket. The protocol has no word for "stop" (only `response.create` and `response.steer`), so
        the way to stop a provider is to close the socket, and that must end nobody else's answer.
Rule 2: a socket goes back to the pool after the terminal event of its answer, and after nothing else: not after an error, which
        something may follow that the next answer would be taken for.
Rule 3: HTTP takes over, in the same attempt, only where nothing was asked yet: the upgrade was refused or broke, or the
        provider says that the socket is too old, and so is the next. After a refusal HTTP is used for a while without asking.
Rule 4: what was asked is asked once. What breaks after that is the attempt's fault (`cut`), and the router decides. A new
        socket that broke before any content counts as a refusal for those that follow.
"""

from __future__ import annotations

import logging
import math
from types import TracebackType
from typing import TYPE_CHECKING

import trio
from attrs import evolve

from clawproxy.config import PoolConfig
from clawproxy.config.schema import Duration
from clawproxy.dialects.base import OutboundRequest
from clawproxy.dialects.openai_responses.provider_socket import (
    PATH,
    Refusal,
    SocketDecoder,
    create_message,
    read_refusal,
)
from clawproxy.errors import ProviderFault
from clawproxy.events import Batch
from clawproxy.upstream.answer import Opening, error_header
from clawproxy.upstream.connection import Unsent
from clawproxy.upstream.faults import fault
from clawproxy.upstream.pool import Pool
from clawproxy.upstream.websocket import Refused, WebSocket

if TYPE_CHECKING:
    from clawproxy.messages import ChatRequest
    from clawproxy.upstream.base import Phases, ProviderStream
    from clawproxy.upstream.dial import Dialer
    from clawproxy.upstream.provider import Provider

logger = logging.getLogger("clawproxy.upstream")

LIFETIME = 55 * 60.0
"""Seconds. Providers end a socket after 60 minutes, whatever is under way on it."""
MEMORY = 5 * 60.0
"""Seconds for which a refusal is remembered."""
_UPGRADE = OutboundRequest(PATH, b"", (), "GET")


class Sockets:
    """One provider's sockets, opened with one of its credentials. Their pool has the provider's settings, with places of its own
    beside HTTP's and beside those of other credentials."""

    def __init__(self, name: str, settings: PoolConfig, dialer: Dialer, response_limit: int, connect_limit: float) -> None:
        self.pool: Pool[WebSocket] = Pool(name, evolve(settings, lifetime=Duration(min(settings.lifetime, LIFETIME))))
        self._settings = settings
        self._name = name
        self._dialer = dialer
        self._response_limit = response_limit
        self._connect_limit = connect_limit
        self._refused_until = -math.inf

    def another(self) -> Sockets:
        """The same for another credential."""
        return Sockets(self._name, self._settings, self._dialer, self._response_limit, self._connect_limit)

    @property
    def refused(self) -> bool:
        """Whether HTTP is to be used without asking."""
        return trio.current_time() < self._refused_until

    def refuse(self, cause: str) -> None:
        logger.warning("providers.%s: no WebSocket (%s); HTTP for the next %.0f minutes", self._name, cause, MEMORY / 60)
        self._refused_until = trio.current_time() + MEMORY

    async def connect(self, head: bytes) -> WebSocket:
        """A new socket, for the holder of a place. Raises Refused, and what `Dialer.connect` raises."""
        socket = WebSocket(self._name, await self._dialer.connect(), self._response_limit)
        began = trio.current_time()
        try:
            await socket.upgrade(head)
        except BaseException as error:
            socket.abandon()
            if not isinstance(error, Refused) and trio.current_time() - began > self._connect_limit * 0.8:
                self.refuse("the upgrade took too long")  # most likely the `connect` clock: do not wait for it each time
            raise
        self.pool.opened_total += 1
        return socket


class SocketAnswer:
    """A ProviderStream. Made by `SocketOpening`, which also closes it."""

    __slots__ = ("_decoder", "_fresh", "_pending", "_socket", "_sockets", "status")

    def __init__(self, sockets: Sockets, socket: WebSocket, decoder: SocketDecoder, pending: list[bytes], *, fresh: bool) -> None:
        """`pending`: the messages that came first. `fresh`: whether the socket was never used before."""
        self._sockets = sockets
        self._socket: WebSocket | None = socket
        self._decoder = decoder
        self._pending = pending
        self._fresh = fresh
        self.status = 200

    async def receive(self) -> Batch | None:
        """One batch per network read that made an event whole; None after the end.

        Raises ProviderFault("provider_error.cut" | ".malformed" | ".too_large").
        """
        decoder, socket = self._decoder, self._socket
        while not decoder.over and socket is not None:
            messages, self._pending = self._pending, []
            if not messages:
                try:
                    messages = await socket.receive()
                except ProviderFault as error:
                    if self._fresh:
                        self._sockets.refuse(error.slug)
                    raise
            if messages:
                batch = decoder.feed(messages)
                if batch is not None:
                    if batch.has_content():
                        self._fresh = False
                    return batch
        return None

    def close(self) -> None:
        self.leave(True)

    def leave(self, well: bool) -> None:
        """`well`: its reader was satisfied. Only then the decoder's word that it is done is worth a socket."""
        socket, self._socket = self._socket, None
        if socket is not None:
            give_back(self._sockets.pool, socket if well and self._decoder.done else None, socket)


def give_back(pool: Pool[WebSocket], kept: WebSocket | None, socket: WebSocket | None) -> None:
    """The place, and the socket where it is `kept`; else it is closed now."""
    if kept is None and socket is not None:
        socket.close()
    pool.release(kept)


class SocketOpening:
    """`async with` it: entering waits for a place, connects and upgrades where it must, asks, and reads the first message; or
    does what `Opening` does, where the provider has no WebSockets to offer."""

    __slots__ = ("_answer", "_credential", "_fair_key", "_http", "_outbound", "_phases", "_provider", "_request", "_sockets")

    def __init__(
        self,
        provider: Provider,
        sockets: Sockets,
        request: ChatRequest,
        outbound: OutboundRequest,
        phases: Phases,
        fair_key: str,
        credential: int = 0,
    ) -> None:
        self._provider = provider
        self._sockets = sockets
        self._credential = credential
        self._request = request
        self._outbound = outbound
        self._phases = phases
        self._fair_key = fair_key
        self._answer: SocketAnswer | None = None
        self._http: Opening | None = None

    async def __aenter__(self) -> ProviderStream:
        message = None if self._sockets.refused else create_message(self._outbound)
        if message is not None:
            try:
                self._answer = answer = await self._ask(message)
            except Refused as refused:
                self._sockets.refuse(str(refused))
            else:
                return answer
        self._http = http = Opening(self._provider, self._request, self._outbound, self._phases, self._fair_key, self._credential)
        return await http.__aenter__()

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._answer is not None:
            self._answer.leave(exc_type is None)
        elif self._http is not None:
            self._http.leave(exc_type is None)

    async def _ask(self, message: bytes) -> SocketAnswer:
        """Raises Refused where nothing was asked, or the provider says so."""
        provider, pool = self._provider, self._sockets.pool
        head = provider.encode(_UPGRADE, self._credential)
        socket = await pool.acquire(self._fair_key, self._wait)
        fresh = False
        try:
            if socket is not None:
                self._phases.enter("first_token")
                try:
                    first = await self._first(socket, message)
                except (Unsent, _TooOld):
                    self._phases.sent = False
                    socket.close()
                    socket = None
            if socket is None:
                fresh = True
                self._phases.enter("connect")
                socket = await self._sockets.connect(head)
                self._phases.enter("first_token")
                try:
                    first = await self._first(socket, message)
                except Unsent as error:
                    self._phases.sent = False
                    raise fault("unreachable", provider.name, error.cause, sent=False) from error
                except _TooOld:
                    self._phases.sent = False
                    raise Refused("it takes no more connections") from None
                except ProviderFault as error:
                    if error.slug != "provider_error.unreachable" and error.details.provider_status == 200:
                        self._sockets.refuse(error.slug)
                    raise
            decoder = SocketDecoder(provider.dialect.decoder(self._request), streams=self._request.stream)
            return SocketAnswer(self._sockets, socket, decoder, first, fresh=fresh)
        except BaseException:
            give_back(pool, None, socket)
            raise

    async def _first(self, socket: WebSocket, message: bytes) -> list[bytes]:
        """Ask, and read up to the first message. Raises Unsent, _TooOld, ProviderFault."""
        self._phases.sent = True
        await socket.send(message)
        messages: list[bytes] = []
        while not messages:
            messages = await socket.receive()
        refusal = read_refusal(messages[0])
        if refusal is not None:
            if refusal.limit_reached:
                raise _TooOld
            if refusal.status is not None:
                raise self._fault(refusal, refusal.status)
        return messages

    def _fault(self, refusal: Refusal, status: int) -> ProviderFault:
        provider = self._provider
        headers = {name: value for name, value in refusal.headers.items() if error_header(name)}
        error = provider.dialect.decode_error(status, headers, refusal.body)
        error.details = evolve(error.details, provider=provider.name, provider_status=status)
        if error.slug == "provider_error.auth":
            provider.forget_credential(self._credential)
        return error

    def _wait(self) -> None:
        self._phases.enter("queue")


class _TooOld(Exception):
    """The socket has had its hour: what was asked on it was not taken."""
