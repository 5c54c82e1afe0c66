"""The meter: one ledger row per attempt, opened before anything is sent, closed whatever happens.

Rule 1: no byte goes to a provider before the row that will bill it is kept (`Store.open_row`); where it can not be kept, the
        attempt is refused.
Rule 2: what a provider measured is billed as measured, an explicit zero included. What is missing is estimated and says so; a
        cut answer is never free. An attempt that was never sent is.
Rule 3: figures are clamped to sane bounds before they reach the books (`figures`).
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from attrs import field, frozen, validators

from clawproxy.context import App, Attempt, Exchange, Registry
from clawproxy.hookspecs import AttemptContext, Observe, hookimpl
from clawproxy.messages import ChatRequest, Route
from clawproxy_meter.attempts import Metered, metered_of
from clawproxy_meter.service import Service, service_of

__all__ = ["MeterSettings", "configure", "lifespan", "open_attempt", "register", "tap_response"]


@frozen
class MeterSettings:
    """`[plugins.meter]`."""

    estimate_bytes_per_token: float = field(default=4.0, validator=validators.gt(0))
    """How many bytes of UTF-8 text count as one token, where a provider measured nothing."""


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("meter", MeterSettings)


@hookimpl
def configure(config: MeterSettings | None) -> MeterSettings:
    return config or MeterSettings()


@hookimpl
def lifespan(app: App) -> AbstractAsyncContextManager[None]:
    return Service(app)


@hookimpl
def open_attempt(
    exchange: Exchange, request: ChatRequest, route: Route, attempt: Attempt, state: MeterSettings
) -> AttemptContext:
    return Metered(service_of(exchange), exchange, request, route, attempt, state.estimate_bytes_per_token)


@hookimpl
def tap_response(exchange: Exchange, attempt: Attempt) -> Observe | None:
    metered = metered_of(exchange, attempt)
    return None if metered is None else Observe(metered.see, metered.end)
