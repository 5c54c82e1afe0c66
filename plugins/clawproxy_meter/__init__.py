"""The meter: one ledger row per attempt, opened before anything is sent, closed whatever happens.

Rule 1: no byte goes to a provider before the row that will bill it is kept (`Store.open_row`); where it can not be kept, the
        attempt is refused.
Rule 2: what a provider measured is billed as measured, an explicit zero included. What is missing is estimated and says so; a
        cut answer is never free. An attempt that was never sent is.
Rule 3: a price makes a cost (`clawproxy.costs`), in whole nano-dollars, of the figures that are billed. Without a price, or
        without figures, the cost is not known, which is None and never zero. The row says what priced it.
Rule 4: an attempt that comes under budgets holds its upper bound of each before anything is sent (`budgeted`); others pay nothing
        for there being budgets.
Rule 5: figures are clamped to sane bounds before they reach the books (`figures`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Literal

from attrs import field, frozen, validators

from clawproxy.config import Config, PriceConfig
from clawproxy.context import App, Attempt, Exchange, Registry
from clawproxy.counting import counter_for, installed
from clawproxy.errors import ClawError, ConfigError
from clawproxy.hookspecs import AttemptContext, Observe, Transform, hookimpl
from clawproxy.messages import ChatRequest, Route
from clawproxy.rates import may_price, price_of
from clawproxy_meter.attempts import Metered, metered_of
from clawproxy_meter.budgeted import Budgeted
from clawproxy_meter.budgets import budgets_of
from clawproxy_meter.queues import leave_line
from clawproxy_meter.rules import Rules, compiled
from clawproxy_meter.service import Service, service_of

log = logging.getLogger("clawproxy.meter")
NO_RULES = Rules()

__all__ = ["Meter", "MeterSettings", "configure", "lifespan", "open_attempt", "register", "tap_response"]


MOST_FOUND = 4096
"""Look-ups kept: clients may name models without end."""


@frozen
class MeterSettings:
    """`[plugins.meter]`."""

    estimate_bytes_per_token: float = field(default=4.0, validator=validators.gt(0))
    """How many bytes of UTF-8 text count as one token, where a provider measured nothing and nothing else counts."""
    count: Literal["bytes", "tokens"] = "bytes"
    """What is reserved for a prompt, and what a cut answer is billed by: bytes, or the model's own tokens where its vocabulary is
    known (`clawproxy[tokenizers]`)."""
    default_output_tokens: int = field(default=4096, validator=validators.ge(16))
    """How long an answer may be that comes under a budget, where neither the client nor the route says."""


@frozen(slots=True)
class Meter:
    """One generation of the plugin."""

    settings: MeterSettings
    prices: Mapping[str, PriceConfig]
    """By the model's name; only those that have one."""
    config: Config | None = None
    """Where a route that brings no price may find one; None where nothing has any."""
    found: dict[tuple[str, str], PriceConfig | None] = field(factory=dict)
    """By provider and the model's name there: what was looked up."""
    rules: Rules = NO_RULES

    def look_up(self, config: Config, route: Route) -> PriceConfig | None:
        key = route.provider, route.model
        if key not in self.found:
            if len(self.found) >= MOST_FOUND:
                self.found.clear()
            self.found[key] = price_of(config, *key)
        return self.found[key]


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("meter", MeterSettings)


@hookimpl
def configure(config: MeterSettings | None, app: App) -> Meter:
    if config is not None and config.count == "tokens":
        if not installed():
            sentence = 'plugins.meter.count: "tokens" needs vocabularies; install clawproxy[tokenizers], or write "bytes"'
            raise ConfigError([sentence])
        for model in app.config.models.values():
            for route in model.routes:
                counter_for(route.model)  # read now, and not while a request waits
    prices = {name: model.price for name, model in app.config.models.items() if model.price is not None}
    rules = compiled(app.config.budgets)
    return Meter(config or MeterSettings(), prices, app.config if may_price(app.config) else None, rules=rules)


@hookimpl
def lifespan(app: App) -> AbstractAsyncContextManager[None]:
    return Service(app)


@hookimpl
def open_attempt(exchange: Exchange, request: ChatRequest, route: Route, attempt: Attempt, state: Meter) -> AttemptContext:
    price = route.price
    if price is None and state.prices:
        price = state.prices.get(request.model)
    if price is None and state.config is not None:
        price = state.look_up(state.config, route)
    settings, service = state.settings, service_of(exchange)
    most = settings.default_output_tokens
    size, count = settings.estimate_bytes_per_token, counter_for(route.model) if settings.count == "tokens" else None
    if state.rules.rules:
        cover = state.rules.cover(exchange, request.model, route.provider)
        if cover is not None:
            if price is None and cover.dollars and route.recorded is None:
                log.error("model %s has no price, and comes under a budget in dollars", request.model)
                raise ClawError("internal", policy="meter")
            return Budgeted(service, exchange, request, route, attempt, size, price, count, budgets_of(service), cover, most)
        leave_line(exchange)  # it waited for room, and is served elsewhere now
    return Metered(service, exchange, request, route, attempt, size, price, count, most)


@hookimpl
def tap_response(exchange: Exchange, attempt: Attempt) -> Observe | Transform | None:
    metered = metered_of(exchange, attempt)
    if isinstance(metered, Budgeted) and metered.is_counted:
        return Transform(metered.change, metered.finish_tap, "per_batch")
    return None if metered is None else Observe(metered.see, metered.end)
