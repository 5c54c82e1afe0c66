"""Which of a plan's routes may be asked now, with which credential, and what each attempt's end says of them.

    Guard.next       a plan's answer where something is wrong, or credentials take turns; else the plan answers by itself
    Guard.finished   an attempt is over: breakers, credentials and the budget are told

Rule 1: only what a provider did counts against it: not a client that left, not a refused request, not the gateway's own
        shortage, and no clock that a short deadline of the client's made ring early.
Rule 2: nothing here waits. A probe is taken by `next` and given back by `finished`; one that never began is given up (`Probe`).
Rule 3: each change of a state is logged and counted, by provider and model; of credentials only which one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import define, evolve, field, frozen

from clawproxy.config import SecretRef
from clawproxy.context import App, Attempt, Checked, Considered, Exchange
from clawproxy.errors import ClawError
from clawproxy.hookspecs import Plan
from clawproxy.messages import Route
from clawproxy_router.breakers import Breaker, BreakerSettings, Probe
from clawproxy_router.credentials import FAULTS, LEAST, LIMITED, MOST, SPENT, CredentialSettings
from clawproxy_router.ejection import EjectionSettings, Key, ejected, fails_more
from clawproxy_router.health import Health, health_of
from clawproxy_router.plan import Supposed, may_go_elsewhere, place_of, unknown_to
from clawproxy_router.retries import RetrySettings, may_be_sent_again, wait_before

if TYPE_CHECKING:
    from clawproxy_router.plan import PriorityPlan

BREAKING: Final = frozenset(
    {
        *(f"provider_error.{kind}" for kind in ("unreachable", "cut", "malformed", "server", "overloaded")),
        *(f"timeout.{clock}" for clock in ("connect", "first_token", "stall")),
    }
)
"""Faults that count against a place."""
ANSWERED: Final = frozenset(
    {*FAULTS, "context_length_exceeded", *(f"provider_error.{kind}" for kind in ("rejected", "not_found", "redirect"))}
)
"""Faults that show that it is there: good enough for a probe."""
SHORTENED: Final = "deadlines.total"
"""The setting of a clock that had less than its own limit: the client may have asked for that."""


@frozen(slots=True)
class Obstacle:
    """Why a route can not be asked now, and for how long."""

    why: str
    seconds: float


@define(slots=True, eq=False)
class Guard:
    """One generation's view of the process's `Health`."""

    app: App
    now: Callable[[], float]
    breaking: BreakerSettings = field(factory=BreakerSettings)
    resting: CredentialSettings = field(factory=CredentialSettings)
    retrying: RetrySettings = field(factory=RetrySettings)
    ejecting: EjectionSettings = field(factory=EjectionSettings)
    references: Mapping[str, Sequence[SecretRef]] = field(factory=dict)
    """Each provider's credentials."""
    models: Mapping[Key, Sequence[Sequence[Key]]] = field(factory=dict)
    """The places of each model that has this one and others."""
    places: frozenset[Key] = frozenset()
    """All that `[models]` name."""
    known: Health | None = None
    """`health`, once it was asked for: an attribute is read sooner than a property."""

    @property
    def health(self) -> Health:
        if self.known is None:
            self.known = health_of(self.app)
        return self.known

    # --- which route is next ---------------------------------------------------------------------------------------------

    def next(self, plan: PriorityPlan, history: Sequence[Attempt]) -> Route | None:
        """As `Plan.next`. Raises ClawError where every route rests and nothing was tried yet."""
        if history and (len(history) >= plan.max_attempts or not may_go_elsewhere(history[-1])):
            return None
        now = self.now()
        unknown = unknown_to(history)
        tried = {place_of(attempt.route): attempt for attempt in history}
        used = {
            (attempt.route.provider, attempt.route.credential)
            for attempt in history
            if attempt.error is not None and attempt.error.slug in FAULTS
        }
        obstacles: list[Obstacle] = []
        for route in self.in_order(plan.candidates, now):
            before = tried.get(place_of(route))
            if route.provider in unknown or (before is not None and not (before.error and before.error.slug in FAULTS)):
                continue
            found = self._way(route, now, used)
            if isinstance(found, int):
                return self._taken(evolve(route, reason="failover") if history else route, found, history, now)
            obstacles.append(found)
        if history:
            return self._again(plan, history, unknown, now)
        if obstacles:
            raise _refusal(obstacles)
        return None

    def in_order(self, candidates: Sequence[Route], now: float) -> Sequence[Route]:
        """The plan's order, outliers last."""
        if not self.health.breakers or len(candidates) < 2:
            return candidates
        out = ejected([place_of(route) for route in candidates], self.health, now, self.ejecting)
        return sorted(candidates, key=lambda route: place_of(route) in out) if out else candidates

    def _way(self, route: Route, now: float, used: set[tuple[str, int]]) -> int | Obstacle:
        """The credential to ask it with, or what is in the way."""
        key = place_of(route)
        breaker = self.health.breakers.get(key)
        if breaker is not None:
            attempt = breaker.probe.attempt() if breaker.probe is not None else None
            answers = attempt is not None and attempt.content  # nobody waits for the end of a long answer
            if answers and breaker.probed(True, now, self.breaking, self.app.random) is not None:
                self._tell(key, breaker)
            if breaker.look(now) is not None:
                self._tell(key, breaker)
            wait = breaker.wait(now)
            if wait:
                return Obstacle("breaker_open", wait)
            if breaker.well(now, self.breaking):
                del self.health.breakers[key]
        return self._credential(route.provider, now, used)

    def _credential(self, provider: str, now: float, used: set[tuple[str, int]]) -> int | Obstacle:
        references = self.references.get(provider, ())
        count = len(references) or 1
        first = self.health.turns.get(provider, 0) if count > 1 else 0
        soonest: Obstacle | None = None
        for step in range(count):
            at = (first + step) % count
            record = self.health.credentials.get((provider, at))
            if record is not None:
                ref = references[at] if references else None
                if record.ref != ref or (record.why == "disabled" and record.owner is not self):
                    del self.health.credentials[provider, at]  # the configuration was read anew since
                elif wait := record.wait(now):
                    if soonest is None or wait < soonest.seconds:
                        soonest = Obstacle(record.why, wait)
                    continue
            if (provider, at) not in used:
                return at
        return soonest or Obstacle("", LEAST)

    def _taken(self, route: Route, credential: int, history: Sequence[Attempt], now: float) -> Route:
        """It is asked: the turn passes on, a half-open breaker has its probe."""
        count = len(self.references.get(route.provider, ()))
        if count > 1:
            self.health.turns[route.provider] = (credential + 1) % count
            if route.credential != credential:
                route = evolve(route, credential=credential)
        breaker = self.health.breakers.get(place_of(route))
        if breaker is not None and breaker.state == "half_open":
            self.health.marks += 1
            route = evolve(route, mark=self.health.marks)
            breaker.probe = Probe(route.mark, history.real if isinstance(history, Supposed) else history, now)
        return route

    def _again(self, plan: PriorityPlan, history: Sequence[Attempt], unknown: frozenset[str], now: float) -> Route | None:
        """A route that was tried, where it certainly did nothing, after a while."""
        retries = sum(attempt.route.reason == "retry" for attempt in history)
        if retries >= self.retrying.most:
            return None
        last = {place_of(attempt.route): attempt for attempt in history}
        for route in plan.candidates:
            attempt = last.get(place_of(route))
            if attempt is None or route.provider in unknown or not may_be_sent_again(attempt):
                continue
            found = self._way(route, now, set())
            if isinstance(found, Obstacle):
                continue
            after = wait_before(attempt, retries, self.retrying, self.app.random)
            if after is None:
                continue
            if not self.health.budget.take(self.health.requests, now, self.retrying):
                self.app.count("clawproxy_retry_budget_exhausted_total")
                return None
            slug = attempt.error.slug if attempt.error is not None else ""
            self.app.count("clawproxy_retries_total", reason=slug.partition(".")[2])
            return self._taken(evolve(route, reason="retry", after=after), found, history, now)
        return None

    def once_more(self, route: Route, history: Sequence[Attempt]) -> Route | None:
        """The same place again, for the rest of its answer, where nothing is in the way."""
        now = self.now()
        found = self._way(route, now, set())
        return None if isinstance(found, Obstacle) else self._taken(route, found, history, now)

    def told(self, exchange: Exchange, plan: Plan) -> None:
        """Say which routes are left out, in `exchange.considered`. Takes nothing."""
        now, left_out = self.now(), {}
        last = ejected([place_of(route) for route in plan.candidates], self.health, now, self.ejecting)
        for route in plan.candidates:
            key = place_of(route)
            breaker = self.health.breakers.get(key)
            if breaker is not None and breaker.wait(now) and not (breaker.state == "open" and now >= breaker.until):
                left_out[key] = "breaker_open"
            elif isinstance(found := self._credential(route.provider, now, set()), Obstacle):
                left_out[key] = found.why
            elif key in last:
                left_out[key] = "ejected"
        if left_out:
            seen = exchange.considered or [Considered(route.provider, route.model, "") for route in plan.candidates[:16]]
            kept = [each for each in seen if (each.provider, each.model) not in left_out]
            gone = [each for each in seen if (each.provider, each.model) in left_out]
            exchange.considered = [*kept, *(evolve(each, why=left_out[each.provider, each.model]) for each in gone)]

    # --- what an attempt's end says --------------------------------------------------------------------------------------

    def finished(self, exchange: Exchange, attempt: Attempt) -> None:
        """It failed, or something was wrong before."""
        route, error = attempt.route, attempt.error
        if route.recorded is not None:
            return
        now, slug = self.now(), error.slug if error is not None else ""
        if error is not None and slug in FAULTS:
            if self.resting.enabled:
                self._faulted(exchange, attempt, error, now)
        elif error is None or attempt.content:
            record = self.health.credentials.get((route.provider, route.credential))
            if record is not None and not record.wait(now):  # else it was asked before that one rested
                del self.health.credentials[route.provider, route.credential]
        good: bool | None = None
        if error is not None and slug in BREAKING:
            good = False if error.details.setting != SHORTENED else None
        elif error is None or slug in ANSWERED or attempt.content:
            good = True
        self._judged(exchange, attempt, good, now)

    def checked(self, check: Checked) -> None:
        """A provider with `health` was asked whether it is there."""
        if check.result == "unknown" or not self.breaking.enabled:
            return
        now = self.now()
        places = {key for key in (*self.places, *self.health.breakers) if key[0] == check.provider}
        for key in sorted(places):
            breaker = self.health.breaker(key) if check.down else self.health.breakers.get(key)
            if breaker is None or (check.failures and not check.down):
                continue
            changed = breaker.hold(now, check.lasts) if check.down else breaker.found(now)
            if changed is not None:
                self._tell(key, breaker, cause="check")

    def _judged(self, exchange: Exchange, attempt: Attempt, good: bool | None, now: float) -> None:
        """`good`: None where it says nothing of the place."""
        key = place_of(attempt.route)
        breaker = self.health.breakers.get(key)
        if breaker is None:
            if good is not False:
                return
            breaker = self.health.breaker(key)
        changed = None
        if breaker.probe is not None and breaker.probe.mark == attempt.route.mark:
            if good is None:
                breaker.probe = None
            else:
                changed = breaker.probed(good, now, self.breaking, self.app.random)
        elif good is not None:
            changed = breaker.tell(good, now, self.breaking, self.app.random)
        if changed is not None:
            self._tell(key, breaker, attempt, exchange)
        elif good is False and breaker.state == "closed" and now >= breaker.ejected:
            if fails_more(key, self.models.get(key, ()), self.health, now, self.ejecting, self.breaking):
                self.eject(key, now, "failures")
        elif breaker.well(now, self.breaking):
            del self.health.breakers[key]

    def eject(self, key: Key, now: float, cause: str) -> None:
        breaker = self.health.breaker(key)
        breaker.ejected = now + self.ejecting.time
        self.app.count("clawproxy_ejections_total", provider=key[0])
        fields = {"provider": key[0], "provider_model": key[1], "rest_ms": round(self.ejecting.time * 1000), "cause": cause}
        self.app.log("route.ejected", "warning", **fields)

    def _faulted(self, exchange: Exchange, attempt: Attempt, error: ClawError, now: float) -> None:
        """The credential's own fault."""
        provider, at = attempt.route.provider, attempt.route.credential
        references = self.references.get(provider, ())
        record = self.health.credential((provider, at))
        record.ref = references[at] if at < len(references) else None
        asked = error.details.retry_after_ms
        alert = error.slug != LIMITED
        if error.slug == LIMITED:
            news = record.limited(None if asked is None else asked / 1000, now, self.resting)
            if asked is None:  # the client is told when it may come back, whoever says so
                error.details = evolve(error.details, retry_after_ms=_milliseconds(record.wait(now)))
        elif error.slug == SPENT:
            news = record.overspent(now, self.resting)
        else:
            news = record.refused(now, self.resting, self)
        if news:
            self.app.count("clawproxy_credential_rests_total", provider=provider, why=record.why)
        if news or alert:
            self.app.log(
                f"credential.{record.why if news else 'refused'}",
                "error" if alert else "warning",
                provider=provider,
                provider_model=attempt.route.model,
                credential=at,
                rest_ms=round(record.wait(now) * 1000) or None,
                error=error.slug,
                alert=alert or None,
                generation=exchange.generation or None,
                request_id=exchange.request_id,
            )
        if alert:
            self.app.count("clawproxy_credential_alerts_total", provider=provider, why=error.slug.partition(".")[2])

    def _tell(
        self,
        key: Key,
        breaker: Breaker,
        attempt: Attempt | None = None,
        exchange: Exchange | None = None,
        cause: str | None = None,
    ) -> None:
        """A breaker changed."""
        self.app.count("clawproxy_breaker_transitions_total", provider=key[0], state=breaker.state)
        self.app.log(
            "route.breaker",
            "warning" if breaker.state == "open" else "info",
            provider=key[0],
            provider_model=key[1],
            state=breaker.state,
            rest_ms=round(max(0.0, breaker.until - self.now()) * 1000) if breaker.state == "open" else None,
            error=attempt.error.slug if attempt is not None and attempt.error is not None else None,
            request_id=exchange.request_id if exchange is not None else None,
            generation=(exchange.generation or None) if exchange is not None else None,
            cause=cause,
        )


def _milliseconds(seconds: float) -> int:
    return round(min(max(seconds, LEAST), MOST) * 1000)


def _refusal(obstacles: Sequence[Obstacle]) -> ClawError:
    """What a client gets where every route rests: when to come back, and the least bad of the reasons."""
    words = {obstacle.why for obstacle in obstacles}
    if "breaker_open" in words or "cooling" in words:
        waits = [obstacle.seconds for obstacle in obstacles if obstacle.why in ("breaker_open", "cooling")]
        slug = "breaker_open" if "breaker_open" in words else "rate_limited"
        return ClawError(f"provider_error.{slug}", retry_after_ms=_milliseconds(min(waits)))
    return ClawError(SPENT if "spent" in words else "provider_error.auth")
