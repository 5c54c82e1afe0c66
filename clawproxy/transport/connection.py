"""One client connection: its loop of requests, its clocks, its end.

Rule 1: one scope carries the connection's own clocks (`head`, `idle`, `body`); its deadline is moved, never nested. When it
        fires, the connection ends: after a 408 where a request had begun (or none ever came), silently where it was idle.
        While an exchange is at work it is off; the exchange has clocks of its own.
Rule 2: head, then Host and Origin, then who asks, then whether there is room, then the body, then the exchange.
Rule 3: nothing is read while an answer is under way. The hang-up monitor sees the client leave; pipelined bytes stay in the
        kernel, but for the at most 64 KiB that came with the request.
Rule 4: an answer sent before the whole body was read closes the connection, unless the rest is already here.
Rule 5: what breaks the framing, or looks like an attempt to, is answered, and the connection closes: FIN at once, one second
        of reading at most.
"""

from __future__ import annotations

import functools
import logging
import math

import trio

from clawproxy.clocks import expired
from clawproxy.context import new_id
from clawproxy.dialects.base import ClientDialect
from clawproxy.errors import ClawError
from clawproxy.http1 import response
from clawproxy.http1.body import BodyReader
from clawproxy.http1.engine import EngineFactory
from clawproxy.http1.head import Head
from clawproxy.http1.headcheck import HeadCollector, parse_head, risky_target
from clawproxy.lifetime import Lifetime
from clawproxy.service import Call, Service
from clawproxy.transport import access, origins
from clawproxy.transport.front import Front
from clawproxy.transport.http import JSON, Fields, HttpClient, PlainHandler, bounded_write, error_fields, openai_error
from clawproxy.transport.surfaces import Surfaces, WebSocketSurface
from clawproxy.transport.wire import READ, Stream, Wire

logger = logging.getLogger(__name__)

RATE = 1024
"""The least bytes a second of a body, once `RATE_AFTER` seconds have passed."""
RATE_AFTER = 5.0
# Whoever sends these has broken the framing, or their body is not wanted: nothing after them can be trusted to be a request.
_CLOSING = frozenset(
    {"bad_head", "bad_body", "body_too_large", "unsupported_media_type", "auth.ambiguous", "misdirected", "timeout.body"}
    | {"expectation_failed"}
)


async def serve_connection(
    stream: Stream,
    service: Service,
    surfaces: Surfaces,
    front: Front,
    peer: str,
    *,
    secure: bool = False,
    accepted_at: float | None = None,
    engine: EngineFactory | None = None,
) -> None:
    """Serve one accepted connection to its end, and close it.

    Args:
        stream: as accepted; for TLS the handshake is still to come.
        peer: the client's address, for authentication and the log.
        accepted_at: `trio.current_time()` of the accept; None is now. The `head` clock runs from there.
        engine: None takes `front.engine`.

    Raises nothing but Cancelled.
    """
    connection = Connection(stream, service, surfaces, front, peer, secure, engine or front.engine)
    await connection.run(trio.current_time() if accepted_at is None else accepted_at)


