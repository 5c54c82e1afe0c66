"""A gateway of one connection type: `serve_websocket` on a real socket with a small scripted service behind it, and a client
that writes raw bytes."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field

from clawproxy.clocks import Deadlines
from clawproxy.config import schema
from clawproxy.context import Attempt, Exchange, new_id
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Begin, End, Finish, Outcome, Text
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest, Credentials, Principal, Route, Usage
from clawproxy.service import Call, Client
from clawproxy.transport.websocket import Connections, serve_websocket

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
MIB = 1024 * 1024


@define(eq=False)
class FakeService:
    """Answers by the prompt: `say a b` (one batch a word), `hang` (one token, then nothing), `flood N` (N batches of 1 KiB,
    counted in `sent`), `big N` (one batch of N bytes), `lone` (a lone surrogate), `fail SLUG`; anything else is said back."""

    config: schema.Config = field(factory=schema.Config)
    deadlines: Deadlines = field(factory=Deadlines)
    principals: dict[str, Principal] = field(factory=lambda: {"good": Principal(key="test-key")})
    authenticated: list[Credentials] = field(factory=list)
    gate: trio.Event | None = None
    """While set and not done, `authenticate` waits."""
    closed: list[tuple[str, Outcome, float]] = field(factory=list)
    """Client's id, outcome, Trio time: once for each exchange, when its books are closed."""
    requests: list[ChatRequest] = field(factory=list)
    running: int = 0
    sent: int = 0
    refusing: ClawError | None = None
    counted: Counter[str] = field(factory=Counter)
    cuts: list[tuple[str, float, str]] = field(factory=list)
    on_handle: Callable[[Exchange], None] | None = None

    async def authenticate(self, credentials: Credentials) -> Principal:
        self.authenticated.append(credentials)
        if self.gate is not None:
            await self.gate.wait()
        if credentials.token == "boom":
            raise RuntimeError("a defect in a plugin")
        if credentials.token == "throttled":
            raise ClawError("auth.throttled", retry_after_ms=1000)
        principal = self.principals.get(credentials.token or "")
        if principal is None:
            raise ClawError("auth.invalid")
        return principal

    def admit(self) -> ClawError | None:
        return self.refusing

    def models(self, principal: Principal) -> Sequence[tuple[str, str]]:
        return []

    def cut(self, clock: str, limit: float, *, surface: str, peer: str) -> None:
        self.cuts.append((clock, limit, surface))

    def count(self, name: str, **labels: str) -> None:
        self.counted[name] += 1

    async def handle(self, call: Call, client: Client) -> Outcome:
        self.running += 1
        exchange = Exchange(request_id=call.request_id, surface=call.surface, principal=call.principal, deadlines=self.deadlines)
        exchange.timing.total = 0.001
        outcome = Outcome("internal")
        try:
            with call.lifetime as scope:
                outcome = await self._answer(call, client, exchange)
            cause = call.lifetime.cause
            if scope.cancelled_caught and cause is not None:
                exchange.attempts[-1].closed_at = 1234.5
                outcome = Outcome(cause.kind.outcome, cause)
                await client.fail(cause)
        except ClawError as error:
            outcome = Outcome(error.kind.outcome, error)
            with trio.CancelScope(shield=True):
                await client.fail(error)
        finally:
            self.running -= 1
            self.closed.append((call.client_request_id or "", outcome, trio.current_time()))
        return outcome

    async def _answer(self, call: Call, client: Client, exchange: Exchange) -> Outcome:
        request = call.decode()
        self.requests.append(request)
        exchange.route = Route("scripted", request.model, "priority")
        exchange.attempts.append(Attempt(new_id(), 1, "first", exchange.route))
        client.attach(exchange, request)
        if self.on_handle is not None:
            self.on_handle(exchange)
        prompt = request.messages[-1].text()
        word, _, rest = prompt.partition(" ")
        if word == "fail":
            raise ClawError(rest)
        if word == "boom":
            raise RuntimeError("a defect in the exchange")
        if word == "hang":
            await client.send(Batch([Text("so")]))
            await trio.sleep_forever()
        elif word == "flood":
            for _ in range(int(rest)):
                await client.send(Batch([Text("x" * 1024)]))
                self.sent += 1
                await trio.lowlevel.checkpoint()
        elif word == "lone":
            await client.send(Batch([Text("x\ud800y\ud83d\ude00")]))
        elif word == "big":
            await client.send(Batch([Text("x" * int(rest))]))
        else:
            words = rest.split(" ") if word == "say" else [prompt]
            for index, said in enumerate(words):
                await client.send(Batch([*([Begin("scripted-1")] if not index else []), Text(said)]))
                await trio.lowlevel.checkpoint()
        exchange.usage = Usage(3, 5)
        exchange.cost_nano = 1_250_000
        await client.send(Batch([Finish("stop"), End()]))
        exchange.timing.total = trio.current_time() - exchange.started
        outcome = Outcome("complete", finish="stop")
        await client.finish(outcome, exchange.usage)
        return outcome


