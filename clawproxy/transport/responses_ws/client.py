"""`service.Client` for one response on a WebSocket: events in, messages into the connection's outbox.

Rule 1: a response ends once: with its terminal event, or with an `error` event where nothing of it was told.
Rule 2: nothing here writes to the socket; waiting is `Outbox.room` only, which may be cancelled without harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from clawproxy.dialects.openai_responses.socket import Create, History, Kept, SocketAnswer, error_event
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Outcome
from clawproxy.lifetime import Lifetime
from clawproxy.transport.websocket.frames import text_frame
from clawproxy.transport.websocket.outbox import HIGH

if TYPE_CHECKING:
    import trio

    from clawproxy.context import Exchange
    from clawproxy.messages import ChatRequest, Usage
    from clawproxy.transport.websocket.outbox import Outbox


class ResponseClient:
    """One response. `websocket.requests.Asker`.

    Args:
        history: what the connection keeps: the request is completed from it, and the response joins it.
        on_over: called once, when the last of it is in the outbox.
    """

    def __init__(
        self, create: Create, request_id: str, outbox: Outbox, history: History, on_over: Callable[[ResponseClient], None]
    ) -> None:
        self.id = self.request_id = request_id
        self.create = create
        self.lifetime = Lifetime()
        self.gate: trio.CancelScope | None = None
        self.prompt = None
        self.steering = None
        self.over = False
        self._outbox = outbox
        self._history = history
        self._on_over = on_over
        self._input = Kept((), 0)
        self._answer: SocketAnswer | None = None
        self._told = False

    def decode(self, longest: int) -> ChatRequest:
        """`Call.decode`: only now, because the response before it in its lane may be the one it goes on from."""
        request, self._input = self._history.request(self.create, longest)
        return request

    def cancel(self, cause: ClawError) -> None:
        self.lifetime.cancel(cause)
        if self.gate is not None:
            self.gate.cancel()

    async def turn(self) -> None:
        """Wait while this connection's answers lie unread. Raises ClawError as `Outbox.room` does."""
        if self._outbox.size > HIGH:
            await self._outbox.room()

    # --- service.Client ----------------------------------------------------------------------------------------------------

    def attach(self, exchange: Exchange, request: ChatRequest) -> None:
        self._answer = SocketAnswer(exchange, request, self.create)

    async def send(self, batch: Batch) -> None:
        outbox = self._outbox
        outbox.check()
        assert self._answer is not None, "attach comes first"
        self._push(self._answer.content(batch))
        outbox.flush()
        if outbox.size > HIGH:
            await outbox.room()

    async def finish(self, outcome: Outcome, usage: Usage | None) -> None:
        if self.over:
            return
        await self._outbox.room()
        self.end(outcome, usage)

    async def fail(self, error: ClawError) -> None:
        self.end_with(error)

    # --- the ends, synchronous -----------------------------------------------------------------------------------------------

    def end(self, outcome: Outcome, usage: Usage | None) -> None:
        if self.over:
            return
        assert self._answer is not None
        self.over = True
        self._push(self._answer.finish(outcome, usage))
        response = self._answer.response
        output = response.get("output")
        self._history.keep(str(response.get("id")), self._input, output if isinstance(output, list) else [])
        self._outbox.flush()
        self._on_over(self)

    def end_with(self, error: ClawError) -> None:
        if self.over:
            return
        self.over = True
        if self._told and self._answer is not None:
            self._push(self._answer.fail(error))
        else:
            self._push([error_event(error, self.create.lane)])
        self._outbox.flush()
        self._on_over(self)

    def settle(self, outcome: Outcome) -> None:
        """Make sure of an end, after the exchange has returned."""
        if not self.over:
            self.end_with(outcome.error or self.lifetime.cause or ClawError("internal"))

    def _push(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self._told = True
            self._outbox.append(text_frame(payload))
