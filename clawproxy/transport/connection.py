"""One client connection: its loop of requests, its clocks, its end.

Rule 1: one alarm carries the connection's own clocks (`head`, `idle`, `body`), and cancels the one scope around it all. Then the
        connection ends: after a 408 where a request had begun (or none ever came), silently where it was idle. While an
        exchange is at work it is off; the exchange has clocks of its own.
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
from collections.abc import Mapping

import trio
from attrs import evolve, frozen

from clawproxy.alarms import Alarm
from clawproxy.clocks import expired
from clawproxy.config import Config
from clawproxy.context import Attribution, new_id
from clawproxy.dialects.base import ClientDialect
from clawproxy.errors import ClawError
from clawproxy.http1 import response
from clawproxy.http1.engine import EngineFactory
from clawproxy.http1.head import Head
from clawproxy.http1.headcheck import risky_target
from clawproxy.lifetime import KeptScope, Lifetime
from clawproxy.messages import Credentials
from clawproxy.service import Call, Service
from clawproxy.transport import access, origins
from clawproxy.transport.certificates import peer_of
from clawproxy.transport.front import Front
from clawproxy.transport.http import JSON, Fields, HttpClient, PlainHandler, bounded_write, error_fields, openai_error
from clawproxy.transport.reader import RequestReader
from clawproxy.transport.surfaces import Surfaces, WebSocketSurface
from clawproxy.transport.wire import Stream, Wire

logger = logging.getLogger(__name__)

# Whoever sends these has broken the framing, or their body is not wanted: nothing after them can be trusted to be a request.
_CLOSING = frozenset(
    {"bad_head", "bad_body", "body_too_large", "unsupported_media_type", "auth.ambiguous", "misdirected", "timeout.body"}
    | {"expectation_failed"}
)


@frozen(slots=True)
class Asked:
    """What the head of one request to a dialect says, once it was checked under one configuration: the next request with the
    same head says the same."""

    config: Config
    dialect: ClientDialect
    credentials: Credentials
    extra: Fields
    client_request_id: str | None
    deadline: float | None
    decode_limits: Mapping[str, int]
    attribution: Attribution | None
    cache_control: str | None
    wanted: Mapping[str, str]


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
        self._shown = peer
        """The address, with the client's certificate where it has one: for who authenticates."""
        self._secure = secure
        self._clock = trio.CancelScope()
        self._alarm = Alarm(front.alarms, self._clock.cancel)
        self._reader = RequestReader(self._wire, self._alarm, self._clock, engine, "tls" if secure else "new")
        self._asked: Asked | None = None
        self._kept = KeptScope()
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
        self._no_body = False
        self._limits = service.config.limits

    # --- seen from outside -------------------------------------------------------------------------------------------------

    def hung_up(self) -> None:
        self._gone = True
        if self._lifetime is not None and self._client is not None and not self._client.delivered:
            self._lifetime.hang_up()

    @property
    def at_work(self) -> bool:
        return self._reader.phase in ("request", "body")

    def retire(self) -> None:
        """The service drains: an idle connection ends now, one at work after its answer."""
        if self._reader.phase in ("tls", "new", "idle"):
            self._clock.cancel()

    # --- the loop ----------------------------------------------------------------------------------------------------------

    async def run(self, accepted_at: float) -> None:
        sock, monitor = self._wire.sock, self._front.monitor
        self._front.add(self)
        linger = False
        try:
            self._alarm.set(accepted_at + self._service.deadlines.head)
            with self._clock:
                if await self._handshake():
                    monitor.watch(sock, self)
                    with self._kept:
                        linger = await self._serve()
            if self._clock.cancelled_caught:
                linger = await self._out_of_time()
            monitor.unwatch(sock)
            await self._wire.end(linger=linger)
        except Exception:
            logger.exception("a connection ended with a fault of the gateway")
        finally:
            self._alarm.end()
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
            self._reader.phase = "new"
            self._shown = peer_of(self._peer, stream)
        return True

    async def _serve(self) -> bool:
        """Requests, one after another. Returns whether there is somebody to linger for."""
        service = self._service
        while True:
            config = service.config
            self._limits = limits = config.limits
            try:
                head = await self._reader.head(limits, config.deadlines, first=not self._requests, draining=self._front.draining)
            except ClawError as error:
                self._begin(None)
                await self._refuse(error, close=True)
                return True
            if head is None:
                return False
            self._begin(head)
            if not await self._request(head):
                return True

    def _begin(self, head: Head | None) -> None:
        self._reader.at_work()
        self._requests += 1
        self._request_id = new_id()
        self._dialect = None
        self._extra = ()
        self._no_body = head is not None and head.method == "HEAD"
        self._keep = (
            head is not None
            and head.keep_alive
            and self._requests < self._limits.requests_per_connection
            and not self._front.draining
        )

    async def _request(self, head: Head) -> bool:
        """One request, routed. Returns whether another may follow."""
        surfaces, config = self._surfaces, self._service.config
        asked = self._asked
        if asked is not None and asked.config is config and self._reader.recognised:
            self._extra, self._dialect = asked.extra, asked.dialect
            if self._reader.varied:
                self._asked = asked = evolve(asked, client_request_id=access.client_request_id(head))
            return await self._exchange(head, asked.dialect, asked, config)
        refused = surfaces.check(head, config, self._secure)
        if refused is not None:
            return await self._refuse(refused, head)
        self._extra = origins.cors_headers(head)
        if head.method == "POST":
            dialect = surfaces.http.get(head.path) or surfaces.by_pattern(head.path)
            if dialect is not None:
                self._dialect = dialect
                return await self._exchange(head, dialect, None, config)
        self._dialect = surfaces.speaker(head)
        try:
            if head.method == "GET" and (websocket := surfaces.upgrade_at(head.path)) is not None:
                return await self._upgrade(head, websocket)
            return await self._plain(head, surfaces.handler(head, self._service))
        except ClawError as error:
            return await self._refuse(error, head)

    # --- exchanges ---------------------------------------------------------------------------------------------------------

    def _ask(self, head: Head, dialect: ClientDialect, credentials: Credentials, config: Config) -> Asked:
        """Raises ClawError: unsupported_media_type, invalid_request."""
        access.check_content(head)
        deadline = access.client_deadline(head)
        limits = access.decode_limits(config.limits)
        asked = Asked(
            config,
            dialect,
            credentials,
            self._extra,
            access.client_request_id(head),
            deadline,
            limits,
            access.attribution(head),
            access.cache_control(head),
            access.wanted(head),
        )
        self._asked = asked if self._reader.remember(head) else None
        return asked

    async def _exchange(self, head: Head, dialect: ClientDialect, asked: Asked | None, config: Config) -> bool:
        """Args: asked: None where this head is not the one before."""
        service = self._service
        try:
            credentials = access.read_credentials(head, self._shown, dialect.name) if asked is None else asked.credentials
            principal = await service.authenticate(credentials)
            refused = service.admit()
            if refused is not None:
                raise refused
            if asked is None:
                asked = self._ask(head, dialect, credentials, config)
            body = await self._reader.body(head, self._limits.body, config.deadlines)
        except ClawError as error:
            return await self._refuse(error, head)
        self._lifetime = lifetime = Lifetime(self._kept)
        self._client = client = HttpClient(
            self._wire,
            self._front.pulse,
            head,
            dialect,
            self._request_id,
            extra=self._extra,
            close=not self._keep,
            close_on_error=self._errors + 1 >= self._limits.errors_per_connection,
            write_limit=config.deadlines.write,
        )
        call = Call(
            self._request_id,
            dialect.name,
            principal,
            functools.partial(dialect.decode_request, body, asked.decode_limits, head),
            lifetime,
            self._peer,
            asked.client_request_id,
            asked.deadline,
            attribution=asked.attribution,
            cache_control=asked.cache_control,
            wanted=asked.wanted,
            credentials=credentials,
            size=len(body),
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

    # --- everything else ---------------------------------------------------------------------------------------------------

    async def _plain(self, head: Head, handler: PlainHandler) -> bool:
        try:
            body = b""
            if head.method in ("GET", "HEAD", "OPTIONS"):
                self._keep &= self._reader.drop(head)
            else:
                body = await self._reader.body(head, self._surfaces.plain_body, self._service.deadlines)
            answer = await handler(head, body, self._shown)
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
        leftover, self._reader.leftover = self._reader.leftover, b""
        await websocket(self._wire.stream, head, leftover, self._service, self._shown)
        self._wire.broken = True  # spoken for: nothing of ours may follow
        return False

    # --- answers -----------------------------------------------------------------------------------------------------------

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
            if not self._reader.taken:
                self._keep &= self._reader.drop(head)
        body = openai_error(error) if self._dialect is None else self._dialect.error_body(error, self._request_id)
        fields = [*error_fields(error, self._request_id, self._dialect), *self._extra]
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
        phase, deadlines = self._reader.phase, self._service.deadlines
        if phase == "request" or (self._front.draining and phase in ("tls", "new", "idle")):
            return False
        surface = "none" if self._dialect is None else self._dialect.name
        clock = phase if phase in ("body", "idle") else "head"
        limit: float = getattr(deadlines, clock)
        self._service.cut(clock, limit, surface=surface if clock == "body" else "none", peer=self._peer)
        if phase not in ("new", "head", "body"):
            return False
        error = expired(clock, limit)
        if phase != "body":
            self._begin(None)
        self._keep = False
        self._service.count("clawproxy_http_refused_total", slug=error.slug)
        body = openai_error(error) if self._dialect is None else self._dialect.error_body(error, self._request_id)
        fields = [*error_fields(error, self._request_id, self._dialect), *self._extra]
        text = self._whole(error.status, fields, body, JSON)
        return await bounded_write(self._wire, text, 1.0)
