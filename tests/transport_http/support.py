"""A small real service behind the connection loop, and a raw client."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define, field, frozen

from clawproxy.clocks import Deadlines
from clawproxy.config import Config
from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.errors import ClawError
from clawproxy.events import Batch, End, Event, Finish, Notice, Outcome, Text
from clawproxy.http1.engine import select
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest, Credentials, Message, Principal, Route, Usage
from clawproxy.service import Call, Client, Service
from clawproxy.transport.connection import serve_connection
from clawproxy.transport.front import Front
from clawproxy.transport.http import openai_error
from clawproxy.transport.surfaces import Surfaces
from clawproxy.transport.wire import Stream

CORPUS = Path(__file__).parent.parent / "corpus" / "http"
KEY = os.environ.get("CLAWPROXY_TEST_KEY", "K")
MODEL = os.environ.get("CLAWPROXY_TEST_MODEL", "m")
TARGET = os.environ.get("CLAWPROXY_TEST_TARGET")
PATH = "/v1/chat/completions"
BODY = b'{"model":"%b","messages":[{"role":"user","content":"hi"}]}' % MODEL.encode()
P = f"POST {PATH} HTTP/1.1\r\nHost: gw.test\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"


def post(body: bytes | Mapping[str, Any] = BODY, *headers: str, version: str = "1.1", key: str = KEY) -> bytes:
    """A whole, well-formed request. A mapping is what the small service is told to do."""
    content = body if isinstance(body, bytes) else jsonio.encode({"model": MODEL} | dict(body))
    lines = [
        f"POST {PATH} HTTP/{version}",
        "Host: gw.test",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content


def get(path: str = "/v1/models", *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: gw.test", f"Authorization: Bearer {KEY}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


# --- the corpus ------------------------------------------------------------------------------------------------------------


@frozen
class Case:
    id: str
    data: bytes
    status: tuple[int, ...]
    closes: bool = True
    either: bool = False
    """Whether it closes depends on what had arrived: both are right."""
    then: tuple[int, ...] = ()
    """The status of a second answer, where the bytes hold a second request."""


def _join(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    if isinstance(parts, dict):
        return _join(parts["repeat"]) * int(parts["times"])
    return "".join(_join(part) for part in parts)


def corpus(name: str) -> Iterator[Case]:
    with (CORPUS / f"{name}.toml").open("rb") as file:
        rows = tomllib.load(file)["case"]
    body = BODY.decode()
    for row in rows:
        text = _join(row["send"]).replace("$C", P + "Transfer-Encoding: chunked\r\n\r\n").replace("$P", P)
        for number, each in enumerate(row.get("each", [""])):
            data = text.replace("$EACH", each).replace("$BODY", body).replace("$SIZE", f"{len(body):x}")
            data = data.replace("$LENGTH", str(len(body)))
            yield Case(
                row["id"] + (f"-{number}" if "each" in row else ""),
                data.replace("Bearer K\r", f"Bearer {KEY}\r").encode("latin-1"),
                tuple(row["status"]),
                row.get("closes", True),
                row.get("either", False),
                tuple(row.get("then", ())),
            )


# --- the service -----------------------------------------------------------------------------------------------------------


class Encoder:
    content_type: str

    def __init__(self, stream: bool) -> None:
        self.content_type = "text/event-stream" if stream else "application/json"
        self._stream = stream
        self._texts: list[str] = []

    def encode(self, batch: Batch) -> bytes:
        texts = [event.text for event in batch.events if type(event) is Text]
        if self._stream:
            return b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)
        self._texts += texts
        return b""

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        return b"data: [DONE]\n\n" if self._stream else jsonio.encode({"text": "".join(self._texts)})

    def fail(self, error: ClawError) -> bytes:
        return b"data: " + openai_error(error) + b"\n\n"

    def keepalive(self) -> bytes:
        return b": claw\n\n" if self._stream else b""


class Dialect:
    """A ClientDialect whose requests say what the service shall do (see `Small.handle`)."""

    name = "openai_chat"

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        document = jsonio.decode(body, depth=config_limits["json_depth"])
        if not isinstance(document, dict) or "model" not in document:
            raise ClawError("invalid_request", param="model")
        stream = document.get("stream", False)
        return ChatRequest(document["model"], (Message("user", "hi"),), stream, dialect=self.name, extra=document)

    def answer(self, exchange: Exchange, request: ChatRequest) -> Encoder:
        return Encoder(request.stream)

    def error_body(self, error: ClawError, request_id: str) -> bytes:
        return openai_error(error)


@define(eq=False)
class Small:
    """`service.Service`. A request may hold `say` (a list of texts), `pause` (seconds before each), `size` (bytes of each text),
    `fail` (a slug, after the texts), `hold` (wait for ever after them), `close` (seconds between the provider's end and the
    answer's), `cancel` (itself, before this text or the "end"), `after` (seconds of work once it was answered)."""

    config: Config = field(factory=Config)
    refuse: ClawError | None = None
    handled: int = 0
    authenticated: int = 0
    calls: list[Call] = field(factory=list)
    outcomes: list[Outcome] = field(factory=list)
    ended_at: list[float] = field(factory=list)
    started: trio.Event = field(factory=trio.Event)
    finished: trio.Event = field(factory=trio.Event)
    sends: int = 0
    cuts: list[tuple[str, float, str]] = field(factory=list)

    @property
    def deadlines(self) -> Deadlines:
        return self.config.deadlines

    async def authenticate(self, credentials: Credentials) -> Principal:
        self.authenticated += 1
        await trio.lowlevel.checkpoint()
        if credentials.token is None:
            raise ClawError("auth.missing")
        if credentials.token != KEY:
            raise ClawError("auth.invalid")
        return Principal("bench")

    def admit(self) -> ClawError | None:
        return self.refuse

    async def handle(self, call: Call, client: Client) -> Outcome:
        self.handled += 1
        self.calls.append(call)
        self.started.set()
        outcome = Outcome("internal")
        try:
            with call.lifetime as scope:
                outcome = await self._run(call, client)
            if scope.cancelled_caught:
                cause = call.lifetime.cause or ClawError("internal")
                outcome = Outcome(cause.kind.outcome, cause)
                with trio.move_on_after(1, shield=True):
                    await client.fail(cause)
        finally:
            self.outcomes.append(outcome)
            self.ended_at.append(trio.current_time())
            self.finished.set()
        return outcome

    async def _run(self, call: Call, client: Client) -> Outcome:
        try:
            request = call.decode()
            exchange = Exchange(call.request_id, call.surface, call.principal, self.deadlines)
            exchange.route = Route("prov\r\nider", MODEL)
            exchange.notices.append(Notice("test_notice", "A notice."))
            client.attach(exchange, request)
            say = request.extra
            for text in say.get("say", ["hello", " world"]):
                await trio.sleep(say.get("pause", 0))
                if say.get("cancel") == text:
                    call.lifetime.cancel(ClawError("shutting_down"))
                events: Sequence[Event] = (Text(text * say.get("size", 1)),)
                await client.send(Batch(events))
                self.sends += 1
            if say.get("hold"):
                await trio.sleep_forever()
            if "fail" in say:
                raise ClawError(say["fail"], retry_after_ms=1500)
            await client.send(Batch((Finish("stop"), End()) if "close" in say else (Finish("stop"),)))
            await trio.sleep(say.get("close", 0))
            if say.get("cancel") == "end":
                call.lifetime.cancel(ClawError("shutting_down"))
            await client.finish(Outcome("complete"), None)
            await trio.sleep(say.get("after", 0))
        except ClawError as error:
            await client.fail(error)
            return Outcome(error.kind.outcome, error)
        return Outcome("complete")

    def models(self, principal: Principal) -> Sequence[tuple[str, str]]:
        return [("m", "prov"), ("prov/other", "prov")]

    def cut(self, clock: str, limit: float, *, surface: str, peer: str) -> None:
        self.cuts.append((clock, limit, surface))

    def count(self, name: str, **labels: str) -> None:
        assert labels.keys() <= {"slug"}


# --- the gateway's door, and a client --------------------------------------------------------------------------------------


@define(eq=False)
class Door:
    service: Small
    front: Front
    address: tuple[str, int]
    serving: int = 0
    connections: int = 0
    quiet: trio.Event = field(factory=trio.Event)
    """Set whenever the last connection has ended."""
    clients: list[Raw] = field(factory=list)

    async def connect(self, *, buffer: int = 0) -> Raw:
        sock = trio.socket.socket()
        if buffer:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, buffer)
        await sock.connect(self.address)
        sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        raw = Raw(trio.SocketStream(sock))
        self.clients.append(raw)
        return raw

    async def rest(self) -> None:
        """Until no connection is served."""
        with trio.fail_after(3):
            await self.quiet.wait()
        assert self.serving == 0


