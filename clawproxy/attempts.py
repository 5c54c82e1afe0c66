"""One attempt: a provider called once, its answer relayed to the client until it ends, fails, or somebody stops it.

Rule 1: an attempt has one cancel scope; `AttemptClock` moves its deadline from clock to clock (queue, connect, first_token,
        stall). While the client is written to, no provider clock runs.
Rule 2: nothing is released before the first *content*: until then another route may take over and the client never knows.
Rule 3: whatever happens, in this order: the provider's stream is closed (synchronously), what became of the attempt is written
        into it, the plugins' contexts are left (shielded, bounded).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import trio
from attrs import evolve

from clawproxy.clocks import Deadlines, expired
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError, ClockExpired, Details, ProviderFault
from clawproxy.events import CONTENT, Batch, End, Event, Failed, Finish, FinishReason, UsageReport
from clawproxy.lifetime import is_cancellation
from clawproxy.messages import ChatRequest
from clawproxy.pipeline.compile import AttemptContexts

if TYPE_CHECKING:
    from clawproxy.gateway import Generation
    from clawproxy.lifetime import Lifetime
    from clawproxy.pipeline import Relay
    from clawproxy.service import Client

UNDELIVERED = frozenset({"client_gone", "timeout.write"})
"""What the client's side of an answer comes to; a provider that had ended by then had its say all the same."""
FALLBACK_SHARE = 0.4
"""Of the time left, what is set aside for another route while there is one."""


class AttemptClock:
    """The clocks of one attempt over one cancel scope; what `upstream` sees as `Phases`."""

    def __init__(self, attempt: Attempt, exchange: Exchange, deadlines: Deadlines, ends: float, has_fallback: bool) -> None:
        """`ends`: the exchange's own absolute deadline (`trio.current_time`)."""
        self.scope = trio.CancelScope()
        self.attempt = attempt
        self.deadlines = deadlines
        self.timing = exchange.timing
        self.running = ""
        self.entered = trio.current_time()
        left = ends - self.entered
        self.slice = self.entered + left * (1 - FALLBACK_SHARE) if has_fallback and left < math.inf else math.inf
        self.sliced = False
        self._left: float | None = None

    @property
    def sent(self) -> bool:
        return self.attempt.sent

    @sent.setter
    def sent(self, value: bool) -> None:
        self.attempt.sent = value

    def enter(self, clock: str) -> None:
        """Stop the running clock and start another. Until content came, all of them share the attempt's slice."""
        now = trio.current_time()
        self._account(now)
        self.running = clock
        self.entered = now
        due = now + getattr(self.deadlines, clock)
        self.sliced = due > self.slice
        self.scope.deadline = min(due, self.slice)

    def watch_stall(self) -> None:
        """The provider is to say something with content again."""
        self._left = None
        self.scope.deadline = trio.current_time() + self.deadlines.stall

    def pause(self) -> None:
        """The client has the word; its transport runs the `write` clock."""
        self._left = self.scope.deadline - trio.current_time()
        self.scope.deadline = math.inf

    def resume(self) -> None:
        """The running clock goes on where it was paused, if it was: what came was no content."""
        if self._left is not None:
            self.scope.deadline = trio.current_time() + self._left
            self._left = None

    def first_content(self) -> None:
        now = trio.current_time()
        self._account(now)
        self.running = "stall"
        self.entered = now
        self.slice = math.inf

    def _account(self, now: float) -> None:
        spent = now - self.entered
        if self.running == "queue":
            self.timing.queue = (self.timing.queue or 0.0) + spent
        elif self.running == "connect":
            self.timing.connect = (self.timing.connect or 0.0) + spent
        elif self.running == "first_token":
            self.timing.first_token = spent
            self.timing.upstream = (self.timing.upstream or 0.0) + spent
        elif self.running == "stall":
            self.timing.upstream = (self.timing.upstream or 0.0) + spent

    def stop(self) -> None:
        self._account(trio.current_time())
        self.running = ""

    def error(self, provider: str) -> ClockExpired:
        """What to say when the scope's deadline was it."""
        if self.sliced and self.running != "stall":
            limit = self.slice - self.entered
            error = expired(self.running or "total", limit, provider=provider)
            error.details = _with_setting(error, "deadlines.total")
            return error
        retry = {"retry_after_ms": 1000} if self.running == "queue" else {}
        return expired(self.running, getattr(self.deadlines, self.running), provider=provider, **retry)


def _with_setting(error: ClawError, setting: str) -> Details:
    return evolve(error.details, setting=setting)


