"""Two attempts at once: where a route gives no content in time, a second one runs beside it, and the first to speak wins.

    exchange      a route with `hedge_after` is tried in a `Race` instead of alone
    race          first attempt -> no content in time -> `plan.next` for a route with the reason `hedge` -> both in a nursery
    lane          one attempt in a scope of its own, under clocks of its own; its way to the client asks who has won

Rule 1: who gives content first, or a whole answer without any, has won. That is decided synchronously (`Race.wins`), before any
        of it is looked at further; the other one's scope is cancelled in the same moment, which closes its provider's connection.
Rule 2: nothing of a loser reaches the client: neither content, nor an error, nor its route.
Rule 3: an attempt that fails before anybody has won only leaves the race. Where both have, ordinary failover goes on.
Rule 4: both are whole attempts, with plugins' contexts, a ledger row and clocks of their own; only `total` is common. What ends
        the request ends both: they run inside its scope.
Rule 5: the nursery is opened for a request that may be hedged, and for no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from clawproxy.attempts import AttemptRun
from clawproxy.context import Attempt, Exchange, Timing
from clawproxy.detours import leave
from clawproxy.errors import ClawError
from clawproxy.events import Batch, FinishReason
from clawproxy.exchange_clock import ExchangeClock
from clawproxy.hookspecs import Detour
from clawproxy.messages import ChatRequest

if TYPE_CHECKING:
    from clawproxy.gateway import Generation
    from clawproxy.lifetime import Lifetime
    from clawproxy.service import Sink


class Race:
    """Runs the attempt of a route with `hedge_after`, and one beside it if it comes to that. Used as an `AttemptRun` is.

    Args:
        lifetime: the request's.
        clock: the exchange's; while attempts run under clocks of their own it only watches `total`.
        another: asks the plan, once, for the attempt to run beside the first; None where there is none.
        routes: how many the plan has: while there is another to go to, attempts get a slice of the time left.

    Attributes:
        attempt: the one that counts: who has won, else who gave up last.
    """

    def __init__(
        self,
        generation: Generation,
        exchange: Exchange,
        client: Sink,
        lifetime: Lifetime,
        clock: ExchangeClock,
        another: Callable[[], Attempt | None],
        routes: int,
    ) -> None:
        self.generation = generation
        self.exchange = exchange
        self.client = client
        self.lifetime = lifetime
        self.clock = clock
        self.attempt: Attempt | None = None
        self._another = another
        self._routes = routes
        self._lanes: list[_Lane] = []
        self._winner: _Lane | None = None
        self._settled = trio.Event()
        """Nobody is wanted beside the first attempt any more."""
        self._began = generation.alarms.now()
        self._before = exchange.timing.queue, exchange.timing.connect, exchange.timing.upstream

    @property
    def ended(self) -> bool:
        return self._winner is not None and self._winner.run.ended

    @property
    def lost(self) -> bool:
        return self._winner is not None and self._winner.run.lost

    @property
    def known(self) -> bool:
        return any(lane.run.known for lane in self._lanes)

    @property
    def finish(self) -> FinishReason | None:
        return None if self._winner is None else self._winner.run.finish

    async def run(self, attempt: Attempt, request: ChatRequest, *, has_fallback: bool) -> None:
        """Make the attempt, or both. Raises what `AttemptRun.run` raises, of the one that counts."""
        after = attempt.route.hedge_after
        assert after is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._enter(attempt).go, request, has_fallback)
                with trio.move_on_after(after):
                    await self._settled.wait()
                if not self._settled.is_set() and (hedge := self._ask()) is not None:
                    more = self._routes > len(self._lanes) + 1
                    if not more:
                        self._lanes[0].clock.has_no_fallback()
                    nursery.start_soon(self._enter(hedge).go, request, more)
        except BaseException:
            self._leave_queues(None)
            raise
        finally:
            self.clock.beside = None
            self._account()
        self._conclude()

    def _enter(self, attempt: Attempt) -> _Lane:
        lane = _Lane(self, attempt)
        self._lanes.append(lane)
        self.attempt = attempt
        self.clock.beside = lane.clock
        return lane

    def _ask(self) -> Attempt | None:
        try:
            return self._another()
        except ClawError:  # it knows of no other, and says why
            return None
        except Exception as error:  # a plan that can not name a second route must not cost the first its answer
            self.generation.crashed(self.exchange, error)
            return None

    # --- who wins ----------------------------------------------------------------------------------------------------------

    def wins(self, lane: _Lane) -> bool:
        """Whether `lane` has won, or does so now because nobody has."""
        if self._winner is None:
            self._winner = lane
            self.attempt = lane.attempt
            self.exchange.route = lane.attempt.route
            self.clock.beside = lane.clock
            self._settled.set()
            for other in self._lanes:
                if other is not lane:
                    other.ends.interrupt(beaten())
            self._account()  # the answer's head tells of it
        return self._winner is lane

    def over(self, lane: _Lane) -> None:
        """Its attempt came to an end, and its contexts are left."""
        lane.over = True
        if lane.raised is None and lane.attempt.error is None:
            self.wins(lane)
        if self._winner is None:
            self.attempt = lane.attempt
        elif self._winner is not lane:
            lane.attempt.content = False  # none of it was released
        if isinstance(lane.raised, Detour) and lane is not self._lanes[0]:
            self.exchange.attempts.remove(lane.attempt)  # something else was wanted than a hedge: it never was one
            if self._winner is None:
                self.attempt = self._lanes[0].attempt
        if all(each.over for each in self._lanes):
            self._settled.set()

    def _conclude(self) -> None:
        """Raise what the attempt that counts has raised. A refusal met by the first one alone ends the request, as it would
        have without a race; one met by the hedge does not."""
        for lane in self._lanes:
            if lane.raised is not None and not isinstance(lane.raised, ClawError) and lane is not self._winner:
                self.generation.crashed(self.exchange, lane.raised)
        counts, first = self._winner or self._lanes[0], self._lanes[0]
        self._leave_queues(counts)
        if counts is not first and isinstance(first.raised, Detour):
            self.exchange.attempts.remove(first.attempt)  # another one answered meanwhile: what was wanted instead is not needed
        if counts.raised is not None:
            raise counts.raised
        if self._winner is None:
            failed = [lane.attempt for lane in self._lanes if lane.raised is None]
            if self.attempt not in failed:
                self.attempt = failed[-1]

    def _leave_queues(self, counts: _Lane | None) -> None:
        """Nobody waits for the turn of an attempt that does not count."""
        for lane in self._lanes:
            if lane is not counts and isinstance(lane.raised, Detour) and lane.raised.turn is not None:
                leave(lane.raised.turn, self.generation, self.exchange)

    def _account(self) -> None:
        """The exchange's phases: what was spent before, then the winner's. The time until its attempt began went by waiting for
        the other one's provider."""
        timing, lane = self.exchange.timing, self._winner
        queue, connect, upstream = self._before
        if lane is None:
            timing.upstream = (upstream or 0.0) + self.generation.alarms.now() - self._began
            return
        own = lane.clock.timing
        timing.first_token = own.first_token
        timing.queue = _sum(queue, own.queue)
        timing.connect = _sum(connect, own.connect)
        timing.upstream = _sum(upstream, (own.upstream or 0.0) + lane.began - self._began)


