"""What an HTTP client gets: answers of exchanges (`HttpClient`), errors, and plain responses.

Rule 1: at most one write for each `send`. The first carries the head as well, the last the end of the body.
Rule 2: an error before the first byte is a status and the dialect's error body; after it, the dialect's error event and a
        clean end of the body.
Rule 3: once a write failed or was cancelled nothing is written any more, and the connection closes.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping

import trio
from attrs import field, frozen

from clawproxy.context import Exchange, Timing
from clawproxy.dialects import jsonio
from clawproxy.dialects.base import AnswerEncoder, ClientDialect
from clawproxy.errors import ClawError
from clawproxy.events import Batch, End, Notice, Outcome
from clawproxy.http1 import response
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest, Usage
from clawproxy.transport.pulse import Pulse
from clawproxy.transport.wire import Wire

Fields = tuple[tuple[str, str], ...]
JSON = "application/json"
_MAX_NOTICES = 16


@frozen(slots=True)
class PlainResponse:
    """A whole answer of a plain route."""

    status: int = 200
    content_type: str = JSON
    body: bytes = b""
    headers: Mapping[str, str] = field(factory=dict)


PlainHandler = Callable[[Head, bytes, str], Awaitable[PlainResponse]]
"""`await handler(head, body, peer)`. May raise ClawError."""


def id_header(dialect: ClientDialect | None) -> str:
    """The header in which clients of this dialect look for their request's id, besides `x-request-id`; "" for none."""
    name: str = getattr(dialect, "request_id_header", "")
    return name


def openai_error(error: ClawError) -> bytes:
    """The error document of OpenAI's shape, for whatever has no dialect of its own."""
    kind = error.kind
    return jsonio.encode(
        {
            "error": {
                "message": error.message,
                "type": kind.openai_type,
                "param": error.details.param,
                "code": kind.openai_code or kind.slug,
            }
        }
    )


def error_fields(error: ClawError, request_id: str, dialect: ClientDialect | None = None) -> list[tuple[str, str]]:
    """The headers an error's answer carries."""
    headers = [("x-request-id", request_id)]
    also = id_header(dialect)
    if also:
        headers.append((also, request_id))
    wait = error.details.retry_after_ms
    if wait is not None:
        headers.append(("retry-after", str(max(1, math.ceil(wait / 1000)))))
        headers.append(("retry-after-ms", str(max(0, wait))))
    if error.slug == "budget.exhausted":
        headers.append(("x-should-retry", "false"))
    if error.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    elif error.slug == "method_not_allowed" and "allow" in error.details.extra:
        headers.append(("allow", error.details.extra["allow"]))
    elif error.slug == "upgrade_required":
        headers += [("upgrade", "websocket"), ("sec-websocket-version", "13")]
    return headers


_SOME = "policy;dur=%.3f, first_token;dur=%.3f, upstream;dur=%.3f"
_ALL = _SOME + ", gateway;dur=%.3f, total;dur=%.3f"


def server_timing(timing: Timing) -> str:
    """The value of `Server-Timing`, in milliseconds: phases not reached are left out, and all of them may be.

    The two common cases, a whole answer and the beginning of a stream over a pooled connection, are one template each: 1.5 us
    instead of 7."""
    policy, token, upstream, total = timing.policy, timing.first_token, timing.upstream, timing.total
    pooled = timing.queue is timing.connect is timing.prompt is None
    if pooled and policy is not None and token is not None and upstream is not None:
        if total is None:
            return _SOME % (policy * 1000, token * 1000, upstream * 1000)
        gateway = total - upstream
        return _ALL % (policy * 1000, token * 1000, upstream * 1000, gateway * 1000 if gateway > 0 else 0.0, total * 1000)
    return ", ".join([f"{name};dur={value:.3f}" for name, value in timing.milliseconds().items()])