class AttemptRun:
    """One attempt, from the plugins' contexts to the provider's last byte. After `run`: `attempt.outcome`, `attempt.error`."""

    def __init__(self, generation: Generation, exchange: Exchange, client: Client, lifetime: Lifetime) -> None:
        self.generation = generation
        self.exchange = exchange
        self.client = client
        self.lifetime = lifetime
        self.finish: FinishReason | None = None
        self.ended = False
        """The provider's terminal marker was seen: the answer is complete whatever happens next."""
        self.lost = False
        """Part of a complete answer was still held by a transform when the attempt was interrupted."""

    async def run(self, attempt: Attempt, request: ChatRequest, *, ends: float, has_fallback: bool) -> None:
        """Make the attempt. What the provider or its clocks did is in `attempt.error`; what ends the exchange is raised."""
        deadlines = self.generation.deadlines_for(attempt.route, self.exchange)
        self.clock = clock = AttemptClock(attempt, self.exchange, deadlines, ends, has_fallback)
        contexts = AttemptContexts(self.generation.pipeline.report)
        fault: ClawError | None = None
        try:
            with clock.scope:
                clock.enter("queue")
                await self.generation.pipeline.enter_attempt(self.exchange, request, attempt, contexts)
                await self._relay(attempt, request)
            if clock.scope.cancelled_caught:
                fault = clock.error(attempt.route.provider)
        except ProviderFault as error:
            fault = error
        except ClawError as error:
            self._close(attempt, None if self.ended and error.slug in UNDELIVERED else error)
            raise
        except BaseException as error:
            if not is_cancellation(error):
                self._close(attempt, ClawError("internal"))
            elif self.ended:
                self._close(attempt, None)
            else:
                self._close(attempt, self.lifetime.cause or expired("total", self.exchange.deadlines.total))
            raise
        else:
            if fault is None:
                self._close(attempt, None)
        finally:
            if fault is not None:
                self._close(attempt, fault)
            await contexts.leave()  # noqa: ASYNC102  # shielded and bounded inside, each plugin on its own
            self.generation.pipeline.attempt_finished(self.exchange, attempt)

    async def _relay(self, attempt: Attempt, request: ChatRequest) -> None:
        upstream, pipeline = self.generation.upstream, self.generation.pipeline
        relay = pipeline.relay(self.exchange, attempt)
        dialect = upstream.dialect(attempt.route.provider)
        outbound = dialect.encode_request(request, attempt.route)
        # The id the ledger knows this attempt by, so that the provider's records can be held against it.
        outbound = evolve(outbound, headers=(*outbound.headers, ("x-request-id", attempt.id)))
        held: list[Batch] = []
        good = False
        try:
            async with upstream.open(attempt.route, request, outbound, self.clock, self.exchange.principal.key) as stream:
                attempt.status = stream.status
                if self.clock.running != "first_token":
                    self.clock.enter("first_token")
                while (batch := await stream.receive()) is not None:
                    failure, got_content = self._look(attempt, batch)
                    if got_content and self.clock.running != "stall":
                        self.clock.first_content()
                    if failure is not None:
                        batch = batch.replaced([e for e in batch.events if type(e) is not Failed])
                    released = relay.take(batch) if batch.events else None
                    if released is not None:
                        await self._release(attempt, held, released)
                    if failure is not None:
                        raise failure.error
                    if got_content:
                        self.clock.watch_stall()
                    else:
                        self.clock.resume()
                self.clock.stop()
                self.clock.pause()
            good = True
        finally:
            attempt.closed_at = time.time()
            if not good:
                self._abandon(relay)
        try:
            rest = relay.end()
        except ClawError:
            relay.abandon()
            raise
        if rest is not None:
            await self._release(attempt, held, rest)
        if held:
            attempt.content = True
            await self.client.send(joined(held))

    def _abandon(self, relay: Relay) -> None:
        try:
            self.lost = self.ended and relay.end() is not None
        except ClawError:
            self.lost = True
        finally:
            relay.abandon()

    def _look(self, attempt: Attempt, batch: Batch) -> tuple[Failed | None, bool]:
        """Note what the exchange itself needs to know of a batch."""
        content = False
        for event in batch.events:
            kind = type(event)
            if kind in CONTENT:
                content = True
            elif kind is UsageReport:
                attempt.usage = event.usage  # type: ignore[union-attr]
            elif kind is Finish:
                self.finish = event.reason  # type: ignore[union-attr]
            elif kind is End:
                self.ended = True
            elif kind is Failed:
                return event, content  # type: ignore[return-value]
        return None, content

    async def _release(self, attempt: Attempt, held: list[Batch], batch: Batch) -> None:
        if not attempt.content:
            if not batch.has_content():
                held.append(batch)
                return
            attempt.content = True
            if held:
                batch = joined([*held, batch])
                held.clear()
        self.clock.pause()
        await self.client.send(batch)

    def _close(self, attempt: Attempt, error: ClawError | None) -> None:
        self.clock.stop()
        if attempt.closed_at is None:
            attempt.closed_at = time.time()
        attempt.error = error
        if error is None:
            attempt.outcome = "truncated" if self.finish == "length" else "complete"
        else:
            attempt.outcome = error.kind.outcome


def joined(batches: list[Batch]) -> Batch:
    """Batches as one; their bytes stand only if each one's do."""
    if len(batches) == 1:
        return batches[0]
    events: list[Event] = [event for batch in batches for event in batch.events]
    raws = [batch.raw for batch in batches]
    dialect = batches[0].dialect
    if None in raws or any(batch.dialect != dialect for batch in batches):
        return Batch(events, dialect=dialect)
    return Batch(events, raw=b"".join(raw for raw in raws if raw is not None), dialect=dialect)
