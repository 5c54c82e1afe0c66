"""One attempt: a provider called once, its answer relayed to the client until it ends, fails, or somebody stops it.

Rule 1: one alarm carries all clocks of an exchange (`ExchangeClock`); an attempt's own clocks (queue, connect, first_token,
        stall) only interrupt it, the others end the request. While the client is written to, no provider clock runs.
Rule 2: nothing is released before the first *content*: until then another route may take over and the client never knows.
Rule 3: whatever happens, in this order: the provider's stream is closed (synchronously), what became of the attempt is written
        into it, the plugins' contexts are left (shielded, bounded). A stream that is to be drained is not closed but kept: it
        goes to the service when the contexts are left (`draining`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import evolve

from clawproxy import draining
from clawproxy.context import Attempt, Exchange, Rest
from clawproxy.dialects.base import OutboundRequest
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import CONTENT, Batch, End, Event, Failed, Finish, FinishReason, UsageReport
from clawproxy.exchange_clock import ExchangeClock
from clawproxy.lifetime import is_cancellation
from clawproxy.messages import ChatRequest
from clawproxy.pipeline.compile import AttemptContexts
from clawproxy.upstream.recorded import Recorded

if TYPE_CHECKING:
    from clawproxy.gateway import Generation
    from clawproxy.lifetime import Lifetime
    from clawproxy.pipeline import Relay
    from clawproxy.service import Sink
    from clawproxy.upstream.base import KeptStream, Opening

UNDELIVERED = frozenset({"client_gone", "timeout.write"})
"""What the client's side of an answer comes to; a provider that had ended by then had its say all the same."""