class HttpClient:
    """The way back to one request's client: `service.Client` over HTTP."""

    __slots__ = (
        "_chunked",
        "_close",
        "_close_on_error",
        "_dialect",
        "_encoder",
        "_exchange",
        "_extra",
        "_id_line",
        "_keepalive",
        "_last",
        "_limit",
        "_pulse",
        "_quiet_since",
        "_request_id",
        "_stream",
        "_wire",
        "committed",
        "delivered",
        "ended",
        "status",
    )

    def __init__(
        self,
        wire: Wire,
        pulse: Pulse,
        head: Head,
        dialect: ClientDialect,
        request_id: str,
        *,
        extra: Fields = (),
        close: bool = False,
        close_on_error: bool = False,
        write_limit: float = 60.0,
    ) -> None:
        self._wire = wire
        self._pulse = pulse
        self._chunked = head.version == "1.1"
        self._dialect = dialect
        self._request_id = request_id
        also = id_header(dialect)
        self._id_line = f"{also}: {request_id}\r\n" if also else ""
        self._extra = extra
        self._close = close
        self._close_on_error = close_on_error
        self._limit = write_limit
        self._exchange: Exchange | None = None
        self._encoder: AnswerEncoder | None = None
        self._stream = False
        self._keepalive = b""
        self._last = b""
        """The bytes that end with the provider's terminal marker: they wait for the end of the body, which follows at once."""
        self._quiet_since: float | None = None
        self.committed = False
        """The head of a streaming answer is on its way."""
        self.ended = False
        """The answer is whole; nothing more is written."""
        self.delivered = False
        """And the kernel has taken all of it: a client that leaves now has what it asked for."""
        self.status = 0
        """0 until one was sent."""

    @property
    def keep(self) -> bool:
        """Whether the connection may serve another request."""
        return self.delivered and not self._close and not self._wire.broken

    # --- service.Client ----------------------------------------------------------------------------------------------------

    def attach(self, exchange: Exchange, request: ChatRequest) -> None:
        self._exchange = exchange
        self._encoder = self._dialect.answer(exchange, request)
        self._stream = request.stream
        self._limit = exchange.deadlines.write
        if request.stream and exchange.deadlines.keepalive_sse < math.inf:
            self._keepalive = self._encoder.keepalive()
            if self._keepalive:
                self._pulse.add(self)

    async def send(self, batch: Batch) -> None:
        assert self._encoder is not None
        data = self._encoder.encode(batch)
        if not self._stream:
            return
        # `_framed` in line: this is what every batch but the first is.
        framed = b"%x\r\n%b\r\n" % (len(data), data) if data and self.committed and self._chunked else self._framed(data)
        if self._last:
            framed, self._last = self._last + framed, b""
        if batch.events and type(batch.events[-1]) is End:
            self._last = framed
        elif framed:
            await self._wire.write(framed, self._limit)

    def seam(self, notice: Notice) -> None:
        """The answer goes on behind a cut: a comment, before what comes next, where clients of the format skip comments."""
        if self._stream and self.committed and self._encoder is not None and self._encoder.keepalive():
            words = " ".join(f"{name}={response.escaped(str(value))}" for name, value in notice.details.items())
            self._last += self._framed(f": {notice.code} {words}\n\n".encode())

    async def finish(self, outcome: Outcome, usage: Usage | None) -> None:
        """Raises what `send` raises."""
        if self.ended or self._wire.broken:
            return
        assert self._encoder is not None
        data = self._encoder.finish(outcome, usage)
        self._end()
        if self._stream:
            await self._wire.write(self._last + self._framed(data) + self._tail(), self._limit)
            self.delivered = True
            return
        self.status = 200
        kind = self._encoder.content_type
        text = response.whole(200, self._extra, data, lines=self._lines(), content_type=kind, close=self._close)
        await self._wire.write(text, self._limit)
        self.delivered = True

    async def fail(self, error: ClawError) -> None:
        """Raises nothing: a client that can not be told is gone."""
        if self.ended or self._wire.broken:
            return
        self._end()
        if error.slug == "client_gone" or (error.status == 499 and not self.committed):
            self._close = True
            return
        if self.committed:
            assert self._encoder is not None
            data = self._encoder.fail(error)
            text = self._last + self._framed(data) + self._tail()
        else:
            self._close |= self._close_on_error and error.status < 500
            self.status = error.status
            body = self._dialect.error_body(error, self._request_id)
            headers = [*error_fields(error, self._request_id, self._dialect), *self._extra]
            text = response.whole(error.status, headers, body, content_type=JSON, close=self._close)
        try:
            await self._wire.write(text, self._limit)
        except ClawError:
            self._close = True
        else:
            self.delivered = True

    # --- framing -----------------------------------------------------------------------------------------------------------

    def _framed(self, data: bytes) -> bytes:
        """The bytes to write for `data`, with the head in front the first time."""
        if data and self._chunked:
            data = response.chunk(data)
        if self.committed:
            return data
        assert self._encoder is not None
        self._close |= not self._chunked
        self.committed = True
        self.status = 200
        head = response.stream_head(
            self._extra, lines=self._lines(), content_type=self._encoder.content_type, chunked=self._chunked, close=self._close
        )
        return head + data

    def _tail(self) -> bytes:
        return response.LAST_CHUNK if self._chunked else b""

    def _lines(self) -> str:
        """The answer's own header lines, none of which needs a check (`response`, Rule 4)."""
        lines = f"x-request-id: {self._request_id}\r\n{self._id_line}"
        exchange = self._exchange
        if exchange is not None:
            route = exchange.route
            if route is not None:
                way = response.pair(route.provider, route.model)
                if route.strategy != "priority" and route.recorded is None:
                    way += f"; strategy={response.escaped(route.strategy)}; reason={response.escaped(route.reason)}"
                lines += f"x-claw-route: {way}\r\n"
            if exchange.notices:
                codes = dict.fromkeys(response.escaped(notice.code) for notice in exchange.notices[:_MAX_NOTICES])
                lines += f"x-claw-notice: {', '.join(codes)}\r\n"
            for name, value in exchange.answer_headers:
                lines += f"{name}: {response.escaped(value)}\r\n"
            timing = server_timing(exchange.timing)
            if timing:
                lines += f"server-timing: {timing}\r\n"
        return lines

    def _end(self) -> None:
        self.ended = True
        self.release()

    def release(self) -> None:
        """No keep-alives any more."""
        if self._keepalive:
            self._pulse.discard(self)

    # --- keep-alive --------------------------------------------------------------------------------------------------------

    def pulse(self, now: float) -> Callable[[], Awaitable[None]] | None:
        """Called by the ticker between the exchange's writes. Returns what needs a task of its own (over TLS), or None."""
        assert self._exchange is not None
        if self._wire.touched or self._quiet_since is None:
            # The first look, or something was written since the last one: the silence begins now.
            self._wire.touched = False
            self._quiet_since = now
            return None
        if self.ended or self._last or now - self._quiet_since < self._exchange.deadlines.keepalive_sse:
            return None  # what waits in `_last` may begin with the head
        self._quiet_since = now
        if self._wire.needs_task:
            return self._pulse_later
        if not self._wire.busy:
            self._write_pulse()
        return None

    def _write_pulse(self) -> None:
        was = self.committed
        if self._wire.write_now(self._framed(self._keepalive)):
            self._exchange.spoke = self._quiet_since  # type: ignore[union-attr]  # it pulses
        elif not was:
            # The kernel took nothing, so the head is still to be sent.
            self.committed, self.status = False, 0

    async def _pulse_later(self) -> None:
        if self._wire.busy or self.ended or self._last:
            return
        try:
            await self._wire.write(self._framed(self._keepalive), self._limit)
            self._exchange.spoke = self._quiet_since  # type: ignore[union-attr]  # it pulses
        except ClawError:
            pass  # the exchange's next write, or the hang-up monitor, finds out as well


async def bounded_write(wire: Wire, data: bytes, limit: float) -> bool:
    """Write an answer nobody waits for but the client: False where it could not be written."""
    with trio.move_on_after(limit):
        try:
            await wire.write(data, limit)
        except ClawError:
            return False
        return True
    return False
