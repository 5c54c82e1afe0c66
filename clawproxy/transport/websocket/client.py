"""`service.Client` for one request on a WebSocket: events in, frames into the connection's outbox.

Rule 1: after `llm_response_end` or `error` nothing more is sent with that id.
Rule 2: nothing here writes to the socket; waiting is for room in the outbox and for the client's credit, before anything of it
        is encoded, so it may be cancelled without harm.
Rule 3: a request that its client cancelled ends with `llm_response_end`, outcome `cancelled` and a receipt, whatever the
        exchange calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clawproxy.dialects.claw import Answer, Whole
from clawproxy.dialects.claw_frames import Said, billed, grouped
from clawproxy.errors import ClawError
from clawproxy.events import Batch, End, Outcome, Text, ToolCallDelta
from clawproxy.lifetime import Lifetime
from clawproxy.steering import Steering
from clawproxy.transport.websocket.credit import Credit
from clawproxy.transport.websocket.frames import text_frame
from clawproxy.transport.websocket.outbox import HIGH

if TYPE_CHECKING:
    import trio

    from clawproxy.context import Exchange
    from clawproxy.messages import ChatRequest, Usage
    from clawproxy.transport.websocket.outbox import Outbox
    from clawproxy.transport.websocket.prompts import StreamedPrompt

_CANCELLED = Outcome("cancelled", finish="cancelled")


class ClawClient:
    """One open request.

    Attributes:
        id: the client's name for it.
        gate: the scope of its task while that authenticates this message; then the exchange and `lifetime` take over.
        cancelled_at: Unix time of its `llm_cancel`.
        over: its last frame was made, and its id is free again, although the exchange may still be closing its books.
        credit: what it may still be sent; None where the client did not ask for flow control.
        prompt: where it is streamed.
        steering: what it adds while it is answered.
    """

    __slots__ = ("_answer", "_exchange", "_notices", "_on_over", "_outbox", "_whole", "cancelled_at", "credit", "gate", "id",
                 "lifetime", "over", "prompt", "request_id", "steering")  # fmt: skip

    def __init__(
        self,
        ident: str,
        request_id: str,
        outbox: Outbox,
        on_over: Callable[[ClawClient], None],
        most_appended: int,
        prompt: StreamedPrompt | None,
        credit: int | None,
    ) -> None:
        """Args: most_appended: bytes that `llm_append` may add. credit: what it begins with."""
        self.id = ident
        self.request_id = request_id
        self.lifetime = Lifetime()
        self.credit = None if credit is None else Credit(credit)
        self.prompt = prompt
        self.steering = Steering(self.lifetime, self._said, most_appended)
        self.gate: trio.CancelScope | None = None
        self.cancelled_at: float | None = None
        self.over = False
        self._answer = Answer(ident, request_id)
        self._outbox = outbox
        self._on_over = on_over
        self._exchange: Exchange | None = None
        self._whole: Whole | None = None
        self._notices = 0

    def cancel(self, cause: ClawError) -> None:
        """End this request early; the first cause stays."""
        self.lifetime.cancel(cause)
        if self.gate is not None:
            self.gate.cancel()

    def cancel_by_client(self) -> None:
        """`llm_cancel` came."""
        if self.cancelled_at is None:
            self.cancelled_at = time.time()
        self.cancel(ClawError("cancelled"))

    async def turn(self) -> None:
        """Wait while this connection's answers lie unread: a request that ends at once (a refusal) would only add to them.
        Raises ClawError as `Outbox.room` does."""
        if self._outbox.size > HIGH:
            await self._outbox.room()

    # --- service.Client ----------------------------------------------------------------------------------------------------

    def attach(self, exchange: Exchange, request: ChatRequest) -> None:
        self._exchange = exchange
        if not request.stream:
            self._whole = Whole()

    async def send(self, batch: Batch) -> None:
        outbox = self._outbox
        if outbox.failure is not None or outbox.sealed:
            outbox.check()
        if self._whole is not None:
            self._whole.add(batch)
            return
        if self.credit is not None:
            await self._spend(self.credit, batch)
            return
        self._release(batch)
        if batch.events and type(batch.events[-1]) is End:
            outbox.wake()  # the last frame follows in the same turn, as a rule: one write for both
        else:
            outbox.flush()
        if outbox.size > HIGH:
            await outbox.room()

    async def finish(self, outcome: Outcome, usage: Usage | None) -> None:
        if self.over:
            return
        if self._whole is not None:
            # Only here may one frame be as large as a whole answer, so it waits for its turn before it is queued.
            await self._outbox.room()
            batch = self._whole.batch()
            if not any(type(event) in (Text, ToolCallDelta) for event in batch.events):
                batch = Batch([*batch.events, Text("")])
            if self.credit is None:
                self._release(batch)
            elif outcome.label != "cancelled":  # the last message needs no credit, and nobody waits for the others
                await self._spend(self.credit, batch)
        elif not self._answer.started:
            self._release(Batch([]))
        else:
            self._tell()
        self.end(outcome, usage)

    async def fail(self, error: ClawError) -> None:
        self.end_with(error)

    # --- the ends, synchronous -----------------------------------------------------------------------------------------------

    def end(self, outcome: Outcome, usage: Usage | None) -> None:
        if self.over:
            return
        self.over = True
        receipt = None if self.cancelled_at is None or outcome.label != "cancelled" else self._receipt()
        self._push(self._answer.end(self._exchange, outcome, usage, receipt))
        self._outbox.flush()
        self._on_over(self)

    def end_with(self, error: ClawError) -> None:
        """The last frame for an error: `error`, or `llm_response_end` where the client itself asked for it."""
        if self.over:
            return
        if error.slug == "cancelled":
            self.end(_CANCELLED, self._exchange.usage if self._exchange is not None else None)
            return
        self.over = True
        self._push(self._answer.error(error))
        self._outbox.flush()
        self._on_over(self)

    def settle(self, outcome: Outcome) -> None:
        """Make sure of an end, after the exchange has returned."""
        if self.over:
            return
        if outcome.error is not None or self.lifetime.cause is not None:
            self.end_with(outcome.error or self.lifetime.cause or ClawError("internal"))
        elif outcome.label == "cancelled":
            self.end_with(ClawError("cancelled"))
        else:
            self.end_with(ClawError("internal"))

    # --- frames ------------------------------------------------------------------------------------------------------------

    def _release(self, batch: Batch) -> None:
        self._open(batch)
        for payload in self._answer.content(batch):
            self._outbox.append(text_frame(payload))

    def _open(self, batch: Batch) -> None:
        """What goes before a batch's content."""
        answer, exchange = self._answer, self._exchange
        assert exchange is not None, "attach comes first"
        if not answer.started:
            self._push(answer.start(exchange, batch.events))
        if len(exchange.notices) > self._notices:
            self._tell()

    async def _spend(self, credit: Credit, batch: Batch) -> None:
        """Release a batch message by message, each for a credit. Raises ClawError, of which the client has been told."""
        outbox, exchange = self._outbox, self._exchange
        assert exchange is not None, "attach comes first"
        self._open(batch)
        outbox.flush()
        for group in grouped(batch.events):
            try:
                await credit.spend(exchange.deadlines.write)
            except ClawError as error:
                self.end_with(error)
                raise
            outbox.check()
            self._release(batch.replaced(group))
            outbox.flush()
            if outbox.size > HIGH:
                await outbox.room()

    def _said(self) -> Said:
        return (self._whole or self._answer).said()

    def _tell(self) -> None:
        """Notices not sent yet."""
        if self._exchange is not None:
            for notice in self._exchange.notices[self._notices :]:
                self._push(self._answer.notice(notice))
            self._notices = len(self._exchange.notices)

    def _push(self, payload: bytes) -> None:
        self._outbox.append(text_frame(payload))

    def _receipt(self) -> dict[str, Any]:
        """What is known of a cancel: when it came, when the provider's stream was closed, what was delivered, what is billed."""
        receipt: dict[str, Any] = {"cancelled_at": self.cancelled_at or time.time()}
        exchange = self._exchange
        if exchange is not None:
            if exchange.attempts:
                closed = [attempt.closed_at for attempt in exchange.attempts if attempt.closed_at is not None]
                receipt["upstream_closed_at"] = max(closed, default=None)
                if any(attempt.rest is not None for attempt in exchange.attempts):  # it is read on: the ledger will know better
                    receipt["upstream_closed_at"], receipt["draining"] = None, True
            if exchange.usage is not None and exchange.usage.output_tokens is not None:
                receipt["delivered_tokens"] = exchange.usage.output_tokens
                receipt["source"] = exchange.usage.source
            receipt["billed"] = billed(exchange)
        return receipt
