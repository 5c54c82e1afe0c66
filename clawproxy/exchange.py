"""What happens to a request: the story on one page. Read this first.

    transport       bytes -> strict head check -> parser -> gateway.handle(call, client)
    run_exchange      decode -> admit -> prepare_request* -> choose_route             going down, in the operator's order
    attempts          open -> send -> receive* -> relay(batch) -> client.send         coming up; first content commits
    run_exchange      client.finish or client.fail, then exchange_closed, exactly once

Rule 1: one cancel scope (`call.lifetime`) spans the whole of it. Whoever cancels it has said why first.
Rule 2: every way out is an `Outcome` from the closed set; nothing but Cancelled leaves `run_exchange`.
Rule 3: a good answer's end is written inside the scope, under the exchange's own clocks: it may be all of the answer. What
        runs after the scope (telling of an error, closing hooks) is shielded and bounded.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import trio

from clawproxy.admission import Ticket
from clawproxy.attempts import UNDELIVERED, AttemptRun
from clawproxy.clocks import expired
from clawproxy.context import Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Outcome
from clawproxy.messages import ChatRequest

if TYPE_CHECKING:
    from clawproxy.gateway import Generation
    from clawproxy.hookspecs import Plan
    from clawproxy.service import Call, Client

TELLING = 5.0
"""Seconds for the last words to a client, shielded. Its transport's `write` clock is usually the shorter one."""


async def run_exchange(generation: Generation, call: Call, client: Client) -> Outcome:
    """Serve one request from its bytes to its closing hooks. Raises nothing but Cancelled (from outside `call.lifetime`)."""
    exchange = generation.begin(call)
    story = _Story(generation, exchange, call, client)
    outcome: Outcome | None = None
    try:
        with call.lifetime.scope:
            outcome = await story.run()
        if outcome is None:
            outcome = story.interrupted()
    except ClawError as error:
        outcome = story.failed(error)
    except Exception as error:
        generation.crashed(exchange, error)
        outcome = Outcome("internal", ClawError("internal"))
    finally:
        exchange.timing.total = time.perf_counter() - exchange.started
        if outcome is None:  # cancelled from outside: the connection is being torn down
            outcome = Outcome("client_gone", ClawError("client_gone"))
        if not story.told:
            await story.tell(outcome)  # noqa: ASYNC102  # shielded and bounded inside, as is the next
        await generation.closed(exchange, outcome)  # noqa: ASYNC102
    return outcome


class _Story:
    """One exchange under way: the steps of `run_exchange`, in order, and the clock over them."""

    def __init__(self, generation: Generation, exchange: Exchange, call: Call, client: Client) -> None:
        self.generation = generation
        self.exchange = exchange
        self.call = call
        self.client = client
        self.began = trio.current_time()
        self.ends = self.began + exchange.deadlines.total
        call.lifetime.scope.deadline = self.ends
        self.hook = ""
        self.armed = -math.inf
        self.queueing = False
        self.result: Outcome | None = None
        self.lost = False
        self.told = False

    async def run(self) -> Outcome:
        request = self.call.decode()
        self.client.attach(self.exchange, request)
        self.generation.describe(self.exchange, request, self.call.deadline)
        ends = self.began + self.exchange.deadlines.total
        if ends != self.ends:  # the model has a clock of its own
            self.call.lifetime.scope.deadline = self.ends = ends
        ticket = await self._admit()
        try:
            began = time.perf_counter()
            request = await self.generation.pipeline.prepare(self.exchange, request, self._running)
            plan = await self.generation.pipeline.choose_route(self.exchange, request, self._running)
            self.call.lifetime.scope.deadline = self.ends
            self.hook = ""
            self.exchange.timing.policy = time.perf_counter() - began
            outcome = await self._attempt_until_done(request, plan)
            await self._finish(outcome)
            return outcome
        finally:
            self.generation.admission.release(ticket)

    async def _attempt_until_done(self, request: ChatRequest, plan: Plan) -> Outcome:
        """The attempt loop: another route while nothing was released, never after."""
        exchange, history = self.exchange, self.exchange.attempts
        while (route := plan.next(history)) is not None:
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
            run = AttemptRun(self.generation, exchange, self.client, self.call.lifetime)
            try:
                await run.run(attempt, request, ends=self.ends, has_fallback=len(plan.candidates) > len(history))
            finally:
                if run.ended and attempt.error is None:
                    self.result, self.lost = Outcome(attempt.outcome or "complete", None, run.finish), run.lost
            if attempt.error is None:
                return Outcome(attempt.outcome or "complete", None, run.finish)
            if attempt.content:
                break
        raise history[-1].error or ClawError("no_route") if history else ClawError("no_route")

    async def _finish(self, outcome: Outcome) -> None:
        """The end of a good answer. A client that does not take it changes nothing: the provider's last word was heard."""
        self.result = outcome
        self.exchange.timing.total = time.perf_counter() - self.exchange.started
        try:
            await self.client.finish(outcome, self.exchange.usage)
        except ClawError as error:
            if error.slug not in UNDELIVERED:
                self.result = None
                raise
        self.told = True

    async def _admit(self) -> Ticket:
        """Wait for a place, fairly by key, under the `queue` clock."""
        admission = self.generation.admission
        ticket = admission.try_enter(self.exchange.principal.key)
        if ticket is not None:
            return ticket
        began = trio.current_time()
        self.queueing = True
        self.call.lifetime.scope.deadline = min(self.ends, began + self.exchange.deadlines.queue)
        ticket = await admission.enter(self.exchange.principal.key)
        self.queueing = False
        self.call.lifetime.scope.deadline = self.ends
        self.exchange.timing.queue = trio.current_time() - began
        return ticket

    def _running(self, plugin: str) -> None:
        """A plugin's hook begins: it has its budget, and if that runs out we know whose it was."""
        self.hook = plugin
        now = trio.current_time()
        if now - self.armed > 0.01:
            self.armed = now
            self.call.lifetime.scope.deadline = min(self.ends, now + self.generation.config.pipeline.hook_budget)

    def interrupted(self) -> Outcome:
        """The scope was cancelled: by its cause, or by the clock that ran."""
        error = self.call.lifetime.cause
        if self.result is not None and (not self.lost or self._is_gone()):
            return self.result  # the provider's last word was heard: it is complete, whatever the socket does
        if error is None and trio.current_time() < self.ends and self.hook:
            self.generation.pipeline.report(self.hook, "hook_slow", "its time budget ran out")
            error = ClawError("internal", policy=self.hook)
        if error is None and trio.current_time() < self.ends and self.queueing:
            error = expired("queue", self.exchange.deadlines.queue, retry_after_ms=1000)
        if error is None:
            error = expired("total", self.exchange.deadlines.total)
        return Outcome(error.kind.outcome, error)

    def failed(self, error: ClawError) -> Outcome:
        """An error came out of it: its outcome, unless it is only that the client did not take the end of a whole answer."""
        if self.result is not None and error.slug in UNDELIVERED:
            return self.result
        return Outcome(error.kind.outcome, error)

    def _is_gone(self) -> bool:
        cause = self.call.lifetime.cause
        return cause is not None and cause.slug == "client_gone"

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
