"""Where a request goes: the routes of its model, in the order the operator wrote them.

Rule 1: a route is tried again elsewhere only while no content came back, and only for a provider's fault that another
        provider may not have.
Rule 2: a request that a provider may have begun to work on is not sent to that provider a second time.
Rule 3: a model nobody configured is answered None (another router may know it); one the caller may not use looks the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from clawproxy.config import Config
from clawproxy.errors import ClawError, ConfigError
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import ChatRequest
from clawproxy_router.candidates import candidates_for
from clawproxy_router.plan import PriorityPlan, RouterSettings

if TYPE_CHECKING:
    from clawproxy.context import App, Exchange, Registry

__all__ = ["PriorityPlan", "RouterSettings", "candidates_for"]

PLANS = 4096
"""Plans kept ready."""


@frozen(slots=True)
class Router:
    """One generation of the plugin."""

    config: Config
    settings: RouterSettings
    plans: dict[tuple[str, tuple[str, ...]], PriorityPlan] = field(factory=dict)
    """By model and the caller's `models`: a plan changes with nothing else. Begun anew when full: clients may name models without
    end."""


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("router", RouterSettings)


@hookimpl
def configure(config: RouterSettings, app: App) -> Router:
    """Raises ConfigError for a strategy other than `priority`."""
    problems = [
        f'models."{name}".strategy: {model.strategy!r} is not known to this version; use "priority".'
        for name, model in app.config.models.items()
        if model.strategy != "priority"
    ]
    if problems:
        raise ConfigError(problems)
    return Router(app.config, config)


@hookimpl
async def choose_route(exchange: Exchange, request: ChatRequest, state: Router) -> PriorityPlan | None:
    """Raises ClawError("model_not_found") where the caller may not use the model."""
    key = (request.model, tuple(exchange.principal.models))
    plan = state.plans.get(key)
    if plan is not None:
        return plan
    if not exchange.principal.may_use(request.model):
        raise ClawError("model_not_found", param="model")
    candidates = candidates_for(state.config, request.model, exchange.principal)
    if not candidates:
        return None
    plan = PriorityPlan(candidates, state.settings.max_attempts)
    if len(state.plans) >= PLANS:
        state.plans.clear()
    state.plans[key] = plan
    return plan
