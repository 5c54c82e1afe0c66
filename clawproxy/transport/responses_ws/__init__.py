"""The WebSocket mode of OpenAI Responses, at `GET /v1/responses`. The connection itself (framing, clocks, the one writer) is
`transport.websocket`'s; here is what its messages mean.

Reading order: `serve_responses` here, `session` (what a message does), `lanes` (which response runs when), `client` (the way
back of one response); the format is `dialects.openai_responses.socket`.
"""

from __future__ import annotations

import logging

import trio

from clawproxy.clocks import expired
from clawproxy.context import new_id
from clawproxy.dialects.openai_responses.tools import NAME
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.service import Service
from clawproxy.transport.access import read_credentials
from clawproxy.transport.http import openai_error
from clawproxy.transport.origins import check_origin
from clawproxy.transport.responses_ws.session import ResponsesSession
from clawproxy.transport.websocket import LEFTOVER, Connections, turn_away
from clawproxy.transport.websocket.handshake import refusal, upgrade

__all__ = ["serve_responses"]

logger = logging.getLogger("clawproxy.websocket")


async def serve_responses(
    stream: trio.abc.Stream,
    head: Head,
    leftover: bytes,
    service: Service,
    peer: str,
    *,
    secure: bool = False,
    connections: Connections | None = None,
) -> None:
    """Answer an upgrade request and serve the connection to its end. The stream is closed when this returns.

    A credential that is not accepted is a 401 before the upgrade. Extensions are declined, as the standard allows.
    Args: as `websocket.serve_websocket`. Raises nothing but Cancelled.
    """
    request_id = new_id()
    limits = service.deadlines
    try:
        accepted = upgrade(head, service.config, secure, request_id, check_origin)
        if len(leftover) > LEFTOVER:
            raise ClawError("bad_body", "Too much came before the upgrade was answered.")
        credentials = read_credentials(head, peer, NAME)
        with trio.move_on_after(limits.auth) as scope:
            principal = await service.authenticate(credentials)
        if scope.cancelled_caught:
            service.cut("auth", limits.auth, surface=NAME, peer=str(peer))
            raise expired("auth", limits.auth)
        refused = service.admit()
        if refused is not None:
            raise refused
    except ClawError as error:
        await turn_away(stream, refusal(error, request_id, openai_error(error)), limits.write)
        return
    session = ResponsesSession(stream, service, peer, principal, credentials)
    if connections is not None:
        connections.add(session)
    service.count("clawproxy_websocket_connections_total")
    try:
        await session.run(accepted.response, leftover, None)
    except Exception:  # a defect; one connection must not take the process with it
        logger.exception("websocket connection failed")
    finally:
        if connections is not None:
            connections.discard(session)