def allow_all(head: Head, config: schema.Config, secure: bool) -> ClawError | None:
    """Stands in for `transport.origins.check_origin`: the tests about origins bring a list."""
    origin = head.all("origin")
    if origin and [o.lower() for o in origin] != list(config.server.origins):
        return ClawError("origin")
    return None


def parse_head(data: bytes) -> tuple[Head, bytes]:
    """What the HTTP transport does before it calls: here just enough to build a `Head`."""
    text, _, leftover = data.partition(b"\r\n\r\n")
    first, *lines = text.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    path, _, query = target.partition("?")
    headers = tuple((name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
    head = Head(method, target, path, query, headers)
    length, coding = head.get("content-length"), head.get("transfer-encoding")
    return Head(method, target, path, query, headers, True, int(length) if length else None, coding == "chunked"), leftover


@define(eq=False)
class Gateway:
    service: FakeService
    port: int
    connections: Connections
    nursery: trio.Nursery
    active: int = 0

    def connect(self, **kwargs: Any) -> Any:
        return connect(self.port, **kwargs)


@asynccontextmanager
async def gateway(service: FakeService | None = None, wrap: Callable[[trio.abc.Stream], trio.abc.Stream] | None = None,
                  **deadlines: float) -> AsyncIterator[Gateway]:  # fmt: skip
    """A listener on 127.0.0.1. After the block no connection may be left: their tasks end by themselves within 5 s."""
    service = service or FakeService()
    if deadlines:
        service.deadlines = Deadlines(**deadlines)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        here = Gateway(service, port, Connections(), nursery)

        async def handler(tcp: trio.SocketStream) -> None:
            stream = tcp if wrap is None else wrap(tcp)
            data = b""
            try:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    data += more
            except trio.BrokenResourceError:
                return
            head, leftover = parse_head(data)
            here.active += 1
            try:
                await serve_websocket(
                    stream, head, leftover, here.service, "127.0.0.1", connections=here.connections, check_origin=allow_all
                )
            finally:
                here.active -= 1

        serving = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[object]) -> None:
            with serving:
                async with trio.open_nursery() as handlers:
                    await trio.serve_listeners(handler, listeners, handler_nursery=handlers, task_status=task_status)

        await nursery.start(serve)
        yield here
        await until(lambda: not here.active, 6)
        assert service.running == 0
        assert len(here.connections) == 0
        serving.cancel()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Look every millisecond; an AssertionError where it does not come true in time."""
    end = trio.current_time() + seconds
    for _ in range(int(seconds * 1000)):
        if condition():
            return
        assert trio.current_time() < end, "it did not happen in time"
        await trio.sleep(0.001)
    raise AssertionError("it did not happen in time")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = b"\0\0\0\0", rsv: int = 0) -> bytes:
    """A client's frame; the mask of zeros keeps it readable."""
    first = (0x80 if fin else 0) | rsv | opcode
    bit = 0 if mask is None else 0x80
    if len(payload) < 126:
        head = bytes((first, bit | len(payload)))
    elif len(payload) < 65536:
        head = bytes((first, bit | 126)) + struct.pack("!H", len(payload))
    else:
        head = bytes((first, bit | 127)) + struct.pack("!Q", len(payload))
    if mask is not None and any(mask):
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return head + (mask or b"") + payload


def message(**fields: Any) -> bytes:
    return frame(1, json.dumps(fields).encode(), mask=os.urandom(4))


def request(ident: str | None, prompt: str, **fields: Any) -> bytes:
    named = {} if ident is None else {"id": ident}
    return message(type="llm_request", model="test-model", prompt=prompt, **named, **fields)


def opening(*headers: str, target: str = "/websocket") -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: gw.test", "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}", *headers]  # fmt: skip
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


