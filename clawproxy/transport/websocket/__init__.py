"""The Claw WebSocket, version 1, on an HTTP connection whose head asked for it. The public page is `docs/protocol.md`.

Reading order: `serve_websocket` here, `handshake` (the upgrade), `session` (the connection), `messages` (what each type means),
`client` (the way back of one request), `outbox` (the one writer), `frames` (bytes).
"""

from __future__ import annotations

import importlib
import logging
from typing import cast

import trio

from clawproxy.context import new_id
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.service import Service
from clawproxy.transport.certificates import Peer, shown
from clawproxy.transport.websocket.connections import Connections
from clawproxy.transport.websocket.handshake import OriginCheck, refusal, upgrade
from clawproxy.transport.websocket.session import Session

__all__ = ["Connections", "serve_websocket", "turn_away"]

logger = logging.getLogger("clawproxy.websocket")
LEFTOVER = 64 * 1024
"""Bytes that may come in the same segments as the head (W-35)."""


async def serve_websocket(
    stream: trio.abc.Stream,
    head: Head,
    leftover: bytes,
    service: Service,
    peer: str,
    *,
    secure: bool = False,
    connections: Connections | None = None,
    check_origin: OriginCheck | None = None,
) -> None:
    """Answer an upgrade request and serve the connection to its end. The stream is closed when this returns.

    Args:
        head: a GET of HTTP/1.1 that passed the strict check; the version is the caller's to check.
        leftover: what came behind the head, not parsed by anybody.
        peer: the client's address, as `authenticate` is to know it.
        secure: the connection is TLS, or a trusted proxy says so.
        connections: where the connection is listed while it is open.
        check_origin: instead of `transport.origins.check_origin`.
    Raises nothing but Cancelled.
    """
    if check_origin is None:
        check_origin = cast("OriginCheck", importlib.import_module("clawproxy.transport.origins").check_origin)
    request_id = new_id()
    try:
        accepted = upgrade(head, service.config, secure, request_id, check_origin)
        refused = service.admit()
        if refused is not None:
            raise refused
        if len(leftover) > LEFTOVER:
            raise ClawError("bad_body", "Too much came before the upgrade was answered.")
    except ClawError as error:
        await turn_away(stream, refusal(error, request_id), service.deadlines.write)
        return
    token = accepted.token
    if token is None and isinstance(peer, Peer) and await _is_known(peer, service):
        token = ""  # none: its certificate is enough, and no `auth` has to be waited for
    session = Session(stream, service, peer)
    if connections is not None:
        connections.add(session)
    service.count("clawproxy_websocket_connections_total")
    try:
        await session.run(accepted.response, leftover, token)
    except Exception:  # a defect; one connection must not take the process with it
        logger.exception("websocket connection failed")
    finally:
        if connections is not None:
            connections.discard(session)


async def _is_known(peer: str, service: Service) -> bool:
    """Whether this client's certificate is a key by itself. One that is not says nothing: an `auth` may still come."""
    with trio.move_on_after(service.deadlines.auth):
        try:
            await service.authenticate(shown(None, peer, Session.speech.name))
        except ClawError as error:
            return error.slug != "auth.missing"  # then the session says so
        return True
    return False


async def turn_away(stream: trio.abc.Stream, answer: bytes, limit: float) -> None:
    """Send a refusal, then wait a moment for the client to read it: closing on unread bytes would reset it away."""
    try:
        with trio.move_on_after(limit):
            await stream.send_all(answer)
            if isinstance(stream, trio.SocketStream):
                await stream.send_eof()
                with trio.move_on_after(1.0):
                    read = 0
                    while read < LEFTOVER and (data := await stream.receive_some(LEFTOVER)):
                        read += len(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)
