"""Which hosts and which browser origins are served. Both are checked before anything else is done for a request.

Rule 1: a request with an `Origin` comes from a page in somebody's browser. It is refused unless `[server] origins` lists
        exactly this scheme, host and port.
Rule 2: `Host` is never used to route or to trust. With `[server] hosts` set, others get a 421; without it, only a listener
        bound to loopback is particular, and only when a browser asks (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from clawproxy.config import Config
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head

Origin = tuple[str, str, int]
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}
_METHODS = "GET, POST, OPTIONS"
_ALLOWED_HEADERS = (
    "authorization, content-type, x-api-key, api-key, anthropic-version, anthropic-beta, openai-beta, x-request-id, "
    "x-claw-deadline-ms, x-claw-capabilities, x-claw-quality, x-claw-region, idempotency-key"
)
_EXPOSED = "x-request-id, x-claw-route, x-claw-notice, server-timing, retry-after"


def check_origin(head: Head, config: Config, secure: bool) -> ClawError | None:
    """Whether the data listener serves this Host and this Origin: None, or `misdirected` (421), or `origin` (403).

    Args:
        secure: the connection is TLS. It changes nothing today: an origin is listed with its own scheme, and a TLS proxy
            may stand in front.
    """
    server = config.server
    host = _host_name(head)
    if server.hosts and not _listed(host, head.get("host"), server.hosts):
        return ClawError("misdirected")
    origins = head.all("origin")
    if not origins:
        return None
    origin = parse_origin(origins[0]) if len(origins) == 1 else None
    if origin is None or origin not in _allowed(server.origins):
        return ClawError("origin")
    if not server.hosts and _only_loopback(server.listen) and not is_loopback(host):
        return ClawError("misdirected", "A page asked a loopback listener under another name; set server.hosts to allow it.")
    return None


def check_admin(head: Head, config: Config, secure: bool) -> ClawError | None:
    """The same for the admin listener, whose dashboard is a page of its own: Host must be an address, `localhost` or listed
    (a rebinding needs a name), and an Origin must be the listener's own or listed."""
    server = config.server
    host = _host_name(head)
    if not (is_loopback(host) or _is_address(host) or _listed(host, head.get("host"), server.hosts)):
        return ClawError("misdirected")
    origins = head.all("origin")
    if not origins:
        return None
    origin = parse_origin(origins[0]) if len(origins) == 1 else None
    own = parse_origin(f"{'https' if secure else 'http'}://{head.get('host')}")
    if origin is None or (origin != own and origin not in _allowed(server.origins)):
        return ClawError("origin")
    return None


def cors_headers(head: Head) -> tuple[tuple[str, str], ...]:
    """What every answer to an allowed origin carries. Call it only after the check passed."""
    origin = head.get("origin")
    if origin is None:
        return ()
    return (
        ("access-control-allow-origin", origin),
        ("vary", "origin"),
        ("access-control-expose-headers", _EXPOSED),
    )


def preflight_headers() -> tuple[tuple[str, str], ...]:
    """The answer to a browser's preflight (Fetch, 3.2.2)."""
    return (
        ("access-control-allow-methods", _METHODS),
        ("access-control-allow-headers", _ALLOWED_HEADERS),
        ("access-control-max-age", "600"),
    )


def parse_origin(value: str) -> Origin | None:
    """`(scheme, host, port)` in lower case with the port filled in, or None for what is no http origin (`null`, a path)."""
    match = _ORIGIN.fullmatch(value.lower()) if len(value) <= 300 and value.isascii() else None
    if match is None:
        return None
    port = int(match[3]) if match[3] else _PORTS[match[1]]
    return match[1], match[2], port


def is_loopback(host: str) -> bool:
    """A host name without port: `localhost`, `127.0.0.0/8`, `::1`."""
    if host in ("localhost", "127.0.0.1", "::1"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(head: Head) -> str:
    """The Host field's name, lower case, without port and brackets; its grammar was checked with the head."""
    value = (head.get("host") or "").lower()
    if value.startswith("["):
        return value[1 : value.index("]")]
    return value.partition(":")[0]


def _listed(name: str, value: str | None, hosts: tuple[str, ...]) -> bool:
    """An entry with a port asks for that port."""
    if not name:
        return False
    full = (value or "").lower()
    return any(entry.lower() in (name, full, f"[{name}]") for entry in hosts)


@lru_cache(maxsize=8)
def _allowed(origins: tuple[str, ...]) -> frozenset[Origin]:
    return frozenset(origin for origin in map(parse_origin, origins) if origin is not None)


@lru_cache(maxsize=8)
def _only_loopback(listen: tuple[str, ...]) -> bool:
    names = [address.rpartition(":")[0].strip("[]") for address in listen if not address.startswith("unix:")]
    return all(is_loopback(name) for name in names)