@define(eq=False)
class Raw:
    """One client over a raw socket."""

    stream: trio.abc.Stream
    buffer: bytearray = field(factory=bytearray)
    head: bytes = b""

    async def send(self, *data: bytes) -> None:
        await self.stream.send_all(b"".join(data))

    async def _more(self) -> None:
        data = await self.stream.receive_some(65536)
        if not data:
            raise EOFError
        self.buffer += data

    async def read_head(self) -> bytes:
        while b"\r\n\r\n" not in self.buffer:
            await self._more()
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        self.buffer[:] = rest
        self.head = head
        return head

    async def _exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._more()
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def frame(self, timeout: float = 5.0) -> tuple[int, bytes]:
        """The next frame: opcode and payload. EOFError at the end."""
        with trio.fail_after(timeout):
            first, length = await self._exactly(2)
            assert first & 0x70 == 0, "a reserved bit"
            assert not length & 0x80, "a server never masks"
            if length == 126:
                (length,) = struct.unpack("!H", await self._exactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self._exactly(8))
            return first & 0xF, await self._exactly(length)

    async def json(self) -> dict[str, Any]:
        """The next text message; pings and pongs are skipped."""
        while True:
            opcode, payload = await self.frame()
            if opcode in (9, 10):
                continue
            assert opcode == 1, (opcode, payload)
            value = json.loads(payload)
            assert isinstance(value, dict)
            return value

    async def until(self, kind: str, ident: str | None = None) -> list[dict[str, Any]]:
        """Messages up to and with the first of this type (and id)."""
        seen = []
        while True:
            seen.append(await self.json())
            if seen[-1]["type"] == kind and (ident is None or seen[-1].get("id") == ident):
                return seen

    async def closed(self, answer: bool = True) -> int | None:
        """Read to the close frame (and answer it) and to the end of the stream; its code. None where TCP just ended."""
        code: int | None = None
        try:
            while True:
                opcode, payload = await self.frame()
                if opcode == 8:
                    assert code is None, "two close frames"
                    code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                    if answer:
                        await self.send(frame(8, payload))
                else:
                    assert code is None, "a frame behind the close frame"
        except (EOFError, trio.BrokenResourceError):
            return code


@asynccontextmanager
async def connect(
    port: int, *headers: str, token: str | None = "good", target: str = "/websocket", behind: bytes = b"", auth: bool = True
) -> AsyncIterator[Raw]:
    """An upgraded connection, authenticated by header and past its `auth_ok` unless `token` is None."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    raw = Raw(stream)
    try:
        lines = headers if token is None else (*headers, f"Authorization: Bearer {token}")
        await raw.send(opening(*lines, target=target), behind)
        await raw.read_head()
        assert raw.head.startswith(b"HTTP/1.1 101 "), raw.head
        if token is not None and auth:
            assert (await raw.json())["type"] == "auth_ok"
        yield raw
    finally:
        await trio.aclose_forcefully(stream)


async def alive(gw: Gateway) -> None:
    """The server still serves."""
    async with connect(gw.port) as raw:
        await raw.send(request("alive", "say yes"))
        assert (await raw.until("llm_response_end"))[-1]["outcome"] == "complete"
