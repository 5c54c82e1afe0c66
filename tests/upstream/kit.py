"""What the tests of this folder share: a line dialect, a scripted peer on a real socket, and a bench that joins them."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field, frozen

from clawproxy.config import Config, PoolConfig, ProviderConfig, SecretRef
from clawproxy.config.schema import LimitsConfig, Size
from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, End, Event, Failed, Text
from clawproxy.messages import ChatRequest, Route
from clawproxy.secrets import Secret
from clawproxy.testing.factories import make_request
from clawproxy.upstream.answer import Opening
from clawproxy.upstream.dns import Resolver
from clawproxy.upstream.pool import Pool
from clawproxy.upstream.providers import Providers

KEY = "sk-canary-0123456789"


# --- a dialect: one line, one event ----------------------------------------------------------------------------------------


class LineDecoder:
    """`hello\\n` is Text("hello"), `END\\n` is the terminal marker."""

    def __init__(self) -> None:
        self.done = False
        self._rest = b""

    def feed(self, data: bytes) -> Batch | None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        events: list[Event] = []
        for line in lines:
            if line == b"END":
                self.done = True
                events.append(End())
                break
            try:
                events.append(Text(line.decode()))
            except UnicodeDecodeError:
                self.done = True
                events.append(Failed(ClawError("provider_error.malformed")))
                break
        return Batch(events) if events else None

    def close(self) -> Batch | None:
        return Batch([Failed(ClawError("provider_error.cut"))])


class WholeDecoder:
    """The whole body is one Text; what does not end with `.` was cut."""

    def __init__(self) -> None:
        self.done = False
        self._body = b""

    def feed(self, data: bytes) -> Batch | None:
        self._body += data
        return None

    def close(self) -> Batch | None:
        if not self._body.endswith(b"."):
            return Batch([Failed(ClawError("provider_error.cut"))])
        self.done = True
        return Batch([Text(self._body.decode()), End()])


class LineDialect:
    name = "lines"

    def __init__(self, auth_header: str = "authorization") -> None:
        self.auth_header = auth_header
        self.errors: list[tuple[int, Mapping[str, str], bytes]] = []

    def configured(self, provider: ProviderConfig) -> LineDialect:
        return self

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        return OutboundRequest("/say", request.messages[0].text().encode(), stream=request.stream)

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        return LineDecoder() if request.stream else WholeDecoder()

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        self.errors.append((status, headers, body))
        kind = {401: "auth", 429: "rate_limited"}.get(status, "server")
        return ProviderFault(f"provider_error.{kind}")


@define(eq=False)
class RecordedPhases:
    entered: list[str] = field(factory=list)
    sent: bool = False
    step: str = ""

    def enter(self, clock: str) -> None:
        self.entered.append(clock)


# --- a peer that says exactly what a test wants ----------------------------------------------------------------------------


@frozen
class Seen:
    line: str
    headers: list[tuple[str, str]]
    body: bytes
    raw: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class Gone(Exception):
    """The gateway closed the connection."""


class Conversation:
    """The peer's side of one connection."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], number: int, peer: Peer) -> None:
        self.stream = stream
        self.number = number
        self.peer = peer
        self._buffer = b""

    @property
    def socket(self) -> trio.socket.SocketType:
        inner = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        return inner.socket

    async def request(self) -> Seen:
        """The next whole request. Raises Gone."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (f.partition(":") for f in fields)]
        length = int(dict(headers).get("content-length", "0"))
        self._buffer = rest
        while len(self._buffer) < length:
            await self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        seen = Seen(line, headers, body, head + b"\r\n\r\n" + body)
        self.peer.seen.append(seen)
        return seen

    async def say(self, *pieces: bytes) -> None:
        """Each piece in a write of its own, far enough apart to be read apart."""
        for index, piece in enumerate(pieces):
            if index:
                await trio.sleep(0.01)
            await self.stream.send_all(piece)

    async def gone(self) -> None:
        """Wait until the gateway has closed the connection; whatever it still sends is thrown away."""
        try:
            while await self.stream.receive_some(65536):
                pass
        except (trio.BrokenResourceError, OSError):
            pass

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def _more(self) -> None:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise Gone
        self._buffer += data


Script = Callable[[Conversation], Awaitable[None]]


class Peer:
    def __init__(self, script: Script, tls: ssl.SSLContext | None) -> None:
        self.script = script
        self.tls = tls
        self.seen: list[Seen] = []
        self.opened = 0
        self.open = 0
        self.port = 0

    async def serve(self, raw: trio.SocketStream) -> None:
        number, self.opened = self.opened, self.opened + 1
        self.open += 1
        try:
            stream = raw if self.tls is None else trio.SSLStream(raw, self.tls, server_side=True, https_compatible=True)
            await self.script(Conversation(stream, number, self))
        except (Gone, trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            self.open -= 1
            raw.socket.close()


@asynccontextmanager
async def scripted_peer(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    peer = Peer(script, tls)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
        peer.port = listeners[0].socket.getsockname()[1]
        await nursery.start(trio.serve_listeners, peer.serve, listeners)
        try:
            yield peer
        finally:
            nursery.cancel_scope.cancel()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"


def always(*pieces: bytes) -> Script:
    """Answer each request of each connection so."""

    async def script(talk: Conversation) -> None:
        while True:
            await talk.request()
            await talk.say(*pieces)

    return script


def once(*pieces: bytes, reset: bool = False) -> Script:
    """Answer one request of each connection so, and close."""

    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(*pieces)
        if reset:
            await trio.sleep(0.01)
            talk.reset()

    return script


# --- the bench -------------------------------------------------------------------------------------------------------------


@define(eq=False)
class Bench:
    peer: Peer
    providers: Providers
    dialect: LineDialect
    phases: RecordedPhases = field(factory=RecordedPhases)

    def open(
        self,
        prompt: str = "hi",
        *,
        stream: bool = True,
        fair_key: str = "k",
        phases: RecordedPhases | None = None,
        **outbound: Any,
    ) -> Opening:
        request = make_request(prompt, stream=stream)
        if phases is None:
            self.phases = phases = RecordedPhases()
        values: dict[str, Any] = {"path": "/say", "body": prompt.encode(), "stream": stream}
        out = OutboundRequest(**(values | outbound))
        opening = self.providers.open(Route("test", "m"), request, out, phases, fair_key)
        assert isinstance(opening, Opening)
        return opening

    async def ask(self, prompt: str = "hi", **options: Any) -> list[Event]:
        """Every event of one answer."""
        events: list[Event] = []
        async with self.open(prompt, **options) as stream:
            while (batch := await stream.receive()) is not None:
                events += batch.events
        return events

    async def fault(self, **options: Any) -> ProviderFault:
        """The fault one request ends in."""
        try:
            events = await self.ask(**options)
        except ProviderFault as error:
            return error
        raise AssertionError(f"no fault, but {events}")

    @property
    def pool(self) -> Pool[Any]:
        return self.providers._providers["test"].pool

    def counts(self) -> tuple[int, int, int]:
        """active, idle, waiting"""
        figures = self.providers.statistics()["test"]
        return figures.active, figures.idle, figures.waiting


def make_providers(base_url: str | None, speaks: LineDialect | None = None, **changes: Any) -> Providers:
    """One provider named `test`. `response`, `environ` and `resolver` go where they belong, the rest to ProviderConfig."""
    response = changes.pop("response", 64 * 1024 * 1024)
    resolver: Resolver | None = changes.pop("resolver", None)
    environ: Mapping[str, str] = changes.pop("environ", {})
    resolve: Callable[[SecretRef], Secret] = changes.pop("resolve", lambda ref: Secret(ref.value))
    settings = ProviderConfig(**({"dialect": "lines", "base_url": base_url, "api_key": SecretRef("", KEY)} | changes))
    config = Config(providers={"test": settings}, limits=LimitsConfig(response=Size(response)))
    return Providers(config, {"lines": speaks or LineDialect()}, resolve, 1, resolver=resolver, environ=environ)


@asynccontextmanager
async def bench(script: Script, tls: ssl.SSLContext | None = None, **changes: Any) -> AsyncIterator[Bench]:
    """A peer with this script and providers that talk to it. Leaving checks that no place is held."""
    dialect = changes.pop("dialect", None) or LineDialect()
    if "provider_tls" in changes:
        changes["tls"] = changes.pop("provider_tls")
    host = changes.pop("host", "127.0.0.1")
    prefix = changes.pop("prefix", "")
    scheme = "http" if tls is None else "https"
    async with scripted_peer(script, tls) as peer:
        url = changes.pop("base_url", f"{scheme}://{host}:{peer.port}{prefix}")
        providers = make_providers(url, dialect, **changes)
        made = Bench(peer, providers, dialect)
        yield made
        assert made.counts()[0] == made.counts()[2] == 0, repr(made.pool)
        await providers.aclose()


def pool_of(**changes: Any) -> PoolConfig:
    return PoolConfig(**changes)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def eventually(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    """Wait for something another task is about to do."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110, RUF100
            await trio.sleep(0.001)
