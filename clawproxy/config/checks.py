"""What a well-formed configuration must also fulfil: names that fit, addresses that parse, files that exist, clocks that agree.

Rule 1: each check appends `(key path, sentence)` to `problems` or `warnings` and goes on: an operator sees all mistakes at once.
Rule 2: nothing here touches a network. That a provider can not be reached is never an error of the configuration.
Rule 3: a value that this version would ignore is refused, with what to do instead.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

from clawproxy.clocks import CLOCKS, Deadlines, Rate
from clawproxy.config.checks_alerts import check_alerts
from clawproxy.config.checks_budgets import check_budgets
from clawproxy.config.checks_credentials import check_credentials
from clawproxy.config.checks_dialect import check_dialect_options
from clawproxy.config.checks_models import check_models
from clawproxy.config.checks_policies import check_policies
from clawproxy.config.checks_residency import check_residency
from clawproxy.config.checks_roles import check_roles
from clawproxy.config.checks_server import check_server
from clawproxy.config.checks_tls import check_certificates, check_provider_tls
from clawproxy.config.findings import Findings, Names, check_file
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.rates import check_prices
from clawproxy.config.schema import Config, HealthConfig, ProviderConfig
from clawproxy.config.structure import listed, suggest
from clawproxy.config.units import render_duration, shown

DIALECTS = ("openai_chat", "openai_responses", "anthropic", "gemini", "cohere", "ollama", "azure", "scripted")
PROVIDER_CLOCKS = ("queue", "connect", "first_token", "stall", "stall_reasoning", "rate")
"""The clocks of one attempt, so that a provider can have its own."""
MODEL_CLOCKS = (*PROVIDER_CLOCKS, "total", "write", "keepalive_sse")
"""The clocks that run once the model is known, so that it can have its own."""
NOT_YET = {
    "grace": "has no meaning in this version, which cancels at once when a client is gone",
    "session": "has no meaning in this version, which keeps no sessions",
}
"""Clocks this version does not run: only their defaults are accepted."""
MAY_BE_ZERO = frozenset({"drain"})
PROVIDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
LEAST_EVERY, MOST_TIMEOUT = 1.0, 60.0
_PAGE = re.compile(r"/(?!.*(?:^|/)\.\.?(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:@%/?-]{0,255}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_GATEWAYS_OWN = frozenset(
    {
        "host",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "upgrade",
        "te",
        "trailer",
        "expect",
    }
    | {"accept-encoding"}
)
_CREDENTIALS = frozenset(("authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "cookie"))


def check(config: Config, names: Names, broken: Collection[str]) -> Findings:
    """Everything wrong with the parts of a configuration that could be read. `broken` are the sections that could not."""
    found = Findings()
    if "server" not in broken:
        check_server(config.server, found)
    for name, provider in config.providers.items():
        check_provider(name, provider, names, found)
    check_models(config, names, found)
    check_prices(config, names, found)
    check_keys(config, names, found)
    if "server" not in broken:
        check_certificates(config, found)
    check_policies(config, names, found)
    check_roles(config, names, found)
    check_residency(config, names, found)
    if "pipeline" not in broken:
        check_pipeline(config, names, found)
    if config.budgets:
        check_budgets(config, names, found, meter="pipeline" in broken or "meter" in config.pipeline.order)
    if "deadlines" not in broken:
        check_deadlines(config, found)
    if "limits" not in broken:
        check_limits(config, found)
    if "alerts" not in broken:
        check_alerts(config.alerts, found)
    if config.log.level not in ("debug", "info", "warning", "error"):
        found.wrong(("log", "level"), f'"{shown(config.log.level)}" is not known; write debug, info, warning or error')
    return found


# --- providers, models, keys ---------------------------------------------------------------------------------------------------


def check_provider(name: str, provider: ProviderConfig, names: Names, found: Findings) -> None:
    path: KeyPath = ("providers", name)
    if not PROVIDER_NAME.fullmatch(name):
        found.wrong(path, "is no name for a provider; use letters, digits, `_`, `.` and `-`, at most 64")
    scripted = provider.dialect == "scripted"
    if provider.dialect not in names.dialects:
        found.wrong(
            (*path, "dialect"),
            f'"{shown(provider.dialect)}" is no known dialect; {suggest(provider.dialect, sorted(names.dialects))}',
        )
    elif scripted:
        for key in ("base_url", "api_key", "api_keys", "ca_file", "oauth", "refresh", "tls"):
            if getattr(provider, key) not in (None, ()):
                found.wrong((*path, key), "has no meaning for a scripted provider, which runs in this process; remove it")
    if not scripted:
        if provider.script is not None:
            found.wrong((*path, "script"), 'is only for dialect = "scripted"; remove it')
        check_base_url(provider, path, found)
    check_dialect_options(provider, path, provider.dialect in DIALECTS, found)
    check_headers(provider.headers, (*path, "headers"), found)
    if provider.ca_file is not None:
        check_file(provider.ca_file, (*path, "ca_file"), "a PEM file", found)
    check_credentials(provider, path, found)
    if not scripted:
        check_provider_tls(provider, path, found)
    if provider.health is not None:
        check_health(provider.health, (*path, "health"), found)
    pool = provider.pool
    if pool.max < 1:
        found.wrong((*path, "pool", "max"), f"{pool.max} leaves no connection; write 1 or more")
    if not 0 <= pool.min_idle <= max(pool.max, 0):
        found.wrong((*path, "pool", "min_idle"), f"{pool.min_idle} is out of range; write 0 to pool.max ({pool.max})")


def check_health(health: HealthConfig, path: KeyPath, found: Findings) -> None:
    if health.every < LEAST_EVERY:
        found.wrong((*path, "every"), f'is too often for a provider; write "{render_duration(LEAST_EVERY)}" or more')
    if not 0 < health.timeout <= MOST_TIMEOUT:
        found.wrong((*path, "timeout"), f'is out of range; write a duration up to "{render_duration(MOST_TIMEOUT)}"')
    if not 1 <= health.failures <= 100:
        found.wrong((*path, "failures"), f"{health.failures} is out of range; write 1 to 100")
    if health.path is not None and not _PAGE.fullmatch(health.path):
        found.wrong((*path, "path"), f'"{shown(health.path)}" is no path below base_url; write it like "/models"')


def check_base_url(provider: ProviderConfig, path: KeyPath, found: Findings) -> None:
    where: KeyPath = (*path, "base_url")
    if provider.base_url is None:
        found.wrong(where, 'is missing; add it, like base_url = "https://api.openai.com/v1"')
        return
    try:
        parts = urlsplit(provider.base_url)
        port = parts.port
    except ValueError:
        found.wrong(where, 'is no valid URL; write it like "https://api.openai.com/v1"')
        return
    url = provider.base_url
    told = re.split("[?#]", url)[0]  # a key may stand behind it
    if "@" in parts.netloc:  # not echoed: it may hold a password
        found.wrong(where, "holds credentials; take them out and use api_key")
    elif parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        found.wrong(where, f'"{shown(told)}" is no http or https URL; write it like "https://api.openai.com/v1"')
    elif not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        found.wrong(where, f'"{shown(told)}" has characters that a URL can not have; write it in plain ASCII, percent-encoded')
    elif "?" in url or "#" in url:
        found.wrong(where, f'"{shown(told)}" goes on with a query or a fragment; end it with the path, and use api_key for a key')
    elif parts.path.rstrip("/").endswith("/chat/completions"):
        found.wrong(
            where, f'"{shown(url)}" names an endpoint; write "{shown(url.rstrip("/").removesuffix("/chat/completions"))}"'
        )
    elif parts.scheme == "http" and provider.credentials and not parse_host_is_local(parts.hostname):
        found.warn(where, "is http: the provider's key travels in the clear; write https")


def parse_host_is_local(host: str) -> bool:
    """Loopback or private addresses, and names without a dot: a sidecar or a machine of one's own."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return address.is_private


