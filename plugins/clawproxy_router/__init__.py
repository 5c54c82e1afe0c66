"""Where a request goes: the routes of its model, in the order its strategy gives them.

Rule 1: a route is tried again elsewhere only while no content came back, and only for a provider's fault that another
        provider may not have. That holds for every strategy: they order, `PriorityPlan` goes through the order.
Rule 2: a request that a provider may have begun to work on is not sent to that provider a second time.
Rule 3: a model nobody configured is answered None (another router may know it); one the caller may not use looks the same.
Rule 4: policies come first (`policies`): they may refuse, rename, restrict; what they leave is then chosen from as ever.
Rule 5: where nothing but `priority` is configured nothing is weighed, watched or learnt; while nothing is wrong, nothing is
        looked at (`resting`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from attrs import evolve, field, frozen

from clawproxy.config import Config, Hedge
from clawproxy.errors import ClawError, ConfigError
from clawproxy.hookspecs import Plan, hookimpl
from clawproxy.messages import EMPTY, ChatRequest, Grant, Route
from clawproxy_router.affinity import Trail, trail_of
from clawproxy_router.candidates import candidates_for
from clawproxy_router.choosing import Choice
from clawproxy_router.continuing import Continuing
from clawproxy_router.ejection import is_slower
from clawproxy_router.health import health_of
from clawproxy_router.hedging import Hedging, hedges_of
from clawproxy_router.learned import Learned, learned_of
from clawproxy_router.needs import Needs, needs_of
from clawproxy_router.plan import PriorityPlan, RouterSettings, place_of
from clawproxy_router.policies import Placing, Policies, compiled
from clawproxy_router.policies.placing import told
from clawproxy_router.resting import Guard
from clawproxy_router.roles import MOST_TOLD, Reach, is_bound
from clawproxy_router.tree import LEARNING, REASONS, Group, strategies, tree_of
from clawproxy_router.watch import Watch

if TYPE_CHECKING:
    from clawproxy.context import App, Attempt, Checked, Exchange, Registry

__all__ = ["PriorityPlan", "RouterSettings", "candidates_for"]

PLANS = 4096
"""Plans kept ready."""
TRAILS = "router.affinity"
ONLY_PRIORITY = frozenset({"priority"})


@frozen(slots=True)
class Router:
    """One generation of the plugin."""

    config: Config
    settings: RouterSettings
    app: App
    trees: dict[str, Group] = field(factory=dict)
    """Of the models that have something to weigh for each request."""
    watched: frozenset[tuple[str, str]] = frozenset()
    """Places whose attempts somebody learns from."""
    guard: Guard = field(kw_only=True)
    plans: dict[tuple[str, tuple[str, ...], tuple[Grant, ...] | None], Plan] = field(factory=dict)
    """By model and the caller's `models` and roles: a plan changes with nothing else. Begun anew when full: clients may name
    models without end."""
    hedged: Mapping[str, Hedge] = EMPTY
    """By model."""
    quantiles: Mapping[tuple[str, str], float] = field(factory=dict)
    """Places whose times to a first token are learnt, and which share of them is asked for."""
    continued: frozenset[str] = frozenset()
    """Models whose answers go on behind a cut."""
    policies: Policies | None = None
    placing: Placing | None = None
    reach: Reach = field(kw_only=True)

    @property
    def unused_hooks(self) -> frozenset[str]:
        return frozenset({*(() if self.watched else ("open_attempt",)), *(() if self.policies else ("prepare_request",))})

    def plan(self, candidates: Sequence[Route]) -> PriorityPlan:
        several = any(len(self.guard.references.get(route.provider, ())) > 1 for route in candidates)
        return PriorityPlan(candidates, self.settings.max_attempts, self.guard, several)

    def learned(self) -> Learned:
        return learned_of(self.app, trio.current_time)


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("router", RouterSettings)


@hookimpl
def configure(config: RouterSettings, app: App) -> Router:
    """Raises ConfigError for a strategy that is not known."""
    problems = [
        f'models."{name}".strategy: {model.strategy!r} is not known to this version; use one of {", ".join(REASONS)}.'
        for name, model in app.config.models.items()
        if model.strategy not in REASONS
    ]
    if problems:
        raise ConfigError(problems)
    trees, watched = {}, set()
    places: set[tuple[str, str]] = set()
    siblings: dict[tuple[str, str], list[tuple[tuple[str, str], ...]]] = {}
    for name in app.config.models:
        tree = tree_of(app.config, name)
        places |= set(tree.places)
        for place in tree.places if len(tree.places) > 1 else ():
            siblings.setdefault(place, []).append(tree.places)
        kinds = strategies(tree)
        if kinds != ONLY_PRIORITY:
            trees[name] = tree
        if kinds & LEARNING or tree.sticky:
            watched |= set(tree.places)
    models = app.config.models
    hedged = {name: model.hedge for name, model in models.items() if model.hedge is not None}
    quantiles: dict[tuple[str, str], float] = {}
    for name, hedge in hedged.items():
        if hedge.quantile is not None:
            for place in tree_of(app.config, name).places:
                quantiles[place] = max(hedge.quantile, quantiles.get(place, 0.0))
    continued = frozenset(name for name, model in models.items() if model.continuation)
    if config.ejection.enabled and config.ejection.slower:
        watched |= set(siblings)
    guard = Guard(
        app,
        trio.current_time,
        config.breaker,
        config.credentials,
        config.retries,
        config.ejection,
        {name: provider.credentials for name, provider in app.config.providers.items()},
        siblings,
        frozenset(places),
    )
    policies = compiled(app.config, app)
    return Router(
        app.config,
        config,
        app,
        trees,
        frozenset(watched),
        guard=guard,
        hedged=hedged,
        quantiles=quantiles,
        continued=continued,
        policies=policies,
        placing=None if policies is None else Placing(app.config),
        reach=Reach(app.config),
    )


@hookimpl
async def prepare_request(exchange: Exchange, request: ChatRequest, state: Router) -> ChatRequest | None:
    """What the policies make of it. Raises Refusal."""
    policies, placing = state.policies, state.placing
    if policies is None or placing is None or not exchange.principal.may_use(request.model):
        return None
    verdict, changed = policies.prepared(exchange, request, state.app)
    exchange.state.pop("policies", None)
    if verdict.moves:
        place = placing.place(verdict, changed.model)
        exchange.state["policies"] = place
        if place is not None and changed.operation == "chat":
            exchange.candidates = place.routes
    return None if changed is request else changed


@hookimpl
@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    health, labels = health_of(app), ("provider", "model")
    words = "0 closed, 1 half-open, 2 open: of places that failed of late; others are well."
    app.gauge("clawproxy_breaker_state", words, health.states, labels)
    yield


@hookimpl
async def choose_route(exchange: Exchange, request: ChatRequest, state: Router) -> Plan | None:
    """Raises ClawError: `model_not_found` where the caller may not use the model; where no route can serve the request, by what
    is lacking."""
    health = state.guard.known or state.guard.health
    principal = exchange.principal
    if state.policies is not None and "policies" in exchange.state:
        place = exchange.state["policies"]
        if place is None:
            return None
        try:
            within = chosen_within if is_bound(exchange) else choose
            placed = within(exchange, request, state, place.tree)
        finally:
            exchange.considered = told(exchange.considered, place)
        if placed is not None and (health.breakers or health.credentials):
            state.guard.told(exchange, placed)
        return placed
    key = (request.model, tuple(principal.models), principal.grants)
    plan = state.plans.get(key)
    if plan is not None and exchange.residency is None:
        if health.breakers or health.credentials:
            state.guard.told(exchange, plan)
        return plan
    if not principal.may_use(request.model):
        raise ClawError("model_not_found", param="model")
    tree = state.trees.get(request.model)
    bound = is_bound(exchange)
    if bound or tree is not None:
        whole = tree or request.model
        chosen = (
            chosen_within(exchange, request, state, whole) if bound or tree is None else choose(exchange, request, state, tree)
        )
        if chosen is not None and (health.breakers or health.credentials):
            state.guard.told(exchange, chosen)
        return chosen
    candidates = candidates_for(state.config, request.model, principal)
    if not candidates:
        return None
    plan = eager(request, state, candidates)
    if request.model in state.hedged:
        return plan
    if len(state.plans) >= PLANS:
        state.plans.clear()
    state.plans[key] = plan
    return plan


def choose(exchange: Exchange, request: ChatRequest, state: Router, tree: Group) -> Plan:
    """A plan for this request alone, and why."""
    needs = needs_of(request, exchange.principal, exchange.wanted)
    exchange.state["router"] = needs
    learned, settings = state.learned(), state.settings
    trails = _trails(exchange, request, state, learned, tree) if tree.sticky else {}
    choice = Choice(
        needs, learned, request.model, settings.explore, settings.memory, learned.now(), trails, settings.affinity_load
    )
    try:
        routes = choice.made(tree)
    finally:
        exchange.considered = choice.considered
    first = routes[0]
    state.app.count("clawproxy_route_decisions_total", strategy=first.strategy, why=first.reason)
    return eager(request, state, routes)


def chosen_within(exchange: Exchange, request: ChatRequest, state: Router, whole: Group | str) -> Plan | None:
    """Among what the caller's roles reach of a tree, and where its data may go. Where roles leave nothing, the model is none that
    the caller knows of."""
    tree, outside = state.reach.left(whole, exchange, request)
    try:
        if not tree.children:
            if any(each.why == "residency" for each in outside):
                raise ClawError("refused.residency")
            if outside:
                raise ClawError("model_not_found", param="model")
            return None
        return choose(exchange, request, state, tree)
    finally:
        if outside:
            exchange.considered = [*exchange.considered, *outside][:MOST_TOLD]


def eager(request: ChatRequest, state: Router, routes: Sequence[Route]) -> Plan:
    """The plan that goes through `routes`, with what the model's `continuation` and `hedge` add to it."""
    settings, model = state.settings, request.model
    continued = model in state.continued
    if continued:
        routes = [evolve(route, goes_on=True) for route in routes]
    plan: Plan = state.plan(routes)
    if continued:
        plan = Continuing(plan, settings.max_attempts, state.guard)
    hedge = state.hedged.get(model)
    if hedge is None or request.operation != "chat":
        return plan
    hedges = hedges_of(state.app)
    hedges.pay(settings.hedge_share)
    return Hedging(plan, hedges, hedge, settings.hedge_floor, state.app.count)