class Connection:
    """The state of one connection. `front.Member` and `hangup.Watched`."""

    def __init__(
        self, stream: Stream, service: Service, surfaces: Surfaces, front: Front, peer: str, secure: bool, engine: EngineFactory
    ) -> None:
        self._wire = Wire(stream)
        self._service = service
        self._surfaces = surfaces
        self._front = front
        self._peer = peer
        self._secure = secure
        self._make_engine, self._engine = engine, engine()
        self._clock = trio.CancelScope()
        self._phase = "tls" if secure else "new"
        self._leftover = b""
        self._lifetime: Lifetime | None = None
        self._client: HttpClient | None = None
        self._gone = False
        self._requests = 0
        self._errors = 0
        # Of the request at work:
        self._request_id = ""
        self._dialect: ClientDialect | None = None
        self._extra: Fields = ()
        self._keep = True
        self._no_body = self._body_taken = False
        self._limits = service.config.limits

    # --- seen from outside -------------------------------------------------------------------------------------------------

    def hung_up(self) -> None:
        self._gone = True
        if self._lifetime is not None and self._client is not None and not self._client.delivered:
            self._lifetime.hang_up()

    @property
    def at_work(self) -> bool:
        return self._phase in ("request", "body")

    def retire(self) -> None:
        """The service drains: an idle connection ends now, one at work after its answer."""
        if self._phase in ("tls", "new", "idle"):
            self._clock.cancel()

    # --- the loop ----------------------------------------------------------------------------------------------------------

    async def run(self, accepted_at: float) -> None:
        sock, monitor = self._wire.sock, self._front.monitor
        self._front.add(self)
        linger = False
        try:
            self._clock.deadline = accepted_at + self._service.deadlines.head
            with self._clock:
                if await self._handshake():
                    monitor.watch(sock, self)
                    linger = await self._serve()
            if self._clock.cancelled_caught:
                linger = await self._out_of_time()
            monitor.unwatch(sock)
            await self._wire.end(linger=linger)
        except Exception:
            logger.exception("a connection ended with a fault of the gateway")
        finally:
            self._front.discard(self)
            monitor.unwatch(sock)
            self._wire.close()

    async def _handshake(self) -> bool:
        stream = self._wire.stream
        if isinstance(stream, trio.SSLStream):
            try:
                await stream.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            self._phase = "new"
        return True

    async def _serve(self) -> bool:
        """Requests, one after another. Returns whether there is somebody to linger for."""
        while True:
            try:
                head = await self._read_head()
            except ClawError as error:
                self._begin(None)
                await self._refuse(error, close=True)
                return True
            if head is None:
                return False
            self._begin(head)
            if not await self._request(head):
                return True

    async def _read_head(self) -> Head | None:
        """None where the client ended between requests, or in the middle of a head."""
        limits = self._limits = self._service.config.limits
        collector = HeadCollector(limits.head)
        data, self._leftover = self._leftover, b""
        raw = collector.feed(data) if data else None
        if raw is None:
            deadlines = self._service.deadlines
            if self._requests:
                if self._front.draining:
                    return None
                self._phase = "head" if data else "idle"
                self._clock.deadline = trio.current_time() + (deadlines.head if data else deadlines.idle)
            while raw is None:
                data = await self._wire.receive()
                if not data:
                    return None
                if self._clock.cancel_called:  # in the very moment this came: nothing of it is begun
                    await trio.lowlevel.checkpoint()
                raw = collector.feed(data)
                if raw is None and self._phase != "head":
                    if self._phase == "idle":
                        self._clock.deadline = trio.current_time() + deadlines.head
                    self._phase = "head"
        self._leftover = collector.rest
        self._engine = self._make_engine()
        return parse_head(raw, self._engine)

    def _begin(self, head: Head | None) -> None:
        self._clock.deadline = math.inf
        self._phase = "request"
        self._requests += 1
        self._request_id = new_id()
        self._dialect, self._extra, self._body_taken = None, (), False
        self._no_body = head is not None and head.method == "HEAD"
        self._keep = (
            head is not None
            and head.keep_alive
            and self._requests < self._limits.requests_per_connection
            and not self._front.draining
        )

    async def _request(self, head: Head) -> bool:
        """One request, routed. Returns whether another may follow."""
        surfaces = self._surfaces
        refused = surfaces.check(head, self._service.config, self._secure)
        if refused is not None:
            return await self._refuse(refused, head)
        self._extra = origins.cors_headers(head)
        if head.method == "POST":
            dialect = surfaces.http.get(head.path)
            if dialect is not None:
                self._dialect = dialect
                return await self._exchange(head, dialect)
        try:
            if head.method == "GET" and surfaces.websocket is not None and head.path in surfaces.websocket_paths:
                return await self._upgrade(head, surfaces.websocket)
            return await self._plain(head, surfaces.handler(head, self._service))
        except ClawError as error:
            return await self._refuse(error, head)

    # --- exchanges ---------------------------------------------------------------------------------------------------------

    async def _exchange(self, head: Head, dialect: ClientDialect) -> bool:
        service = self._service
        try:
            credentials = access.read_credentials(head, self._peer, dialect.name)
            principal = await service.authenticate(credentials)
            refused = service.admit()
            if refused is not None:
                raise refused
            access.check_content(head)
            deadline = access.client_deadline(head)
            body = await self._read_body(head, self._limits.body)
        except ClawError as error:
            return await self._refuse(error, head)
        self._lifetime = lifetime = Lifetime()
        self._client = client = HttpClient(
            self._wire,
            self._front.pulse,
            head,
            dialect,
            self._request_id,
            extra=self._extra,
            close=not self._keep,
            close_on_error=self._errors + 1 >= self._limits.errors_per_connection,
            write_limit=service.deadlines.write,
        )
        call = Call(
            self._request_id,
            dialect.name,
            principal,
            functools.partial(dialect.decode_request, body, access.decode_limits(self._limits)),
            lifetime,
            self._peer,
            access.client_request_id(head),
            deadline,
        )
        if self._gone:
            lifetime.hang_up()
        try:
            await service.handle(call, client)
        except Exception:
            logger.exception("an exchange raised", extra={"request_id": self._request_id})
            await client.fail(ClawError("internal"))
        finally:
            self._lifetime = self._client = None
            client.release()
        if not client.ended and lifetime.cause is None:
            await client.fail(ClawError("internal"))
        if 400 <= client.status < 500:
            self._errors += 1
        return client.keep and not self._gone

    async def _read_body(self, head: Head, limit: int) -> bytes:
        """The whole content. Raises ClawError: bad_body, body_too_large, client_gone."""
        reader = BodyReader(head, self._engine, limit)
        self._body_taken = True
        if not reader.done:
            data, self._leftover = self._leftover, b""
            if not data or not reader.feed(data):
                await self._read_rest(head, reader)
            self._leftover = reader.rest
        return reader.content()

    async def _read_rest(self, head: Head, reader: BodyReader) -> None:
        begun = trio.current_time()
        last = begun + self._service.deadlines.body
        self._phase = "body"
        self._clock.deadline = min(last, begun + RATE_AFTER + reader.received / RATE)
        if head.version == "1.1" and head.get("expect") is not None:
            await self._wire.write(response.CONTINUE, self._service.deadlines.write)
        whole = False
        while not whole:
            data = await self._wire.receive()
            if not data:
                raise ClawError("client_gone")
            whole = reader.feed(data)
            self._clock.deadline = min(last, begun + RATE_AFTER + reader.received / RATE)
        if self._clock.cancel_called:  # as the last byte came
            await trio.lowlevel.checkpoint()
        self._clock.deadline = math.inf
        self._phase = "request"

    # --- everything else ---------------------------------------------------------------------------------------------------

    async def _plain(self, head: Head, handler: PlainHandler) -> bool:
        try:
            body = b""
            if head.method in ("GET", "HEAD", "OPTIONS"):
                self._drop_body(head)
            else:
                body = await self._read_body(head, self._surfaces.plain_body)
            answer = await handler(head, body, self._peer)
            fields = [("x-request-id", self._request_id), *answer.headers.items(), *self._extra]
            text = self._whole(answer.status, fields, answer.body, answer.content_type)
        except ClawError:
            raise
        except Exception:
            logger.exception("a plain route raised", extra={"request_id": self._request_id})
            raise ClawError("internal") from None
        return await self._answer(text)

    async def _upgrade(self, head: Head, websocket: WebSocketSurface) -> bool:
        if head.version != "1.1" or head.get("upgrade") is None:
            raise ClawError("upgrade_required")
        self._front.monitor.unwatch(self._wire.sock)  # its own reader never stops
        self._front.discard(self)
        leftover, self._leftover = self._leftover, b""
        await websocket(self._wire.stream, head, leftover, self._service, self._peer)
        self._wire.broken = True  # spoken for: nothing of ours may follow
        return False

    # --- answers -----------------------------------------------------------------------------------------------------------

    def _drop_body(self, head: Head) -> None:
        """Take an unwanted body out of what is already here; where it is not all here, the connection is to close."""
        self._body_taken = True
        if not head.content_length and not head.chunked:
            return
        if self._phase == "request":
            try:
                if head.chunked or len(self._leftover) < (head.content_length or 0) <= READ:
                    self._leftover += self._wire.receive_now()  # often in a segment of its own, just behind the head
                reader = BodyReader(head, self._engine, len(self._leftover))
                if reader.feed(self._leftover):
                    self._leftover = reader.rest
                    return
            except ClawError:
                pass
        self._keep = False

    async def _refuse(self, error: ClawError, head: Head | None = None, *, close: bool = False) -> bool:
        if error.slug == "client_gone":
            self._wire.broken = True
            return False
        self._service.count("clawproxy_http_refused_total", slug=error.slug)
        self._errors += error.status < 500
        if close or error.slug in _CLOSING or self._errors >= self._limits.errors_per_connection:
            self._keep = False
        elif head is not None:
            if error.status in (404, 405) and risky_target(head.target):
                self._keep = False
            if not self._body_taken:
                self._drop_body(head)
        body = openai_error(error) if self._dialect is None else self._dialect.error_body(error, self._request_id)
        fields = [*error_fields(error, self._request_id), *self._extra]
        return await self._answer(self._whole(error.status, fields, body, JSON))

    def _whole(self, status: int, fields: list[tuple[str, str]], body: bytes, content_type: str) -> bytes:
        return response.whole(status, fields, body, content_type=content_type, close=not self._keep, no_body=self._no_body)

    async def _answer(self, text: bytes) -> bool:
        try:
            await self._wire.write(text, self._service.deadlines.write)
        except ClawError:
            return False
        return self._keep

    async def _out_of_time(self) -> bool:
        """A clock of Rule 1 fired, or the service drains."""
        phase, deadlines = self._phase, self._service.deadlines
        if phase not in ("new", "head", "body") or (self._front.draining and phase == "new"):
            return False
        error = expired("body", deadlines.body) if phase == "body" else expired("head", deadlines.head)
        if phase != "body":
            self._begin(None)
        self._keep = False
        self._service.count("clawproxy_http_refused_total", slug=error.slug)
        body = openai_error(error) if self._dialect is None else self._dialect.error_body(error, self._request_id)
        text = self._whole(error.status, [*error_fields(error, self._request_id), *self._extra], body, JSON)
        return await bounded_write(self._wire, text, 1.0)
