"""Findings about clocks that ran out: the provider's, the gateway's queues', the client's."""

from __future__ import annotations

from urllib.parse import urlsplit

from clawproxy.clocks import CLOCKS
from clawproxy.config import Config
from clawproxy.config.units import parse_duration, render_duration
from clawproxy.doctor.evidence import Evidence, Group, Sample
from clawproxy.doctor.findings import Change, Finding, round_up, seconds

CAUSE = {
    "first_token": "slow_first_token",
    "stall": "stall",
    "stall_reasoning": "stall",
    "rate": "slow_answer",
    "total": "out_of_time",
    "connect": "connect",
    "write": "slow_client",
    "head": "slow_request",
    "body": "slow_request",
    "auth": "silent_client",
    "idle_ws": "client_idle_cut",
    "keepalive_ws": "dead_client",
}
RARE = 0.25
"""Of its limit: answers that all begin within this share of the clock say that those it cut would not have come."""


def about_timeouts(config: Config, evidence: Evidence) -> list[Finding]:
    findings = []
    for (clock, provider, setting, step), group in evidence.groups.items():
        if clock not in CLOCKS or clock == "idle":
            continue
        if clock == "queue":
            findings.append(_queue(config, provider, group))
        elif clock == "connect" and step == "dns":
            findings.append(dns(config, provider, group, f"clock connect ({_limit(group)}) ran out"))
        elif clock in CAUSE:
            findings.append(_cut(config, evidence, clock, provider, setting, group))
    return findings


def _cut(config: Config, evidence: Evidence, clock: str, provider: str, setting: str, group: Group) -> Finding:
    model = group.models.most_common(1)[0][0] if group.models else ""
    key = setting or f"deadlines.{clock}"
    if setting == "deadlines.connect" and provider in config.providers:
        key = f"providers.{provider}.deadlines.connect"
    elif setting == f"deadlines.{clock}" and provider and len(group.models) == 1 and model in config.models:
        key = f"models.{model}.deadlines.{clock}"  # for that one alone
    limit = group.limit_ms / 1000
    known = evidence.first_token.get((provider, model), Sample())
    why, value = _advice(clock, limit, known)
    if clock == "total" and key == "deadline_ms":
        why, value, key = "The limit is the client's own (deadline_ms): only the client can raise it.", "", ""
    elif setting == "deadlines.total" and clock != "total":
        key, why = setting, f"Its share of total ran out, since another route was kept in hand. {why}"
        value = seconds(round_up(_total(config, model) * 2))
    change: tuple[Change, ...] = (Change(key, value),) if key and value else ()
    if change and provider and clock != "total" and parse_duration(value) >= (total := _total(config, model)) and value != "off":
        own = model in config.models and "total" in config.models[model].deadlines
        home = f"models.{model}.deadlines" if own else "deadlines"
        change += (Change(f"{home}.total", seconds(round_up(max(parse_duration(value) * 1.25, total)))),)  # else it rings first
    return Finding(
        CAUSE[clock],
        group.fault or "provider",
        why,
        group.lost,
        group.saved,
        clock,
        setting or key,
        where(provider, group),
        change,
        of=evidence.requests if provider else 0,
    )


def _total(config: Config, model: str) -> float:
    own = config.models[model].deadlines if model in config.models else {}
    return own.get("total", config.deadlines.total)


def _advice(clock: str, limit: float, known: Sample) -> tuple[str, str]:
    """Why, and the value to set; empty where none would help."""
    twice = seconds(round_up(limit * 2))
    if clock == "first_token":
        usual, slowest = known.quantile(0.5), known.quantile(0.99)
        if usual is None or slowest is None:
            return f"No answer came within {seconds(limit)}, and none at all: is the provider up? If it only thinks long:", twice
        said = f"Half of its answers begin within {_short(usual)}, 99 % within {_short(slowest)}."
        if slowest < limit * RARE and known.count >= 20:
            return f"{said} Those it cut would not have come: fail sooner, and add a route to fail over to.", seconds(
                round_up(slowest * 3)
            )
        return f"{said} It needs more than {seconds(limit)}.", seconds(round_up(max(limit * 2, slowest * 1.5)))
    if clock in ("stall", "stall_reasoning"):
        return f"Nothing came for {seconds(limit)} after content had. If the model pauses to think or to call tools:", twice
    if clock == "rate":
        return "Fewer tokens came than the rate asks for. A slower provider needs a lower rate, or:", "off"
    if clock == "total":
        return f"All of it took more than {seconds(limit)}, attempts and queues included.", twice
    if clock == "connect":
        return f"TCP and TLS took more than {seconds(limit)}: is the address right, and a firewall open?", twice
    if clock == "write":
        return f"They took no byte for {seconds(limit)}: a frozen tab, a full disk, a suspended process. The limit is right.", ""
    if clock == "idle_ws":
        value = seconds(round_up(limit * 4)) if limit * 4 < 3600 else "off"
        return f"The gateway ends a WebSocket that said nothing for {seconds(limit)}, though its pings were answered.", value
    if clock == "keepalive_ws":
        return "Two pings in a row had no answer: the network or the client was gone. Nothing here needs changing.", ""
    if clock == "auth":
        return f"They connected, and sent no credential within {seconds(limit)}: probes, or a client that is wrongly set up.", ""
    what = "head" if clock == "head" else "body"
    more = "" if clock == "head" else twice
    return f"The {what} was not whole after {seconds(limit)}: slow networks, or connections opened for nothing.", more


def _queue(config: Config, provider: str, group: Group) -> Finding:
    limit = _limit(group)
    if provider:
        pool = config.providers[provider].pool.max if provider in config.providers else 0
        key = f"providers.{provider}.pool.max"
        change: tuple[Change, ...] = (Change(key, str(pool * 2) if pool else ""),)
        why = f"All {pool or ''} places of its pool were taken for {limit}.".replace("  ", " ")
        return Finding("exhausted_pool", "gateway", why, group.lost, group.saved, "queue", key, where(provider, group), change)
    most = config.limits.in_flight
    change = (Change("limits.in_flight", str(most * 2)),) if most else ()
    why = f"{most or 'All'} requests were at work, and no place became free for {limit}. Raise it, or run more instances."
    return Finding("queue_full", "gateway", why, group.lost, group.saved, "queue", "limits.in_flight", where("", group), change)


def dns(config: Config, provider: str, group: Group, how: str) -> Finding:
    """A name that can not be looked up. `how`: what became of it."""
    known = config.providers.get(provider)
    host = urlsplit(known.base_url or "").hostname if known is not None else None
    key = f"providers.{provider}.base_url"
    why = f"{host or 'Its name'}: {how}. Is the host name right, and does this machine's resolver answer?"
    clock = "connect" if group.limit_ms else None
    return Finding("dns", "provider", why, group.lost, group.saved, clock, key, where(provider, group), (Change(key),))


def where(provider: str, group: Group) -> tuple[str, ...]:
    """The places, the most frequent first."""
    places = [f"provider {provider}"] if provider else []
    for what, counter in (("model", group.models), ("key", group.keys)):
        places += [f"{what} {name}" for name, _ in counter.most_common(2)]
        if len(counter) > 2:
            places[-1] += f" and {len(counter) - 2} more"
    return tuple(places)


def _limit(group: Group) -> str:
    return render_duration(round(group.limit_ms / 1000, 3))


def _short(value: float) -> str:
    """A measured time, in three figures at most."""
    return f"{value * 1000:.0f}ms" if value < 1 else f"{value:.1f}s" if value < 60 else seconds(round(value))
