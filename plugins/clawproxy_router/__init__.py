"""Where a request goes: the routes of its model, in the order its strategy gives them.

Rule 1: a route is tried again elsewhere only while no content came back, and only for a provider's fault that another
        provider may not have. That holds for every strategy: they order, `PriorityPlan` goes through the order.
Rule 2: a request that a provider may have begun to work on is not sent to that provider a second time.
Rule 3: a model nobody configured is answered None (another router may know it); one the caller may not use looks the same.
Rule 4: policies come first (`policies`): they may refuse, rename, restrict; what they leave is then chosen from as ever.
Rule 5: where nothing but `priority` is configured nothing is weighed, watched or learnt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import field, frozen

from clawproxy.config import Config
from clawproxy.errors import ClawError, ConfigError
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import ChatRequest, Route
from clawproxy_router.candidates import candidates_for
from clawproxy_router.choosing import Choice
from clawproxy_router.learned import Learned, learned_of
from clawproxy_router.needs import Needs, needs_of
from clawproxy_router.plan import PriorityPlan, RouterSettings
from clawproxy_router.policies import Placing, Policies, compiled
from clawproxy_router.policies.placing import told
from clawproxy_router.tree import LEARNING, REASONS, Group, strategies, tree_of
from clawproxy_router.watch import Watch

if TYPE_CHECKING:
    from clawproxy.context import App, Attempt, Exchange, Registry

__all__ = ["PriorityPlan", "RouterSettings", "candidates_for"]

PLANS = 4096
"""Plans kept ready."""
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
    plans: dict[tuple[str, tuple[str, ...]], PriorityPlan] = field(factory=dict)
    """By model and the caller's `models`: a plan changes with nothing else. Begun anew when full: clients may name models without
    end."""
    policies: Policies | None = None
    placing: Placing | None = None

    @property
    def unused_hooks(self) -> frozenset[str]:
        return frozenset({*(() if self.watched else ("open_attempt",)), *(() if self.policies else ("prepare_request",))})

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
    for name in app.config.models:
        tree = tree_of(app.config, name)
        kinds = strategies(tree)
        if kinds != ONLY_PRIORITY:
            trees[name] = tree
        if kinds & LEARNING:
            watched |= set(tree.places)
    policies = compiled(app.config, app)
    placing = None if policies is None else Placing(app.config)
    return Router(app.config, config, app, trees, frozenset(watched), policies=policies, placing=placing)


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
async def choose_route(exchange: Exchange, request: ChatRequest, state: Router) -> PriorityPlan | None:
    """Raises ClawError: `model_not_found` where the caller may not use the model; where no route can serve the request, by what
    is lacking."""
    if state.policies is not None and "policies" in exchange.state:
        place = exchange.state["policies"]
        if place is None:
            return None
        try:
            return choose(exchange, request, state, place.tree)
        finally:
            exchange.considered = told(exchange.considered, place)
    key = (request.model, tuple(exchange.principal.models))
    plan = state.plans.get(key)
    if plan is not None:
        return plan
    if not exchange.principal.may_use(request.model):
        raise ClawError("model_not_found", param="model")
    tree = state.trees.get(request.model)
    if tree is not None:
        return choose(exchange, request, state, tree)
    candidates = candidates_for(state.config, request.model, exchange.principal)
    if not candidates:
        return None
    plan = PriorityPlan(candidates, state.settings.max_attempts)
    if len(state.plans) >= PLANS:
        state.plans.clear()
    state.plans[key] = plan
    return plan


def choose(exchange: Exchange, request: ChatRequest, state: Router, tree: Group) -> PriorityPlan:
    """A plan for this request alone, and why."""
    needs = needs_of(request, exchange.principal, exchange.wanted)
    exchange.state["router"] = needs
    learned, settings = state.learned(), state.settings
    choice = Choice(needs, learned, request.model, settings.explore, settings.memory, learned.now())
    try:
        routes = choice.made(tree)
    finally:
        exchange.considered = choice.considered
    first = routes[0]
    state.app.count("clawproxy_route_decisions_total", strategy=first.strategy, why=first.reason)
    return PriorityPlan(routes, settings.max_attempts)


@hookimpl
def open_attempt(exchange: Exchange, request: ChatRequest, route: Route, attempt: Attempt, state: Router) -> Watch | None:
    if route.recorded is not None or (route.provider, route.model) not in state.watched:
        return None
    needs: Needs | None = exchange.state.get("router")
    return Watch(state.learned(), exchange, request, attempt, needs, state.settings.memory)