async def take_websocket(stream: Stream, head: Head, leftover: bytes, service: Service, peer: str) -> None:
    """Stands for the WebSocket surface: says what it was given."""
    await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nx-request-id: ws\r\n\r\n" + leftover)


@asynccontextmanager
async def opened(
    config: Config | None = None,
    *,
    engine: str | None = None,
    surfaces: Surfaces | None = None,
    front: Front | None = None,
    wrap: Callable[[trio.SocketStream], Any] | None = None,
    sndbuf: int = 0,
) -> AsyncIterator[Door]:
    """A listener on 127.0.0.1 with the loop of `serve_connection` behind it."""
    small = Small(config or Config())
    served = surfaces or Surfaces({PATH: Dialect()}, websocket=take_websocket)
    shared = front or Front(pulse_step=0.02)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    door = Door(small, shared, listener.socket.getsockname()[:2])

    async def serve(stream: trio.SocketStream) -> None:
        if not door.serving:
            door.quiet = trio.Event()
        door.serving += 1
        door.connections += 1
        if sndbuf:
            stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, sndbuf)
        try:
            factory = select(engine) if engine else None
            await serve_connection(
                wrap(stream) if wrap else stream, small, served, shared, "127.0.0.1", secure=wrap is not None, engine=factory
            )
        finally:
            door.serving -= 1
            if not door.serving:
                door.quiet.set()

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, serve, [listener])
            nursery.start_soon(shared.run)
            try:
                yield door
            finally:
                for raw in door.clients:
                    raw.close()
                nursery.cancel_scope.cancel()
    finally:
        shared.close()


