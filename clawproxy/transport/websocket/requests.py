"""One request's task: authenticate its message, hand it to the exchange, make sure that it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from clawproxy.dialects import claw
from clawproxy.errors import ClawError
from clawproxy.messages import Credentials
from clawproxy.service import Call
from clawproxy.transport.websocket.client import ClawClient

if TYPE_CHECKING:
    from clawproxy.transport.websocket.session import Session

logger = logging.getLogger("clawproxy.websocket")


async def run(session: Session, client: ClawClient, frame: Mapping[str, Any], credentials: Credentials) -> None:
    """Serve one `llm_request`. Raises nothing but Cancelled: a defect is the request's own `internal` error."""
    service = session.service
    try:
        with trio.CancelScope() as client.gate:
            await client.turn()
            principal = await service.authenticate(credentials)  # policy is applied to every message
        client.gate = None
        if client.lifetime.cause is not None:
            client.end_with(client.lifetime.cause)
            return
        limit = service.config.limits.messages
        call = Call(
            request_id=client.request_id,
            surface=claw.NAME,
            principal=principal,
            decode=lambda: claw.decode_request(frame, max_messages=limit),
            lifetime=client.lifetime,
            peer=credentials.peer,
            client_request_id=client.id if client.id.isascii() else None,
            deadline=claw.deadline(frame),
        )
        client.settle(await service.handle(call, client))
    except ClawError as error:
        client.end_with(error)
        if error.slug.startswith("auth."):
            session.close(error.kind.close or 4401, cause=error)
    except Exception:
        logger.exception("request %s failed", client.request_id)
        client.end_with(ClawError("internal"))
    finally:
        session.finished(client)
