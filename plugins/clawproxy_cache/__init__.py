"""The response cache: a request that was answered before, word for word the same, gets the same answer, and no provider is asked.

Rule 1: exact or not at all. The key is the whole request as it was authorised, and who may share the answer (`asked`).
Rule 2: a hit is a route that brings its answer with it (`Route.recorded`). It takes the way of every request: the same admission,
        the same taps, a ledger row (no tokens, no cost, source `cache`), an audit row, an outcome.
Rule 3: it never answers what the router would refuse: whether the key may use the model is looked at each time.
Rule 4: the client has the last word: `Cache-Control: no-cache`, `no-store`, `max-age=N`.

It does nothing unless it stands in `[pipeline] order`, before `router`. Identical requests that are under way at once each go to
the provider: there is no waiting for somebody else's answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import blake2b

from attrs import define, field, frozen

from clawproxy.context import App, Attempt, Exchange, Registry
from clawproxy.errors import ConfigError
from clawproxy.hookspecs import Observe, hookimpl
from clawproxy.messages import ChatRequest, Principal, Route
from clawproxy_cache.answers import Answers, Recorder
from clawproxy_cache.asked import Asked, asked_of, wish
from clawproxy_cache.settings import CacheSettings

__all__ = ["CacheSettings", "attempt_finished", "choose_route", "configure", "register", "tap_response"]

PROVIDER = "cache"
"""What log, ledger and audit call who answered."""


@frozen(slots=True, eq=False)
class Cache:
    """One generation of the plugin."""

    settings: CacheSettings
    app: App
    fingerprint: bytes
    """Of the models and providers: answers of another configuration are not found."""

    @property
    def answers(self) -> Answers:
        answers: Answers | None = self.app.shared.get("cache")
        if answers is None:
            answers = self.app.shared["cache"] = Answers()
        return answers

    def scope(self, exchange: Exchange) -> tuple[str, ...]:
        # What was answered under one residency is no answer under another.
        bound = () if exchange.residency is None else ("residency", *exchange.residency.rules)
        return (*bound, *self._sharers(exchange.principal))

    def _sharers(self, principal: Principal) -> tuple[str, ...]:
        # Whom roles keep from a provider, or a region, they keep from its answers, too.
        roles = () if principal.grants is None else tuple(sorted(grant.role for grant in principal.grants))
        if self.settings.scope == "global":
            return ("global", *roles)
        if self.settings.scope == "team" and principal.team is not None:
            return ("team", principal.team, *roles)
        # The tokens of one issuer have one key between them.
        return ("key", principal.key, principal.user or "", *roles)

    def asked(self, exchange: Exchange, request: ChatRequest) -> Asked | None:
        if self.settings.deterministic_only and request.temperature != 0 and request.operation != "embeddings":
            return None
        return asked_of(request, self.scope(exchange), self.fingerprint, wish(request, exchange.cache_control))


@define(slots=True, eq=False)
class Pending:
    """`exchange.state["cache"]`: an answer that may be kept."""

    asked: Asked
    recorders: dict[str, Recorder] = field(factory=dict)
    """By the attempt's id: two may be under way at once."""
    stale: float | None = None
    """When the answer that is the last resort was given, by `time.monotonic()`."""


@frozen(slots=True)
class Hit:
    """A plan of one route, which can not fail."""

    candidates: Sequence[Route]

    def next(self, history: Sequence[Attempt]) -> Route | None:
        return None if history else self.candidates[0]


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("cache", CacheSettings)


@hookimpl
def configure(config: CacheSettings | None, app: App) -> Cache:
    """Raises ConfigError where the router would be asked first."""
    order = app.config.pipeline.order
    if "cache" in order and "router" in order and order.index("cache") > order.index("router"):
        raise ConfigError(["pipeline.order: `cache` stands after `router`, which would answer first; put it before."])
    what = repr((app.config.models, app.config.providers, app.config.residency))
    return Cache(config or CacheSettings(), app, blake2b(what.encode("utf-8", "backslashreplace"), digest_size=32).digest())


@hookimpl
async def choose_route(exchange: Exchange, request: ChatRequest, state: Cache) -> Hit | None:
    settings = state.settings
    if not settings.covers(request.model) or not exchange.principal.may_use(request.model):
        return None
    asked = state.asked(exchange, request)
    if asked is not None and asked.store:
        exchange.state["cache"] = Pending(asked)
    if asked is None or not asked.lookup:
        _tell(exchange, state, "bypass")
        return None
    now = time.monotonic()
    oldest = settings.ttl if asked.max_age is None else min(settings.ttl, asked.max_age)
    answer = state.answers.get(asked.key, now, oldest)
    batches = answer.played(asked.form, asked.plain) if answer is not None else None
    if answer is None or batches is None:
        _tell(exchange, state, "miss")
        if settings.stale_if_error and asked.max_age is None:
            _set_aside(exchange, request, state, asked, now)
        return None
    age = int(now - answer.stored)
    _tell(exchange, state, "hit")
    exchange.answer_header("age", str(age))
    exchange.notice("cached", "This answer was given before to the same request; no provider was asked.", age_seconds=age)
    return Hit((Route(PROVIDER, request.model, "hit", "cache", recorded=batches),))


def _set_aside(exchange: Exchange, request: ChatRequest, state: Cache, asked: Asked, now: float) -> None:
    """An older answer, for where no route can give one. A client that named an age (`max-age`), or said `no-store`, does not
    take it."""
    pending: Pending | None = exchange.state.get("cache")
    answer = state.answers.get(asked.key, now, state.settings.ttl + state.settings.stale_if_error)
    batches = answer.played(asked.form, asked.plain) if answer is not None else None
    if answer is not None and batches is not None and pending is not None:
        pending.stale = answer.stored
        exchange.last_resort = Route(PROVIDER, request.model, "degraded", "cache", recorded=batches)


def _tell(exchange: Exchange, state: Cache, result: str) -> None:
    exchange.answer_header("x-claw-cache", result)
    state.app.count("clawproxy_cache_total", result=result)


@hookimpl
def tap_response(exchange: Exchange, route: Route, attempt: Attempt, state: Cache) -> Observe | None:
    pending: Pending | None = exchange.state.get("cache")
    if pending is None or route.recorded is not None or attempt.reason == "continue":  # the rest of an answer is none
        if pending is not None and pending.stale is not None and route is exchange.last_resort:
            exchange.answer_header("age", str(int(time.monotonic() - pending.stale)))
            state.app.count("clawproxy_cache_total", result="stale")
        return None
    pending.recorders[attempt.id] = recorder = Recorder(state.settings.max_answer)
    return Observe(recorder.see)


@hookimpl
def attempt_finished(exchange: Exchange, attempt: Attempt, state: Cache) -> None:
    """Keep a good answer. `complete` is said only after the provider's own last word."""
    pending: Pending | None = exchange.state.get("cache")
    recorder = pending.recorders.pop(attempt.id, None) if pending is not None else None
    if pending is None or recorder is None:
        return
    if attempt.outcome != "complete" or attempt.error is not None:
        return
    asked = pending.asked
    answer = recorder.answer(asked.form, asked.plain, time.monotonic())
    if answer is not None and answer.size <= state.settings.max_bytes:
        state.answers.put(asked.key, answer, state.settings.max_bytes)
        state.app.count("clawproxy_cache_total", result="stored")
