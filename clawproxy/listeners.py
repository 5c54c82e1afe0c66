"""Sockets to listen on: bound before anything else starts, so that a port in use is said at once and in words."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import trio
from attrs import frozen

from clawproxy.config import ServerConfig
from clawproxy.config.units import Address, parse_address
from clawproxy.errors import ConfigError

BACKLOG = 4096


@frozen
class Bound:
    """A listener and the URL people reach it by."""

    listener: trio.SocketListener
    url: str
    address: Address

    def close(self) -> None:
        self.listener.socket.close()
        if self.address.kind == "unix":
            Path(self.address.path).unlink(missing_ok=True)


async def bind_all(config: ServerConfig) -> tuple[list[Bound], Bound | None]:
    """The client listeners and the admin one. Raises ConfigError naming every address that can not be had."""
    bound: list[Bound] = []
    admin: Bound | None = None
    problems: list[str] = []
    scheme = "https" if config.tls else "http"
    for text in config.listen:
        try:
            bound.append(await _bind(text, scheme, "server.listen"))
        except ConfigError as error:
            problems += error.problems
    if config.admin:
        try:
            admin = await _bind(config.admin, "http", "server.admin")
        except ConfigError as error:
            problems += error.problems
    if problems:
        for each in [*bound, *([admin] if admin else [])]:
            each.close()
        raise ConfigError(problems)
    return bound, admin


async def _bind(text: str, scheme: str, key: str) -> Bound:
    address = parse_address(text)
    try:
        if address.kind == "unix":
            return _bind_unix(address)
        [found, *_] = await trio.socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, where = found
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await sock.bind(where)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ConfigError([f"{key}: {text}: {_reason(error)}"]) from error
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return Bound(trio.SocketListener(sock), f"{scheme}://{shown}:{port}", address)


def _bind_unix(address: Address) -> Bound:
    path = Path(address.path)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()  # left by a process that died
            else:
                raise OSError(98, "Address already in use")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return Bound(trio.SocketListener(trio.socket.from_stdlib_socket(sock)), f"unix:{path}", address)


def _reason(error: OSError) -> str:
    words = {
        98: "the address is in use; stop what listens there, or choose another port (0 picks a free one)",
        99: "this machine has no such address; use 127.0.0.1, or 0.0.0.0 for every interface",
        13: "permission denied; choose a port from 1024 up, or a path this user may write",
        2: "the folder of this socket does not exist",
    }
    return words.get(error.errno or 0, (error.strerror or type(error).__name__).lower())