_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n")


@frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Raw:
    """A client that writes what it is told to and reads answers by RFC 9112, strictly enough for tests."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def more(self) -> bool:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        self.buffer += data
        return bool(data)

    async def until(self, marker: bytes, seconds: float = 5) -> bytes:
        with trio.fail_after(seconds):
            while marker not in self.buffer:
                assert await self.more(), f"ended early: {self.buffer[-300:]!r}"
        before, _, self.buffer = self.buffer.partition(marker)
        return before + marker

    async def answer(self, *, head_only: bool = False, seconds: float = 5) -> Answer:
        """The next final answer."""
        head = await self.until(b"\r\n\r\n", seconds)
        match = _STATUS.match(head)
        assert match is not None, head
        status = int(match[1])
        if status == 100:
            return await self.answer(seconds=seconds)
        headers: dict[str, str] = {}
        for line in head[match.end() : -4].split(b"\r\n"):
            name, colon, value = line.partition(b":")
            assert colon, line
            headers[name.decode("ascii").lower()] = value.strip().decode("ascii")
        body = b""
        if head_only or status in (204, 304):
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await self.until(b"\r\n", seconds), 16):
                body += await self._exactly(size, seconds)
                assert await self._exactly(2, seconds) == b"\r\n"
            assert await self._exactly(2, seconds) == b"\r\n"
        elif "content-length" in headers:
            body = await self._exactly(int(headers["content-length"]), seconds)
        else:
            body = await self.rest(seconds)
        return Answer(status, headers, body)

    async def _exactly(self, size: int, seconds: float) -> bytes:
        with trio.fail_after(seconds):
            while len(self.buffer) < size:
                assert await self.more(), f"ended early: {self.buffer[-300:]!r}"
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    async def rest(self, seconds: float = 3) -> bytes:
        """Everything until the other side's end."""
        with trio.fail_after(seconds):
            while await self.more():
                pass
        data, self.buffer = self.buffer, b""
        return data

    def close(self) -> None:
        self.stream.socket.close()

    def reset(self) -> None:
        self.stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.close()
