"""One connection in the WebSocket mode of Responses: `websocket.session.Session`, with other messages.

Rule 1: a message that is wrong is answered with an `error` event; the connection goes on. Fifty of them at once end it.
Rule 2: each `response.create` is authenticated anew and runs as an exchange of its own, like one over HTTP. Only warming up
        asks nothing of anybody but the auth.
Rule 3: after `LIFE` seconds no response begins any more; the connection ends with the last that runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import trio

from clawproxy.context import Exchange, new_id
from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_responses.socket import History, error_event, lane_of, read_create
from clawproxy.dialects.openai_responses.tools import NAME
from clawproxy.errors import ClawError
from clawproxy.events import Outcome
from clawproxy.messages import Credentials, Principal
from clawproxy.service import Service
from clawproxy.transport.responses_ws.client import ResponseClient
from clawproxy.transport.responses_ws.lanes import ACTIVE, Lanes
from clawproxy.transport.websocket.messages import Speech
from clawproxy.transport.websocket.requests import Asker
from clawproxy.transport.websocket.revoking import turn_down
from clawproxy.transport.websocket.session import Session

logger = logging.getLogger("clawproxy.websocket")

FRAME: Final = 4 * 1024 * 1024
"""Bytes of one message, where the configuration does not say less."""
LIFE: Final = 3600.0


def _receive(session: ResponsesSession, data: bytes) -> None:
    """Decide one message."""
    lane = None
    try:
        frame = jsonio.decode(data, depth=session.service.config.limits.json_depth)
        if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
            raise ClawError("bad_frame", "A message must be one JSON object, with a `type`.")
        lane = lane_of(frame)
        session.message(frame, len(data))
    except ClawError as error:
        if error.status < 429:  # else it is the time that is wrong, and not the message
            session.offence()
        session.reply(error_event(error, lane))


class ResponsesSession(Session):
    """Args: principal, credentials: as the upgrade was authenticated."""

    speech: ClassVar[Speech] = Speech(NAME, _receive, error_event, 1003)
    __slots__ = ("_history", "_lanes", "_old", "_retiring")

    def __init__(
        self, stream: trio.abc.Stream, service: Service, peer: str, principal: Principal, credentials: Credentials
    ) -> None:
        super().__init__(stream, service, peer)
        self.principal, self.credentials = principal, credentials
        self._reader.raise_limit(min(FRAME, int(service.config.limits.frame)))
        self._lanes: Lanes[ResponseClient] = Lanes(service.config.limits.in_flight_per_connection or ACTIVE)
        self._history = History()
        self._old = self._retiring = False

    def message(self, frame: Mapping[str, Any], size: int) -> None:
        """Raises ClawError where it can not be done."""
        kind = frame["type"]
        if kind == "response.create":
            if self._old:
                raise ClawError("websocket_connection_limit_reached")
            refused = self.service.admit()
            if refused is not None:
                raise refused
            create = read_create(frame, size)
            client = ResponseClient(create, new_id(), self._outbox, self._history, self.finished)
            self._begin(self._lanes.add(create.lane, size, client))
        elif kind == "response.steer":
            raise ClawError("unsupported_parameter", "Steering is not served here.", param="type")
        elif kind != "response.processed":  # Codex's word that it has done with an answer
            raise ClawError("invalid_request", "This type of message is not known.", param="type")

    def _begin(self, clients: list[ResponseClient]) -> None:
        for client in clients:
            if client.create.generate:
                self.start(client, client.decode, None)
            else:
                assert self._nursery is not None
                self.streams[client.id] = client
                self._nursery.start_soon(self._warm_up, client)

    async def _warm_up(self, client: ResponseClient) -> None:
        """Answer a `generate: false`. Raises nothing but Cancelled."""
        service, credentials = self.service, self.credentials
        assert credentials is not None
        try:
            with trio.CancelScope() as client.gate:
                principal = await service.authenticate(credentials)
                request = client.decode(service.config.limits.messages)
                exchange = Exchange(client.request_id, NAME, principal, service.deadlines, requested_model=request.model)
                client.attach(exchange, request)
                await client.finish(Outcome("complete", finish="stop"), None)
            if not client.over:
                client.end_with(client.lifetime.cause or ClawError("client_gone"))
        except ClawError as error:
            client.end_with(error)
            if error.slug.startswith("auth."):
                turn_down(self, client, error)
        except Exception:
            logger.exception("warming up failed")
            client.end_with(ClawError("internal"))
        finally:
            client.gate = None
            self.finished(client)

    def finished(self, client: Asker) -> None:
        """A response is over: the next of its lane begins."""
        if self.streams.get(client.id) is not client or not isinstance(client, ResponseClient):
            return
        super().finished(client)
        if self._close_by is None:
            self._begin(self._lanes.done(client.create.lane))
            self._rest()

    def hang_up(self, cause: ClawError) -> None:
        self._lanes.clear()
        super().hang_up(cause)

    # --- the end of its life ---------------------------------------------------------------------------------------------------

    def going_away(self, deadline: float) -> None:
        """The format has no message for it: the connection closes as soon as nothing runs on it."""
        self._retiring = True
        self._rest()

    def _rest(self) -> None:
        if not self.streams and self._close_by is None and (self._old or self._retiring):
            self.close(1001 if self._retiring else 1000, "going away" if self._retiring else "60 minutes")

    def _due(self) -> float:
        due = super()._due()
        return due if self._old or self._close_by is not None else min(due, self._opened + LIFE)

    def _tick(self, now: float) -> None:
        if not self._old and self._close_by is None and now >= self._opened + LIFE:
            self._old = True
            self.reply(error_event(ClawError("websocket_connection_limit_reached")))
            self._rest()
        else:
            super()._tick(now)
