"""What happens to a request: the story on one page. Read this first.

    transport       bytes -> strict head check -> parser -> gateway.handle(call, client)
    run_exchange      decode -> admit -> prepare_request* -> choose_route             going down, in the operator's order
    attempts          open -> send -> receive* -> relay(batch) -> client.send         coming up; first content commits
    hedging           two attempts at once: the first to speak wins                   where a route says nothing in time
    detours           a turn in a plugin's queue, or choose_route -> attempts         where a plugin wants that first
    continuing        go_on -> attempts                                               again, where an answer was cut
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
from clawproxy.continuing import Hearing, is_one_text
from clawproxy.counting import bound_media
from clawproxy.detours import Detours
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Outcome
from clawproxy.exchange_clock import FALLBACK_SHARE, ExchangeClock
from clawproxy.hedging import Race
from clawproxy.hookspecs import Detour
from clawproxy.lastresort import without_route
from clawproxy.messages import ChatRequest, Route
from clawproxy.steering import Steering, staying

if TYPE_CHECKING:
    from clawproxy.gateway import Generation
    from clawproxy.hookspecs import Plan
    from clawproxy.service import Call, Client

LARGE = 1024 * 1024
"""Bytes of a request that hold others up (S-09)."""
TELLING = 5.0
"""Seconds for an error's last words to a client, shielded. Its transport's `write` clock is usually the shorter one."""


async def run_exchange(generation: Generation, call: Call, client: Client) -> Outcome:
    """Serve one request from its bytes to its closing hooks. Raises nothing but Cancelled (from outside `call.lifetime`)."""
    exchange = generation.begin(call)
    story = _Story(generation, exchange, call, client)
    outcome: Outcome | None = None
    try:
        with call.lifetime:
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
        if outcome is None:  # cancelled from outside: the connection is being torn down, or what it is asked in has ended
            cause = call.lifetime.cause or ClawError("client_gone")
            outcome = Outcome(cause.kind.outcome, cause)
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
        """How many attempts were made before what is asked now was asked: they are no history of it."""
        self.anew = "steer"
        """What the first attempt after them is for."""
        self.last: Attempt | None = None
        """The attempt that counted last."""
        self.heard: Hearing | None = None
        """Where the answer may go on behind a cut."""
        self.result: Outcome | None = None
        self.lost = False
        """A transform still held part of that good answer."""
        self.detours: Detours | None = None
        """Where a plugin wanted some."""
        self.ids = 0
        """Attempts that had an id of their own: no id comes twice, for the books know what became of it."""
        self.told = False

    async def run(self) -> Outcome:
        exchange, clock = self.exchange, self.clock
        large = self.call.size > LARGE
        if large:  # reading it took its time, and so will decoding and encoding it: others have their turn between
            await trio.lowlevel.checkpoint()
        request = self.asked = self.call.decode()
        self.client.attach(exchange, request)
        self.generation.describe(exchange, request, self.call.deadline)
        if large:
            await trio.lowlevel.checkpoint()
        limits = self.generation.config.limits
        if (self.call.size or limits.frame) > limits.media:
            bound_media(request, limits.media)
        clock.end_after(exchange.deadlines.total)
        if not self._admitted():
            await self._queue()
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
        """The attempt loop: another route while nothing was released; after that only one that goes on with the answer. What the
        client added comes first."""
        exchange, history, steering = self.exchange, self.exchange.attempts, self.steering
        while True:
            while steering is not None and steering.waits:
                await self._steer(steering)
            request, plan, leg = self.request, self.plan, history[self.leg :] if self.leg else history
            assert request is not None
            assert plan is not None
            tried = len(leg)
            if leg and self.call.lifetime.ended:
                # Interrupted in the moment it failed: the next one needs a renewed scope, and what a plan gives is taken by then.
                await trio.lowlevel.checkpoint()
            route = self._next(plan, leg)
            if route.after > 0.0:
                await self._back_off(route.after)
                if steering is not None and steering.waits:
                    continue
            attempt = self._begun(leg, route)
            exchange.route = route
            if tried and attempt.reason == "failover" and route.recorded is None:
                self._tell_failover(leg[:tried])
            if not tried and route.goes_on and is_one_text(request):
                self.heard = Hearing(self.client, exchange, self.generation.config.providers)
            elif attempt.reason == "continue" and self.heard is not None:
                request = self.heard.begin(attempt, request)
            client = self.client if self.heard is None else self.heard
            run: AttemptRun | Race
            if route.hedge_after is None:
                run = AttemptRun(self.generation, exchange, client, self.call.lifetime, self.clock)
            else:
                run = Race(self.generation, exchange, client, self.call.lifetime, self.clock, self._hedge, len(plan.candidates))
            if steering is not None:
                steering.run = run
            try:
                await run.run(attempt, request, has_fallback=len(plan.candidates) > tried + 1)
            except Detour as detour:
                history.remove(attempt)
                if not run.known:
                    self.ids -= 1
                await self._detour(detour, request)
            finally:
                if steering is not None:
                    steering.run = None
                attempt = run.attempt or attempt
                if attempt in history:
                    self.last = attempt
                if run.ended and attempt.error is None:
                    self.result, self.lost = Outcome(attempt.outcome or "complete", None, run.finish), run.lost
            if attempt.error is None and not (steering is not None and steering.waits):
                return await self._finish(Outcome(attempt.outcome or "complete", None, run.finish))

    async def _detour(self, detour: Detour, request: ChatRequest) -> None:
        """A plugin wants something else than the attempt that was to be made: another model's, or to wait for its turn."""
        clock, exchange = self.clock, self.exchange
        clock.hooks_done()
        if self.detours is None:
            self.detours = Detours(self.generation, exchange, clock)
        if detour.turn is not None:
            await self.detours.wait(detour.turn)
            return
        self.request = self.detours.elsewhere(detour, request, exchange.attempts[self.leg :])
        try:
            self.plan = await self.generation.pipeline.choose_route(exchange, self.request, clock.hook)
        except ClawError as error:
            raise detour from error  # it was the gateway's idea: the client is told of what it asked for
        clock.hooks_done()
        self.leg, self.anew = len(exchange.attempts), "failover"
        exchange.notice("fallback", "Another model answers.", model=detour.model, because=detour.slug)

    def _next(self, plan: Plan, leg: Sequence[Attempt]) -> Route:
        """The next route; after content, only one that goes on with the answer. Where no route can answer, and nothing was
        released, what was set aside for that. Raises what the last attempt came to, or what the plan says is in the way."""
        last = self.last if leg else None
        error = last.error if last is not None else None
        try:
            route = self._goes_on(plan, leg) if leg and any(each.content for each in leg) else plan.next(leg)
        except ClawError as refused:
            route, error = None, refused
        principal = self.exchange.principal
        if route is not None and not self.exchange.may_go(route):
            error = error or ClawError("refused.residency")
        elif route is not None:
            if principal.grants is None or route.recorded is not None or principal.may_reach(route.provider):
                return route
            error = ClawError("forbidden", "None of this credential's roles reaches the route that was chosen.")
        return without_route(self.exchange, last, error or ClawError("no_route"), self._unavailable())

    def _unavailable(self) -> str | None:
        model = self.generation.config.models.get(self.exchange.requested_model)
        return None if model is None else model.unavailable

    async def _back_off(self, seconds: float) -> None:
        """Wait before a retry: in the request's scope, and never into what is set aside for another route."""
        now = self.generation.alarms.now()
        await trio.sleep(min(seconds, max(0.0, self.clock.ends - now) * (1 - FALLBACK_SHARE)))
        timing = self.exchange.timing
        timing.queue = (timing.queue or 0.0) + self.generation.alarms.now() - now

    def _begun(self, leg: Sequence[Attempt], route: Route) -> Attempt:
        history = self.exchange.attempts
        if route.reason in ("hedge", "continue", "retry"):
            reason = route.reason
        elif leg:
            reason = "retry" if leg[-1].route.provider == route.provider else "failover"
        else:
            reason = self.anew if self.leg else "first"
        self.ids += 1
        attempt = Attempt(
            id=self.exchange.request_id if self.ids == 1 else f"{self.exchange.request_id}.{self.ids}",
            number=len(history) + 1,
            reason=reason,
            route=route,
            started=time.time(),
        )
        history.append(attempt)
        return attempt

    def _tell_failover(self, before: Sequence[Attempt]) -> None:
        if not any(each.reason == "failover" for each in before):
            self.exchange.notice("fallback", "The first route failed; another one answers.")

    def _goes_on(self, plan: Plan, leg: Sequence[Attempt]) -> Route | None:
        """Something was released: only the rest of that answer may still be asked for."""
        if self.heard is None or self.request is None or not self.heard.can_go_on(self.request):
            return None
        route = plan.next(leg)
        return route if route is not None and route.reason == "continue" else None

    def _hedge(self) -> Attempt | None:
        """The attempt to run beside the one under way."""
        history = self.exchange.attempts
        leg = history[self.leg :] if self.leg else history  # itself where it can be: a plan may look at it later
        route = self.plan.next(leg) if self.plan is not None else None
        if route is None or route.reason != "hedge" or not self.exchange.principal.may_reach(route.provider):
            return None
        if not self.exchange.may_go(route):
            return None
        return self._begun(leg, route)

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
        self.leg, self.anew = len(history), "steer"
        self.heard = None
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

    def _admitted(self) -> bool:
        """Whether there is a place at once. Who is asked within another exchange has that one's."""
        if self.call.parent is None:
            self.ticket = self.generation.admission.try_enter(self.exchange.principal.key)
            return self.ticket is not None
        return True

    async def _queue(self) -> None:
        """Wait for a place, fairly by key, under the `queue` clock."""
        began = trio.current_time()
        self.clock.wait_for_place()
        self.ticket = await self.generation.admission.enter(self.exchange.principal.key)
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
        if self.detours is not None:
            self.detours.leave()
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
