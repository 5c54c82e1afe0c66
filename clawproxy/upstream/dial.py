"""From a provider's address to a wire that is ready for a request: name look-up, TCP, the proxy's CONNECT, TLS.

Rule 1: whatever interrupts it, Cancelled included, every socket it made is closed before it is left.
Rule 2: several addresses are raced with a head start of 250 ms each (RFC 8305, "Happy Eyeballs", 5), the first to connect wins.
        One address, the usual case behind a cached look-up of a small provider or a proxy, costs no task.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import TYPE_CHECKING

import trio

from clawproxy.config import ProviderTLSConfig
from clawproxy.errors import ProviderFault
from clawproxy.upstream.dns import Address, Resolver
from clawproxy.upstream.faults import fault, unreachable
from clawproxy.upstream.pins import pin_of
from clawproxy.upstream.proxy import Proxy
from clawproxy.upstream.response_parser import BadAnswer, parse_head
from clawproxy.upstream.url import BaseURL
from clawproxy.upstream.wire import TLSWire, Wire

if TYPE_CHECKING:
    from clawproxy.upstream.base import Phases

STAGGER = 0.25
MAX_TUNNEL_HEAD = 16384
NOTHING_MORE = ProviderTLSConfig()


class Dialer:
    """Makes connections to one provider. `context` is None for http."""

    def __init__(
        self,
        name: str,
        url: BaseURL,
        proxy: Proxy | None,
        context: ssl.SSLContext | None,
        resolver: Resolver,
        tls: ProviderTLSConfig = NOTHING_MORE,
    ) -> None:
        self._name = name
        self._url = url
        self._proxy = proxy
        self._context = context
        self._resolver = resolver
        self._server_name = tls.server_name or url.server_name
        self._pins = frozenset(tls.pin)

    async def connect(self, phases: Phases | None = None) -> Wire:
        """`phases` hears how far it got.

        Raises ProviderFault("provider_error.unreachable"), or ClawError("overloaded") where we are out of descriptors."""
        host, port = (self._proxy.host, self._proxy.port) if self._proxy else (self._url.host, self._url.port)
        step = "dns"
        try:
            if phases is not None:
                phases.step = step
            addresses = await self._resolver.resolve(host, port)
            step = "tcp"
            if phases is not None:
                phases.step = step
            try:
                sock = await connect_tcp(addresses)
            except OSError:
                self._resolver.forget(host)
                raise
        except OSError as error:
            raise unreachable(self._name, error, step) from error
        if phases is not None:
            phases.step = "tls"
        return await self._prepare(sock)

    async def _prepare(self, sock: socket.socket) -> Wire:
        wire = Wire(sock)
        try:
            if self._context is None:
                return wire
            if self._proxy is not None:
                await self._tunnel(wire, self._proxy)
            secured = TLSWire(sock, self._context, self._server_name)
            await secured.handshake()
            if self._pins and pin_of(secured.certificate()) not in self._pins:
                raise self._refused("its public key is none of those that are pinned")
            return secured
        except OSError as error:
            wire.close()
            raise unreachable(self._name, error, "tls") from error
        except BaseException:
            wire.close()
            raise

    async def _tunnel(self, wire: Wire, proxy: Proxy) -> None:
        """Ask the proxy for a tunnel (RFC 9110, 9.3.6)."""
        address = self._url.address
        lines = [f"CONNECT {address} HTTP/1.1", f"host: {address}"]
        if proxy.authorization is not None:
            lines.append(f"proxy-authorization: {proxy.authorization.reveal()}")
        await wire.send("\r\n".join([*lines, "", ""]).encode("ascii"))
        answer = bytearray()
        while b"\r\n\r\n" not in answer:
            data = await wire.receive()
            if not data:
                raise self._refused("the proxy closed the connection")
            answer += data
            if len(answer) > MAX_TUNNEL_HEAD:
                raise self._refused("the proxy's answer is too large")
        end = answer.index(b"\r\n\r\n") + 4
        try:
            status = parse_head(answer[:end]).status
        except BadAnswer:
            raise self._refused("the proxy does not speak HTTP/1.1") from None
        if not 200 <= status < 300:
            raise self._refused(f"the proxy answered {status}")
        if len(answer) > end:
            raise self._refused("the proxy spoke into the tunnel")

    def _refused(self, cause: str) -> ProviderFault:
        return fault("unreachable", self._name, cause, sent=False)


async def connect_tcp(addresses: tuple[Address, ...]) -> socket.socket:
    """A connected socket, non-blocking, TCP_NODELAY set. Raises the first address's OSError where none answers."""
    if len(addresses) == 1:
        return await _connect_one(addresses[0])
    race = _Race()
    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(race.run, address, failed, nursery.cancel_scope)
                with trio.move_on_after(STAGGER):
                    await failed.wait()
    except BaseException:
        if race.winner is not None:
            race.winner.close()
        raise
    if race.winner is None:
        raise race.errors[0]
    return race.winner


class _Race:
    def __init__(self) -> None:
        self.winner: socket.socket | None = None
        self.errors: list[OSError] = []

    async def run(self, address: Address, failed: trio.Event, scope: trio.CancelScope) -> None:
        try:
            sock = await _connect_one(address)
        except OSError as error:
            self.errors.append(error)
            failed.set()
            return
        if self.winner is None:
            self.winner = sock
            scope.cancel()
        else:
            sock.close()


async def _connect_one(address: Address) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(where)
        if code in (errno.EINPROGRESS, errno.EINTR):
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        return sock
    except BaseException:
        sock.close()
        raise