class AttemptRun:
    """One attempt, from the plugins' contexts to the provider's last byte. After `run`: `attempt.outcome`, `attempt.error`."""

    def __init__(
        self, generation: Generation, exchange: Exchange, client: Sink, lifetime: Lifetime, clock: ExchangeClock
    ) -> None:
        self.generation = generation
        self.exchange = exchange
        self.client = client
        self.lifetime = lifetime
        self.clock = clock
        self.attempt: Attempt | None = None
        self.finish: FinishReason | None = None
        self.ended = False
        """The provider's terminal marker was seen: the answer is complete whatever happens next."""
        self.lost = False
        """Part of a complete answer was still held by a transform when the attempt was interrupted."""
        self.known = False
        """A plugin has opened it, so that it may stand in the books under its id."""
        self._kept: KeptStream | None = None

    async def run(self, attempt: Attempt, request: ChatRequest, *, has_fallback: bool) -> None:
        """Make the attempt. What the provider did is in `attempt.error`; what ends the exchange is raised. Where a clock of the
        attempt ran out, that is in `attempt.error` too, and Cancelled goes up to whoever renews the scope."""
        self.attempt = attempt
        deadlines = self.generation.deadlines_for(attempt.route, self.exchange)
        self.clock.begin(attempt, deadlines, has_fallback=has_fallback, reasons=asked_to_reason(request))
        contexts = AttemptContexts(self.generation.pipeline.report)
        try:
            await self.generation.pipeline.enter_attempt(self.exchange, request, attempt, contexts, self.clock.hook)
            self.clock.hooks_done()
            await self._relay(attempt, request)
            self._close(attempt, None)
        except ProviderFault as error:
            self._close(attempt, error)
        except ClawError as error:
            self._close(attempt, None if self.ended and error.slug in UNDELIVERED else error)
            raise
        except BaseException as error:
            if not is_cancellation(error):
                self._close(attempt, ClawError("internal"))
            else:
                self._close(attempt, None if self.ended else self.clock.reason())
            raise
        finally:
            if contexts.entered:
                self.known = True
                await contexts.leave()  # noqa: ASYNC102  # shielded and bounded inside, each plugin on its own
            if self._kept is not None and attempt.rest is not None:
                provider = self.generation.config.providers[attempt.route.provider]
                draining.begin(self.generation.app, attempt, attempt.rest, self._kept, provider)
            self.generation.pipeline.attempt_finished(self.exchange, attempt)

    async def _relay(self, attempt: Attempt, request: ChatRequest) -> None:
        opening = self._open(attempt, request)  # what a provider's format refuses is refused before a tap begins
        relay = self.generation.pipeline.relay(self.exchange, attempt)
        held: list[Batch] = []
        last: Batch | None = None
        good = False
        try:
            async with opening as stream:
                attempt.status = stream.status
                try:
                    while (batch := await stream.receive()) is not None:
                        failure, got_content = self._look(attempt, batch)
                        if got_content:
                            self.clock.content(batch)
                        if failure is not None:
                            batch = batch.replaced([e for e in batch.events if type(e) is not Failed])
                        released = relay.take(batch) if batch.events or batch.raw else None
                        if attempt.cut is not None:  # nothing more is wanted of the provider: it is closed before anything else
                            self.finish, self.ended, last = attempt.cut, True, released
                            break
                        if released is not None:
                            content = got_content if released is batch else released.has_content()
                            await self._release(attempt, held, released, content)
                        if failure is not None:
                            raise failure.error
                        self.clock.resume(content=got_content)
                except BaseException as error:
                    self._keep(attempt, opening, error)
                    raise
                self.clock.stop()
            good = True
        finally:
            attempt.closed_at = time.time()
            if not good:
                self._abandon(relay)
        if last is not None:
            await self._release(attempt, held, last, last.has_content())
        try:
            rest = relay.end()
        except ClawError:
            relay.abandon()
            raise
        if rest is not None:
            await self._release(attempt, held, rest, rest.has_content())
        if held:
            attempt.content = True
            await self.client.send(joined(held))

    def _keep(self, attempt: Attempt, opening: Opening, error: BaseException) -> None:
        """Where the provider is to be read on for its figures, take the stream out of what would close it."""
        cause = self.lifetime.cause
        if cause is None and isinstance(error, ClawError) and error.slug in UNDELIVERED:
            cause = error  # noticed in writing to it; who lost a race has another client that hears the winner
        if not self.ended and draining.is_wanted(self.generation.config.providers.get(attempt.route.provider), cause):
            keep = getattr(opening, "keep", None)  # a plugin's upstream need not have it
            self._kept = None if keep is None else keep()
            attempt.rest = None if self._kept is None else Rest()

    def _open(self, attempt: Attempt, request: ChatRequest) -> Opening:
        """What entering calls the provider, or plays the answer that the route brings with it."""
        if attempt.route.recorded is not None:
            return Recorded(attempt.route.recorded)
        if not self.exchange.may_go(attempt.route):  # whoever chose it: nothing is sent where it may not go
            raise ClawError("refused.residency")
        upstream = self.generation.upstream
        dialect = upstream.dialect(attempt.route.provider)
        most = attempt.output_limit
        if most is not None and (request.max_tokens is None or most < request.max_tokens):
            request = evolve(request, max_tokens=most)
        outbound = dialect.encode_request(request, attempt.route)
        # The id the ledger knows this attempt by, so that the provider's records can be held against it.
        headers = (*outbound.headers, ("x-request-id", attempt.id))
        if outbound.notices:
            known = self.exchange.notices
            known.extend([notice for notice in outbound.notices if notice not in known])
        outbound = OutboundRequest(outbound.path, outbound.body, headers, outbound.method, outbound.stream)
        return upstream.open(attempt.route, request, outbound, self.clock, self.exchange.principal.key)

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
                attempt.usage = event.usage  # type: ignore[union-attr]  # by its kind
            elif kind is Finish:
                self.finish = event.reason  # type: ignore[union-attr]  # by its kind
            elif kind is End:
                self.ended = True
            elif kind is Failed:
                return event, content  # type: ignore[return-value]  # by its kind
        return None, content

    async def _release(self, attempt: Attempt, held: list[Batch], batch: Batch, content: bool) -> None:
        """`content`: whether the batch has some."""
        if not attempt.content:
            if not content:
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
            attempt.outcome = "truncated" if self.finish in ("length", "budget") else "complete"
        else:
            attempt.outcome = error.kind.outcome


def asked_to_reason(request: ChatRequest) -> bool:
    """Whether the model may think before, and between, what it says."""
    return request.reasoning_effort not in (None, "none") or bool(request.reasoning_budget)


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