def _trails(exchange: Exchange, request: ChatRequest, state: Router, learned: Learned, tree: Group) -> dict[str, Trail]:
    """What the prompt is known by, and which places have it in their caches."""
    trails: dict[str, Trail] = {}
    for kind in tree.sticky:
        trail = trail_of(kind, exchange, request, state.app)
        if trail is not None:
            trail.expected.update(learned.caches.recall(trail, learned.now()))
            trails[kind] = trail
    exchange.state[TRAILS] = trails
    return trails


@hookimpl
def open_attempt(exchange: Exchange, request: ChatRequest, route: Route, attempt: Attempt, state: Router) -> Watch | None:
    if route.recorded is not None or (route.provider, route.model) not in state.watched:
        return None
    needs: Needs | None = exchange.state.get("router")
    trails: dict[str, Trail] = exchange.state.get(TRAILS, {})
    settings = state.settings
    return Watch(state.learned(), exchange, request, attempt, needs, settings.memory, trails.values(), settings.affinity_ttl)


@hookimpl
def attempt_finished(exchange: Exchange, attempt: Attempt, state: Router) -> None:
    share = state.quantiles.get(place_of(attempt.route)) if state.quantiles else None
    if share is not None and attempt.route.recorded is None:
        hedges_of(state.app).learn(exchange, attempt, share)
    guard = state.guard
    health = guard.known or guard.health
    if attempt.number == 1:
        health.requests += 1
    if attempt.error is not None or health.breakers or health.credentials:
        guard.finished(exchange, attempt)
    if state.settings.ejection.slower:
        key = place_of(attempt.route)
        breaker, now = health.breakers.get(key), guard.now()
        if (breaker is None or now >= breaker.ejected) and is_slower(
            key, guard.models.get(key, ()), state.learned().places, guard.ejecting
        ):
            guard.eject(key, now, "slow")


@hookimpl
def provider_checked(check: Checked, state: Router) -> None:
    state.guard.checked(check)
