"""Opening an answer and reading it: `Opening` and `Answer` are what `upstream.base` promises the exchange.

Rule 1: an opening holds one place in the pool from `acquire` on, and gives it back exactly once: when entering fails or is
        cancelled, or when the answer is closed. Between taking and guarding it there is no await.
Rule 2: `close` is synchronous. A connection goes back to the pool only after a whole answer with a clean end, of which the last
        chunk may still be under way; anything else is closed at once, which is what stops a provider from generating (and
        billing) for nobody.
Rule 3: where a credential is refused nothing was done: if there is another in its place by then, the request is sent once more.
Rule 4: a redirect is never followed and its Location never read. Of an error at most 64 KiB are read, for at most 5 s.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

import trio
from attrs import evolve

from clawproxy.errors import ProviderFault
from clawproxy.events import Batch
from clawproxy.upstream.connection import Connection, Unsent
from clawproxy.upstream.faults import fault
from clawproxy.upstream.response_parser import ResponseHead

if TYPE_CHECKING:
    from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
    from clawproxy.messages import ChatRequest
    from clawproxy.upstream.base import Phases
    from clawproxy.upstream.provider import Provider

ERROR_BODY_BYTES = 65536
ERROR_BODY_SECONDS = 5.0

_ERROR_HEADERS = frozenset(
    ["content-type", "request-id", "retry-after", "retry-after-ms", "x-request-id", "x-should-retry", "x-ms-request-id"]
)


def error_header(name: str) -> bool:
    """Which headers of an error a dialect gets to see (lower-case name)."""
    return name in _ERROR_HEADERS or name.startswith(("x-ratelimit-", "anthropic-ratelimit-"))


class Answer:
    """A ProviderStream. Made by `Opening`, which also closes it."""

    __slots__ = ("_connection", "_decoder", "_ended", "_provider", "_tail", "status")

    def __init__(self, provider: Provider, connection: Connection, decoder: ProviderDecoder, status: int) -> None:
        self._provider = provider
        self._connection: Connection | None = connection
        self._decoder = decoder
        self._ended = False
        self._tail: Batch | None = None
        self.status = status

    async def receive(self) -> Batch | None:
        """One batch per network read that made an event whole; None after the end.

        Raises ProviderFault("provider_error.cut" | ".malformed" | ".too_large").
        """
        if self._ended:
            batch, self._tail = self._tail, None
            return batch
        decoder, connection = self._decoder, self._connection
        while not decoder.done and connection is not None:
            body = await connection.read()
            made = decoder.feed(body) if body else None
            if connection.body_ended and not decoder.done:
                self._ended = True
                tail = decoder.close()
                if made is None:
                    return tail
                self._tail = tail
            if made is not None:
                return made
        return None

    def close(self) -> None:
        self.leave(True)

    def leave(self, well: bool) -> None:
        """`well`: its reader was satisfied. Only then the decoder's word that it is done is worth a connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._provider.put_back(connection, well and self._decoder.done)


class Opening:
    """`async with` it: entering waits for a place, connects where it must, sends, and reads the head."""

    __slots__ = ("_answer", "_credential", "_fair_key", "_outbound", "_phases", "_provider", "_request")

    def __init__(
        self,
        provider: Provider,
        request: ChatRequest,
        outbound: OutboundRequest,
        phases: Phases,
        fair_key: str,
        credential: int = 0,
    ) -> None:
        self._provider = provider
        self._request = request
        self._outbound = outbound
        self._phases = phases
        self._fair_key = fair_key
        self._credential = credential
        self._answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        provider, phases, again = self._provider, self._phases, True
        while True:
            if provider.renewals:
                await provider.obtain(self._credential, phases)
            data = provider.encode(self._outbound, self._credential)
            secret = provider.credentials[self._credential]
            connection = await provider.pool.acquire(self._fair_key, self._wait)
            try:
                if connection is not None:
                    phases.enter("first_token")
                    phases.sent = True
                    try:
                        await connection.send(data)
                    except Unsent:
                        phases.sent = False
                        connection.close()
                        connection = None
                if connection is None:
                    phases.enter("connect")
                    connection = await provider.connect(phases)
                    phases.enter("first_token")
                    phases.sent = True
                    try:
                        await connection.send(data)
                    except Unsent as error:
                        phases.sent = False
                        raise fault("unreachable", provider.name, error.cause, sent=False) from error
                head = await connection.read_head()
                if head.status >= 300:
                    raise await self._refusal(connection, head)
                self._answer = answer = Answer(provider, connection, provider.dialect.decoder(self._request), head.status)
            except ProviderFault as error:
                if connection is not None:
                    provider.put_back(connection)
                else:
                    provider.pool.release()
                if not again or error.slug != "provider_error.auth":
                    raise
                refusal = error
            except BaseException:
                if connection is not None:
                    connection.close()
                provider.pool.release()
                raise
            else:
                return answer
            try:
                if not await provider.another(self._credential, secret, phases):
                    raise refusal
            finally:
                del refusal  # it knows this frame
            again = False

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.leave(exc_type is None)

    def keep(self) -> Answer | None:
        """The answer under way: from now on it is the caller's to leave."""
        answer, self._answer = self._answer, None
        return answer

    def leave(self, well: bool) -> None:
        """See `Answer.leave`."""
        if self._answer is not None:
            self._answer.leave(well)

    def _wait(self) -> None:
        self._phases.enter("queue")

    async def _refusal(self, connection: Connection, head: ResponseHead) -> ProviderFault:
        provider = self._provider
        if head.status < 400:
            return fault("redirect", provider.name, f"status {head.status}", sent=True, status=head.status)
        body = bytearray()
        with trio.move_on_after(ERROR_BODY_SECONDS):
            try:
                while len(body) < ERROR_BODY_BYTES:
                    data = await connection.read()
                    if data is None:
                        break
                    body += data
            except ProviderFault:
                pass  # a cut in an error's body does not make the error less of one
        error = provider.dialect.decode_error(head.status, head.headers(error_header), bytes(body[:ERROR_BODY_BYTES]))
        error.details = evolve(error.details, provider=provider.name, provider_status=head.status)
        return error
