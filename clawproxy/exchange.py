"""What happens to a request: the story on one page. Read this first.

    transport       bytes -> strict head check -> parser -> gateway.handle(call, client)
    run_exchange      decode -> admit -> prepare_request* -> choose_route             going down, in the operator's order
    attempts          open -> send -> receive* -> relay(batch) -> client.send         coming up; first content commits
    run_exchange      client.finish or client.fail, then exchange_closed, exactly once

Rule 1: one cancel scope at a time (`call.lifetime`) spans the whole of it. Whoever cancels it has said why first; a clock of one
        attempt only interrupts, and the next attempt runs in a renewed scope.
Rule 2: every way out is an `Outcome` from the closed set; nothing but Cancelled leaves `run_exchange`.
Rule 3: a good answer's end is written inside the scope, under the exchange's own clocks: it may be all of the answer. What
        runs after the scope (telling of an error, closing hooks) is shielded and bounded.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from clawproxy.admission import Ticket
from clawproxy.attempts import UNDELIVERED, AttemptRun
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Outcome
from clawproxy.exchange_clock import ExchangeClock
from clawproxy.messages import ChatRequest

if TYPE_CHECKING:
    from clawproxy.gateway import Generation
    from clawproxy.hookspecs import Plan
    from clawproxy.service import Call, Client

TELLING = 5.0
"""Seconds for an error's last words to a client, shielded. Its transport's `write` clock is usually the shorter one."""


async def run_exchange(generation: Generation, call: Call, client: Client) -> Outcome:
    """Serve one request from its bytes to its closing hooks. Raises nothing but Cancelled (from outside `call.lifetime`)."""
    exchange = generation.begin(call)
    story = _Story(generation, exchange, call, client)
    outcome: Outcome | None = None
    try:
        with call.lifetime.scope:
            outcome = await story.run()
        # One attempt's clock ran out: go on with the next route.
        while outcome is None and story.result is None and story.clock.interrupted:
            with call.lifetime.renew():
                outcome = await story.attempt_until_done()
        if outcome is None:
            outcome = story.interrupted()
    except ClawError as error:
        outcome = story.failed(error)
    except Exception as error:
        generation.crashed(exchange, error)
        outcome = Outcome("internal", ClawError("internal"))
    finally:
        story.leave()
        if outcome is None:  # cancelled from outside: the connection is being torn down
            outcome = Outcome("client_gone", ClawError("client_gone"))
        exchange.timing.total = generation.alarms.now() - exchange.started
        if not story.told:
            await story.tell(outcome)  # noqa: ASYNC102  # shielded and bounded inside, as is the next
        await generation.closed(exchange, outcome)  # noqa: ASYNC102
    return outcome


class _Story:
    """One exchange under way: the steps of `run_exchange`, in order."""

    def __init__(self, generation: Generation, exchange: Exchange, call: Call, client: Client) -> None:
        self.generation = generation
        self.exchange = exchange
        self.call = call
        self.client = client
        self.clock = ExchangeClock(exchange, call.lifetime, generation.alarms, generation.config.pipeline.hook_budget)
        self.ticket: Ticket | None = None
        self.request: ChatRequest | None = None
        self.plan: Plan | None = None
        self.result: Outcome | None = None
        self.lost = False
        """A transform still held part of that good answer."""
        self.told = False

    async def run(self) -> Outcome:
        exchange, pipeline, clock = self.exchange, self.generation.pipeline, self.clock
        request = self.call.decode()
        self.client.attach(exchange, request)
        self.generation.describe(exchange, request, self.call.deadline)
        clock.end_after(exchange.deadlines.total)
        await self._admit()
        began = self.generation.alarms.now()
        self.request = await pipeline.prepare(exchange, request, clock.hook)
        self.plan = await pipeline.choose_route(exchange, self.request, clock.hook)
        clock.hooks_done()
        exchange.timing.policy = self.generation.alarms.now() - began
        return await self.attempt_until_done()

    async def attempt_until_done(self) -> Outcome:
        """The attempt loop: another route while nothing was released, never after."""
        exchange, history, request, plan = self.exchange, self.exchange.attempts, self.request, self.plan
        assert request is not None
        assert plan is not None
        while not (history and history[-1].content) and (route := plan.next(history)) is not None:
            if history and self.call.lifetime.scope.cancel_called:
                await trio.lowlevel.checkpoint()  # interrupted in the moment it failed: the next one needs a renewed scope
            attempt = Attempt(
                id=f"{exchange.request_id}.{len(history) + 1}" if history else exchange.request_id,
                number=len(history) + 1,
                reason="first" if not history else ("retry" if history[-1].route.provider == route.provider else "failover"),
                route=route,
                started=time.time(),
            )
            history.append(attempt)
            exchange.route = route
            if len(history) == 2:
                exchange.notice("fallback", "The first route failed; another one answers.")
            run = AttemptRun(self.generation, exchange, self.client, self.call.lifetime, self.clock)
            try:
                await run.run(attempt, request, has_fallback=len(plan.candidates) > len(history))
            finally:
                if run.ended and attempt.error is None:
                    self.result, self.lost = Outcome(attempt.outcome or "complete", None, run.finish), run.lost
            if attempt.error is None:
                return await self._finish(Outcome(attempt.outcome or "complete", None, run.finish))
        raise (history[-1].error if history else None) or ClawError("no_route")

    async def _finish(self, outcome: Outcome) -> Outcome:
        """The end of a good answer. A client that does not take it changes nothing: the provider's last word was heard."""
        self.result = outcome
        exchange = self.exchange
        exchange.timing.total = self.generation.alarms.now() - exchange.started
        try:
            await self.client.finish(outcome, exchange.usage)
        except ClawError as error:
            if error.slug not in UNDELIVERED:
                self.result = None
                raise
        self.told = True
        return outcome

    async def _admit(self) -> None:
        """Wait for a place, fairly by key, under the `queue` clock."""
        admission, key = self.generation.admission, self.exchange.principal.key
        self.ticket = admission.try_enter(key)
        if self.ticket is None:
            began = trio.current_time()
            self.clock.wait_for_place()
            self.ticket = await admission.enter(key)
            self.clock.place_found()
            self.exchange.timing.queue = trio.current_time() - began

    def interrupted(self) -> Outcome:
        """The scope was cancelled for a cause."""
        if self.result is not None and (not self.lost or self._is_gone()):
            return self.result  # the provider's last word was heard: it is complete, whatever the socket does
        error = self.clock.reason()
        if error.slug == "internal" and error.details.policy:
            self.generation.pipeline.report(error.details.policy, "hook_slow", "its time budget ran out")
        return Outcome(error.kind.outcome, error)

    def failed(self, error: ClawError) -> Outcome:
        """An error came out of it: its outcome, unless it is only that the client did not take the end of a whole answer."""
        if self.result is not None and error.slug in UNDELIVERED:
            return self.result
        return Outcome(error.kind.outcome, error)

    def _is_gone(self) -> bool:
        cause = self.call.lifetime.cause
        return cause is not None and cause.slug == "client_gone"

    def leave(self) -> None:
        """Give back what is held."""
        self.clock.close()
        if self.ticket is not None:
            self.generation.admission.release(self.ticket)
            self.ticket = None

    async def tell(self, outcome: Outcome) -> None:
        """The last words where there was no good end in time: mostly an error. A client that is gone is told nothing."""
        if outcome.label == "client_gone" or self._is_gone():
            return
        with trio.move_on_after(TELLING, shield=True):
            try:
                if outcome.error is None or outcome.label == "cancelled":
                    await self.client.finish(outcome, self.exchange.usage)
                else:
                    await self.client.fail(outcome.error)
            except ClawError:
                return  # it left, or does not read: the transport has closed the connection
            except Exception as error:  # a defect: the books are still to be closed
                self.generation.crashed(self.exchange, error)
