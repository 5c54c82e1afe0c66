"""What a configuration relaxes of the defaults that keep strangers out: for `clawproxy check --edge`.

Rule 1: without any configuration nothing is relaxed. A finding is no mistake: it says what the operator took on, so that it can
        be read before the gateway is put where strangers reach it.
Rule 2: every comparison is with the default of the schema, never with a number written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.schema import Config, LimitsConfig, SecretRef
from clawproxy.config.units import Address, parse_address

_CLOCKS: Final = ("head", "body", "auth", "write", "total")
"""Those that hold against a client."""
_GUARDS: Final = ("audit", "auth", "sanitize", "meter")

Finding = tuple[KeyPath, str]


def relaxed(config: Config) -> list[Finding]:
    """Each key that lets more in, or more out, than the default does, and what that means."""
    return [
        *_server(config),
        *_limits(config),
        *_clocks(config),
        *_providers(config),
        *_keys(config),
        *_pipeline(config),
        *_sanitize(config.plugins.get("sanitize", {})),
        *_others(config),
    ]


def _server(config: Config) -> Iterator[Finding]:
    server = config.server
    for text in server.listen:
        address = _address(text)
        if address is None or address.loopback:
            continue
        if server.tls is None:
            yield ("server", "listen"), f"{text} is open to other machines without TLS: keys and prompts travel in the clear"
        if not server.hosts:
            yield ("server", "hosts"), f"is empty, and {text} is open to other machines: any Host header is served"
        if not config.limits.connections_per_address:
            yield ("limits", "connections_per_address"), "is off: one address may take every connection"
    if server.admin and (admin := _address(server.admin)) is not None and not admin.loopback:
        yield ("server", "admin"), f"{server.admin} is open to other machines: metrics and health need no credential"
    for origin in server.origins:
        yield ("server", "origins"), f"pages of {origin} may call the gateway from a browser"


def _address(text: str) -> Address | None:
    try:
        return parse_address(text)
    except ValueError:
        return None


def _limits(config: Config) -> Iterator[Finding]:
    default = LimitsConfig()
    for name in (
        "head",
        "body",
        "frame",
        "json_depth",
        "messages",
        "requests_per_connection",
        "errors_per_connection",
        "response",
        "media",
    ):
        was, now = getattr(default, name), getattr(config.limits, name)
        if now > was or not now:
            yield ("limits", name), f"is {now or 'off'}; the default is {was}"


def _clocks(config: Config) -> Iterator[Finding]:
    default = Config().deadlines
    for clock in _CLOCKS:
        was, now = getattr(default, clock), getattr(config.deadlines, clock)
        if now > was:
            yield (
                ("deadlines", clock),
                f"a client may take {'for ever' if now == float('inf') else f'{now:g} s'}; by default {was:g} s",
            )


def _providers(config: Config) -> Iterator[Finding]:
    for name, provider in config.providers.items():
        parts = urlsplit(provider.base_url or "")
        if parts.scheme == "http" and not _is_here(parts.hostname or ""):
            yield ("providers", name, "base_url"), "is not https: the provider's key and all prompts travel in the clear"
        if provider.api_key is not None and not provider.api_key.scheme:
            yield ("providers", name, "api_key"), "stands in the file; use env: or file:"


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keys(config: Config) -> Iterator[Finding]:
    for name, key in config.keys.items():
        if key.secret is not None and not key.secret.scheme:
            yield ("keys", name, "secret"), "stands in the file; use env: or file:"
        if "*" in key.models and len(config.models) > 1:
            yield ("keys", name, "models"), f"may use every model, all {len(config.models)} of them"
        if key.may_assert:
            yield ("keys", name, "may_assert"), "may name any user and app as its own, and so take from their budgets"
        if key.expires is None:
            yield ("keys", name, "expires"), "never expires"
    pepper = config.server.pepper
    if isinstance(pepper, SecretRef) and not pepper.scheme:
        yield ("server", "pepper"), "stands in the file; use env: or file:"


def _pipeline(config: Config) -> Iterator[Finding]:
    order = config.pipeline.order
    for plugin in _GUARDS:
        if plugin not in order:
            yield ("pipeline", "order"), f"`{plugin}` is not in it: {_WITHOUT[plugin]}"
    if "auth" in order and "sanitize" in order and order.index("sanitize") < order.index("auth"):
        yield ("pipeline", "order"), "`sanitize` comes before `auth`"


_WITHOUT: Final[Mapping[str, str]] = {
    "audit": "nothing says afterwards who asked for what",
    "auth": "nobody has to say who they are",
    "sanitize": "secrets in prompts and answers pass",
    "meter": "nothing is booked, and no budget holds",
}


def _sanitize(section: Mapping[str, Any]) -> Iterator[Finding]:
    for way, what in (("input", "prompts reach providers"), ("output", "answers reach clients")):
        action = section.get(way)
        if action in ("off", "flag"):
            yield ("plugins", "sanitize", way), f'is "{action}": secrets in {what}'
    actions = section.get("actions")
    for name, action in actions.items() if isinstance(actions, Mapping) else ():
        if action in ("off", "flag"):
            yield ("plugins", "sanitize", "actions", name), f'is "{action}"'
    for group, way, what in (
        ("invisible", "input", "instructions that nobody sees reach models"),
        ("injection", "input", "nothing tells of prompts that try to instruct the model"),
    ):
        inner = section.get(group)
        if isinstance(inner, Mapping) and inner.get(way) == "off":
            yield ("plugins", "sanitize", group, way), f'is "off": {what}'
    asked = section.get("classifier")
    if isinstance(asked, Mapping) and asked.get("on_error") == "allow":
        yield ("plugins", "sanitize", "classifier", "on_error"), 'is "allow": prompts pass unseen while it does not answer'


def _others(config: Config) -> Iterator[Finding]:
    audit = config.plugins.get("audit", {})
    if audit.get("content", "none") != "none":
        yield ("plugins", "audit", "content"), f'is "{audit["content"]}": prompts and answers are kept, encrypted'
    if "cache" in config.pipeline.order:
        yield ("pipeline", "order"), "`cache` is in it: answers are kept in memory and given again"
