"""What the configuration alone says: clocks that contradict each other, or the load balancer in front."""

from __future__ import annotations

import math
from collections.abc import Mapping

from clawproxy.clocks import Deadlines
from clawproxy.config import Config
from clawproxy.config.checks import contrary
from clawproxy.config.units import render_duration
from clawproxy.doctor.balancers import Balancer
from clawproxy.doctor.findings import Change, Finding, round_up, seconds

SHARE = 0.5
"""Share of a balancer's idle limit at which to send a keep-alive: one may be late, or lost."""


def contradictions(config: Config) -> list[Finding]:
    """What `check` warns of, and overrides that their own `total` makes pointless."""
    tables: list[tuple[str, Deadlines, Mapping[str, float]]] = [("deadlines", config.deadlines, {})]
    for name, provider in config.providers.items():
        tables.append((f"providers.{name}.deadlines", config.deadlines.overridden(provider.deadlines), provider.deadlines))
    for name, model in config.models.items():
        tables.append((f"models.{name}.deadlines", config.deadlines.overridden(model.deadlines), model.deadlines))
    findings = []
    for home, clocks, own in tables:
        if not own and home != "deadlines":
            continue
        for short, long, why in contrary(clocks, own):
            # Raise the shorter above the longer; or lower the longer, where only that stands in this table.
            at = short if not own or short in own else long
            value = round_up(getattr(clocks, long) * 1.25) if at == short else getattr(clocks, short) / 2
            key = f"{home}.{at}"
            findings.append(_contradiction(key, short, f"{why[0].upper()}{why[1:]}.", value))
    return [*findings, *_beyond_total(config)]


def _contradiction(key: str, clock: str, why: str, value: float) -> Finding:
    change = (Change(key, seconds(value)),)
    return Finding("clock_contradiction", "operator", why, clock=clock, setting=key, change=change)


def _beyond_total(config: Config) -> list[Finding]:
    """A provider's own clocks against the `total` of each model that may reach it: `check` sees only one table at a time."""
    findings = []
    for name, model in config.models.items():
        if "total" not in model.deadlines:
            continue  # a provider's against [deadlines] was compared already
        total = model.deadlines["total"]
        for provider in sorted({route.provider for route in model.routes if route.provider}):
            own = config.providers[provider].deadlines if provider in config.providers else {}
            for clock in ("connect", "first_token", "stall"):
                limit = own.get(clock)
                if clock in model.deadlines or limit is None or math.isinf(limit) or limit <= total:
                    continue
                key = f"models.{name}.deadlines.total"
                why = (
                    f"{clock} of provider {provider} ({render_duration(limit)}) is longer than total of model {name} "
                    f"({render_duration(total)}): total always ends first."
                )
                findings.append(_contradiction(key, "total", why, round_up(limit * 1.25)))
    return findings


def in_front(config: Config, behind: Balancer | None) -> list[Finding]:
    """What that balancer would cut or break, by its defaults."""
    if behind is None:
        return []
    clocks, name = config.deadlines, behind.name
    findings: list[Finding] = []

    def warn(clock: str, why: str, value: str) -> None:
        setting = f"deadlines.{clock}"
        change = (Change(setting, value),)
        findings.append(Finding("balancer_contradiction", "operator", why, clock=clock, setting=setting, change=change))

    quiet = min(behind.idle, behind.first)
    for clock, what in (("keepalive_sse", "A quiet stream"), ("keepalive_ws", "A quiet WebSocket")):
        limit = getattr(clocks, clock)
        bears = quiet if clock == "keepalive_sse" else behind.idle
        if limit >= bears:
            why = f"{what} gets its first keep-alive after {render_duration(limit)}; {name} cuts it after {seconds(bears)}."
            warn(clock, why, seconds(_down(bears)))
    if behind.reuse and clocks.idle <= behind.reuse:
        why = (
            f"The gateway closes a connection that was idle for {render_duration(clocks.idle)}; {name} may still send a request "
            f"on it until {seconds(behind.reuse)}, which then fails as a 502."
        )
        warn("idle", why, seconds(behind.reuse + 20))
    if behind.whole < clocks.total:
        theirs = behind.setting if behind.name == "gcp" else "the route's timeout"
        why = (
            f"{name} ends an answer after {seconds(behind.whole)}, keep-alives or not; the gateway lets it take "
            f"{render_duration(clocks.total)}. Raise it there ({theirs}), or let the gateway say so first."
        )
        warn("total", why, seconds(behind.whole * 0.9))
    return findings


def _down(limit: float) -> float:
    """A round duration at about half of it."""
    half = limit * SHARE
    lower = round_up(half)
    return (
        lower
        if lower <= half
        else max((step for step in (round_up(half / 1.5), round_up(half / 2)) if step <= half), default=half)
    )


def keepalive_under(limit: float) -> str:
    """A keep-alive that a limit on silence of `limit` seconds bears."""
    return seconds(_down(limit))