class _Lane:
    """One attempt of a race: its scope, its clock, its way to the client."""

    def __init__(self, race: Race, attempt: Attempt) -> None:
        self.race = race
        self.attempt = attempt
        self.ends = LaneEnds(race.lifetime)
        self.clock = _LaneClock(self)
        self.began = race.generation.alarms.now()
        self.run = AttemptRun(race.generation, race.exchange, self, race.lifetime, self.clock)
        self.raised: Exception | None = None
        self.over = False
        attempt.timing = self.clock.timing

    async def go(self, request: ChatRequest, has_fallback: bool) -> None:
        """The task. What the attempt raises is kept for whoever concludes the race; Cancelled is the scope's, or goes up."""
        try:
            with self.ends.scope:
                await self.run.run(self.attempt, request, has_fallback=has_fallback)
        except Exception as error:
            self.raised = error
        finally:
            self.clock.close()
            self.race.over(self)

    async def send(self, batch: Batch) -> None:
        """Raises ClawError("cancelled") where another has won."""
        if not self.race.wins(self):
            raise beaten()
        await self.race.client.send(batch)


class _LaneClock(ExchangeClock):
    """An attempt's clocks; its first content asks who has won."""

    __slots__ = ("_lane",)

    def __init__(self, lane: _Lane) -> None:
        race = lane.race
        super().__init__(race.exchange, lane.ends, race.generation.alarms, race.generation.config.pipeline.hook_budget)
        self.ends = race.clock.ends
        self.timing = Timing()
        self._lane = lane

    def has_no_fallback(self) -> None:
        """Any more: the attempt has all of the time."""
        self._slice = math.inf
        if self._sliced and self._running:
            self._sliced = False
            self._set(self._entered + float(getattr(self._deadlines, self._running)))

    def content(self, batch: Batch) -> None:
        """Raises ClawError("cancelled") where another has won: then its scope is cancelled, too, but has not noticed yet."""
        super().content(batch)
        if not self._lane.race.wins(self._lane):
            raise beaten()


class LaneEnds:
    """What ends one attempt of several: it stands where the request's `Lifetime` does, and interrupts that attempt alone."""

    __slots__ = ("_lifetime", "_why", "scope")

    def __init__(self, lifetime: Lifetime) -> None:
        self.scope = trio.CancelScope()
        self._lifetime = lifetime
        self._why: ClawError | None = None

    @property
    def cause(self) -> ClawError | None:
        return self._lifetime.cause

    @property
    def interruption(self) -> ClawError | None:
        return self._why or self._lifetime.interruption

    def cancel(self, cause: ClawError) -> None:
        """The request's, and with it this one."""
        self._lifetime.cancel(cause)

    def interrupt(self, why: ClawError | None = None) -> None:
        self._why = why
        self.scope.cancel()


def beaten() -> ClawError:
    """What the attempt of a loser comes to."""
    return ClawError("cancelled", "Another attempt answered first.")


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other
