"""What happens to a request: the story on one page. Read this first.

    transport       bytes -> strict head check -> parser -> gateway.handle(call, client)
    run_exchange      decode -> admit -> prepare_request* -> choose_route             going down, in the operator's order
    attempts          open -> send -> receive* -> relay(batch) -> client.send         coming up; first content commits
    steering          prepare_request* -> choose_route -> attempts                    again, where the client says more meanwhile
    run_exchange      client.finish or client.fail, then exchange_closed, exactly once

Rule 1: one cancel scope at a time (`call.lifetime`) spans the whole of it. Whoever cancels it has said why first; a clock of one
        attempt, or a client that says more, only interrupts, and the next attempt runs in a renewed scope.
Rule 2: every way out is an `Outcome` from the closed set; nothing but Cancelled leaves `run_exchange`.
Rule 3: a good answer's end is written inside the scope, under the exchange's own clocks: it may be all of the answer. What
        runs after the scope (telling of an error, closing hooks) is shielded and bounded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from clawproxy.admission import Ticket
from clawproxy.attempts import UNDELIVERED, AttemptRun
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Outcome
from clawproxy.exchange_clock import ExchangeClock
from clawproxy.messages import ChatRequest, Route
from clawproxy.steering import Steering, staying

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
        # One attempt's clock ran out, or the client said more: go on with the next attempt.
        while outcome is None and story.goes_on():
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
        self.steering = call.steering
        self.ticket: Ticket | None = None
        self.asked: ChatRequest | None = None
        """As the client began it; `request` is what the hooks made of it."""
        self.request: ChatRequest | None = None
        self.plan: Plan | None = None
        self.leg = 0
        """How many attempts were made before the client last said more: they are no history of what is asked now."""
        self.result: Outcome | None = None
        self.lost = False
        """A transform still held part of that good answer."""
        self.told = False

    async def run(self) -> Outcome:
        exchange, clock = self.exchange, self.clock
        request = self.asked = self.call.decode()
        self.client.attach(exchange, request)
        self.generation.describe(exchange, request, self.call.deadline)
        clock.end_after(exchange.deadlines.total)
        await self._admit()
        await self._prepare(request)
        return await self.attempt_until_done()

    async def _prepare(self, request: ChatRequest) -> None:
        """The hooks going down."""
        exchange, pipeline, clock = self.exchange, self.generation.pipeline, self.clock
        began = self.generation.alarms.now()
        self.request = await pipeline.prepare(exchange, request, clock.hook)
        self.plan = await pipeline.choose_route(exchange, self.request, clock.hook)
        clock.hooks_done()
        exchange.timing.policy = (exchange.timing.policy or 0.0) + self.generation.alarms.now() - began

    async def attempt_until_done(self) -> Outcome:
        """The attempt loop: another route while nothing was released, never after. What the client added comes first."""
        exchange, history, steering = self.exchange, self.exchange.attempts, self.steering
        while True:
            while steering is not None and steering.waits:
                await self._steer(steering)
            request, plan, leg = self.request, self.plan, history[self.leg :] if self.leg else history
            assert request is not None
            assert plan is not None
            tried = len(leg)
            if (leg and leg[-1].content) or (route := plan.next(leg)) is None:
                raise (leg[-1].error if leg else None) or ClawError("no_route")
            if leg and self.call.lifetime.scope.cancel_called:
                await trio.lowlevel.checkpoint()  # interrupted in the moment it failed: the next one needs a renewed scope
            attempt = Attempt(
                id=f"{exchange.request_id}.{len(history) + 1}" if history else exchange.request_id,
                number=len(history) + 1,
                reason=self._reason(leg, route),
                route=route,
                started=time.time(),
            )
            history.append(attempt)
            exchange.route = route
            if tried == 1:
                exchange.notice("fallback", "The first route failed; another one answers.")
            run = AttemptRun(self.generation, exchange, self.client, self.call.lifetime, self.clock)
            if steering is not None:
                steering.run = run
            try:
                await run.run(attempt, request, has_fallback=len(plan.candidates) > tried + 1)
            finally:
                if steering is not None:
                    steering.run = None
                if run.ended and attempt.error is None:
                    self.result, self.lost = Outcome(attempt.outcome or "complete", None, run.finish), run.lost
            if attempt.error is None and not (steering is not None and steering.waits):
                return await self._finish(Outcome(attempt.outcome or "complete", None, run.finish))

    def _reason(self, leg: Sequence[Attempt], route: Route) -> str:
        if leg:
            return "retry" if leg[-1].route.provider == route.provider else "failover"
        return "steer" if self.leg else "first"

    def goes_on(self) -> bool:
        """Whether it was only interrupted."""
        if self.steering is not None and self.steering.waits:
            return True
        return self.result is None and self.clock.interrupted

    async def _steer(self, steering: Steering) -> None:
        """The client said more: what it asked, what it heard and what it added go through the hooks as a prompt does."""
        await trio.lowlevel.checkpoint()  # the attempt was interrupted: what follows needs a renewed scope
        exchange, history = self.exchange, self.exchange.attempts
        assert self.asked is not None
        self.result = None
        self.leg = len(history)
        if steering.authenticate is not None:
            await steering.authenticate()
        before = len(exchange.notices)
        await self._prepare(steering.fold(self.asked))
        assert self.plan is not None
        self.plan = staying(self.plan, history[-1] if history else None)
        steering.tell(exchange, before)
        if any(attempt.content for attempt in history):
            await self.client.send(Batch([]))  # it knows the answer has begun: the notice need not wait for more of it

    async def _finish(self, outcome: Outcome) -> Outcome:
        """The end of a good answer. A client that does not take it changes nothing: the provider's last word was heard."""
        self.result = outcome
        if self.steering is not None:
            self.steering.close()
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
        if self.call.parent is not None:
            return  # it has the place of the exchange it is asked in
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
        if self.steering is not None:
            self.steering.close()
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