def check_headers(headers: Mapping[str, str], path: KeyPath, found: Findings) -> None:
    for name, value in headers.items():
        lower = name.lower()
        if not _TOKEN.fullmatch(name):
            found.wrong((*path, name), "is no header name (RFC 9110 5.1); use letters, digits and `-`")
        elif lower in _CREDENTIALS:
            found.wrong((*path, name), "is a credential; use api_key, so that it is kept secret")
        elif lower in _GATEWAYS_OWN:
            found.wrong((*path, name), "is set by the gateway itself; remove it")
        if not re.fullmatch(r"[\t\x20-\x7e]*", value) or value != value.strip():
            found.wrong((*path, name), "has a value no header can have; use printable ASCII without white space around it")


def check_keys(config: Config, names: Names, found: Findings) -> None:
    for name, key in config.keys.items():
        path: KeyPath = ("keys", name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", name):
            found.wrong(path, "is no name for a key; use letters, digits, `_`, `.`, `@` and `-`, at most 64")
        if key.secret is not None and key.secret.scheme == "":
            found.warn((*path, "secret"), 'is a secret in the file itself; write "env:NAME" or "file:PATH"')
        if key.expires is not None and key.expires < time.time():
            found.warn((*path, "expires"), "is in the past: this key is refused; remove the key, or set a later date")
        if not key.models:
            found.warn((*path, "models"), 'is empty: this key may use no model; write ["*"] for all')
        for index, pattern in enumerate(key.models):
            where = (*path, "models", index)
            if not pattern or "*" in pattern[:-1]:
                found.wrong(where, f'"{shown(pattern)}" is no pattern; write a model\'s name, "prefix*" or "*"')
            elif names.models and not any(_matches(pattern, model) for model in names.models):
                found.warn(where, f'"{shown(pattern)}" fits none of [models]; {suggest(pattern, sorted(names.models))}')


def _matches(pattern: str, model: str) -> bool:
    return model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern


# --- pipeline, deadlines, limits ----------------------------------------------------------------------------------------------


def check_pipeline(config: Config, names: Names, found: Findings) -> None:
    order = config.pipeline.order
    for index, name in enumerate(order):
        where: KeyPath = ("pipeline", "order", index)
        if name in order[:index]:
            found.wrong(where, f'"{shown(name)}" stands there twice; name each plugin once')
        elif name not in names.plugins:
            found.wrong(where, f'"{shown(name)}" is no installed plugin; {suggest(name, sorted(names.plugins))}')
    if "auth" not in order:
        found.wrong(("pipeline", "order"), "has no `auth`: nobody could get in; add it, early in the list")
    if config.pipeline.hook_budget <= 0:
        found.wrong(("pipeline", "hook_budget"), '"0s" leaves a hook no time at all; write a longer time, or "off" for no limit')
    for name in config.plugins:
        if name in names.plugins and name not in order:
            found.warn(("plugins", name), "is not in pipeline.order, so it does nothing; add it there, or remove this section")


def check_deadlines(config: Config, found: Findings) -> None:
    for clock, why in NOT_YET.items():
        if getattr(config.deadlines, clock) != getattr(Deadlines(), clock):
            found.wrong(("deadlines", clock), f"{why}; leave it out")
    for clock in CLOCKS:
        if getattr(config.deadlines, clock) == 0 and clock not in MAY_BE_ZERO and clock not in NOT_YET:
            found.wrong(("deadlines", clock), '"0s" leaves no time at all; write a longer time, or "off" for no limit')
    contradictions(config.deadlines, ("deadlines",), {}, found)
    tables: list[tuple[KeyPath, Mapping[str, Any], tuple[str, ...]]] = []
    tables += [
        (("providers", name, "deadlines"), provider.deadlines, PROVIDER_CLOCKS) for name, provider in config.providers.items()
    ]
    tables += [(("models", name, "deadlines"), model.deadlines, MODEL_CLOCKS) for name, model in config.models.items()]
    for path, table, clocks in tables:
        own: dict[str, Any] = {}
        for clock, limit in table.items():
            if clock in clocks:
                if isinstance(limit, Rate) != (clock == "rate") and limit != math.inf:
                    like = "5 tokens/s over 30s" if clock == "rate" else "30s"
                    found.wrong((*path, clock), f'is a {"time" if clock == "rate" else "rate"}; write it like "{like}", or "off"')
                    continue
                own[clock] = limit
                if limit == 0:
                    found.wrong((*path, clock), '"0s" leaves no time at all; write a longer time, or "off" for no limit')
            elif clock in CLOCKS:
                found.wrong((*path, clock), f"can not be set here; set it under [deadlines] (here: {listed(clocks)})")
            else:
                found.wrong((*path, clock), f"is no clock; {suggest(clock, clocks)}")
        if own:
            contradictions(config.deadlines.overridden(own), path, own, found)


def contradictions(clocks: Deadlines, path: KeyPath, own: Mapping[str, Any], found: Findings) -> None:
    """Warn where one clock makes another pointless. `own`: as for `contrary`."""
    for short, long, why in contrary(clocks, own):
        key = short if not own or short in own else long
        found.warn((*path, key), f"{why}; raise {short} or lower {long}")


def contrary(clocks: Deadlines, own: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Pairs of clocks of which the first makes the second pointless, and a sentence that says how. `own`: only pairs with one
    of these are looked at; empty means all."""
    for short, long, why in (
        ("stall", "keepalive_sse", "a stream would be cut before its first keep-alive"),
        ("total", "first_token", "`total` always ends first"),
        ("total", "connect", "`total` always ends first"),
        ("total", "queue", "`total` always ends first"),
        ("total", "stall", "`total` always ends first"),
    ):
        one, two = getattr(clocks, short), getattr(clocks, long)
        if one < two != math.inf and (not own or short in own or long in own):
            yield short, long, f"{short} ({render_duration(one)}) is shorter than {long} ({render_duration(two)}): {why}"


def check_limits(config: Config, found: Findings) -> None:
    off = {
        "connections",
        "connections_per_address",
        "in_flight",
        "in_flight_per_key",
        "in_flight_per_connection",
    }
    for attribute in attrs.fields(type(config.limits)):
        value = getattr(config.limits, attribute.name)
        if attribute.name in off:
            if value < 0:
                found.wrong(
                    ("limits", attribute.name), f"{value} is negative; write 0 for its default or no limit, or a number above"
                )
        elif value <= 0:
            found.wrong(("limits", attribute.name), f"{value:g} would refuse everything; write a larger value")
    if 0 < config.limits.head < 1024:
        found.wrong(("limits", "head"), f'{config.limits.head} bytes are too few for a request head; write "1KiB" or more')
