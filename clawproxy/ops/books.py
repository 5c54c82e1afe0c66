"""What is written down of every exchange that ends: one log line, and the figures."""

from __future__ import annotations

from clawproxy.context import Exchange
from clawproxy.events import Outcome
from clawproxy.ops.logs import log_event
from clawproxy.ops.metrics import Metrics


def declare(metrics: Metrics) -> None:
    """The counters this module and the gateway use beside the common ones."""
    metrics.declare("clawproxy_auth_failures_total", "counter", "Credentials refused.", ("slug",))
    metrics.declare("clawproxy_plugin_faults_total", "counter", "Hooks that failed or were slow.", ("plugin", "what"))


def book(exchange: Exchange, outcome: Outcome, metrics: Metrics) -> None:
    """Count a finished exchange and write its line."""
    count(exchange, outcome, metrics)
    timing, route, error, usage = exchange.timing.milliseconds(), exchange.route, outcome.error, exchange.usage
    log_event(
        "exchange.closed",
        "info",
        request_id=exchange.request_id,
        client_request_id=exchange.client_request_id,
        surface=exchange.surface,
        peer=exchange.peer,
        key=exchange.principal.key,
        user=exchange.user,
        team=exchange.principal.team,
        app=exchange.app,
        model=exchange.requested_model,
        provider=route.provider if route else None,
        provider_model=route.model if route else None,
        strategy=route.strategy if route else None,
        reason=route.reason if route else None,
        attempts=len(exchange.attempts),
        stream=exchange.stream,
        outcome=outcome.label,
        error=error.slug if error else None,
        status=error.status if error else 200,
        clock=error.details.clock if error else None,
        limit_ms=error.details.limit_ms if error else None,
        setting=error.details.setting if error else None,
        param=error.details.param if error else None,
        policy=error.details.policy if error else None,
        provider_status=error.details.provider_status if error else None,
        fault=error.kind.fault if error else None,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        usage_source=usage.source if usage else None,
        notices=[notice.code for notice in exchange.notices] or None,
        **{f"{name}_ms": value for name, value in timing.items()},
    )


def count(exchange: Exchange, outcome: Outcome, metrics: Metrics) -> None:
    timing, usage = exchange.timing, exchange.usage
    metrics.count("clawproxy_requests_total", surface=exchange.surface, outcome=outcome.label)
    metrics.observe("clawproxy_request_seconds", timing.total or 0.0, surface=exchange.surface)
    gateway = timing.gateway()
    if gateway is not None:
        metrics.observe("clawproxy_gateway_seconds", gateway, surface=exchange.surface)
    if timing.first_token is not None and exchange.route is not None:
        metrics.observe("clawproxy_first_token_seconds", timing.first_token, provider=exchange.route.provider)
    if outcome.error is not None:
        metrics.count("clawproxy_errors_total", slug=outcome.error.slug, fault=outcome.error.kind.fault)
    for attempt in exchange.attempts:
        metrics.count("clawproxy_attempts_total", provider=attempt.route.provider, outcome=attempt.outcome or "internal")
        metrics.count("clawproxy_routes_total", provider=attempt.route.provider, reason=attempt.reason)
    if usage is not None:
        metrics.count("clawproxy_tokens_total", usage.input_tokens or 0, direction="input")
        metrics.count("clawproxy_tokens_total", usage.output_tokens or 0, direction="output")
        metrics.count("clawproxy_tokens_total", usage.cached_tokens or 0, direction="cached")
