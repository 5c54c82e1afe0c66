"""What stands in front of a gateway, and how long it bears silence: defaults, each from its own documentation.

Rule: a limit that a product does not have, or not by default, is `math.inf`.
"""

from __future__ import annotations

import math

from attrs import frozen


@frozen
class Balancer:
    name: str
    idle: float = math.inf
    """Seconds between two bytes of an answer, or on a quiet WebSocket, after which it cuts."""
    first: float = math.inf
    """Seconds until an answer's first byte."""
    whole: float = math.inf
    """Seconds a whole answer may take, keep-alives or not."""
    reuse: float = 0.0
    """Seconds it may keep an idle connection to the gateway and then send a request on it."""
    setting: str = ""
    """Where `idle` is set there."""
    source: str = ""


_ALL = (
    # proxy_read_timeout 60s: "between two successive read operations"; keepalive_timeout of an upstream block, 60s.
    Balancer("nginx", 60, reuse=60, setting="proxy_read_timeout", source="nginx.org/en/docs/http/ngx_http_proxy_module.html"),
    # No default; the packaged haproxy.cfg of Debian and Ubuntu has `timeout server 50000`. Idle connections to servers are
    # purged every 5 s (pool-purge-delay).
    Balancer("haproxy", 50, reuse=10, setting="timeout server / timeout tunnel", source="docs.haproxy.org (timeout server)"),
    # stream_idle_timeout 5m; a route's timeout, of the whole answer, 15s; idle_timeout of connections 1h.
    Balancer(
        "envoy", 300, whole=15, reuse=3600, setting="stream_idle_timeout", source="envoyproxy.io, How do I configure timeouts?"
    ),
    # idle_timeout.timeout_seconds 60: both sides; AWS asks for a longer keep-alive timeout of the target.
    Balancer("aws-alb", 60, reuse=60, setting="idle_timeout.timeout_seconds", source="docs.aws.amazon.com, ALB attributes"),
    # tcp.idle_timeout.seconds 350; it passes connections through, so nothing is reused.
    Balancer("aws-nlb", 350, setting="tcp.idle_timeout.seconds", source="docs.aws.amazon.com, NLB listeners"),
    # Backend service timeout 30s: of the whole answer, and of a WebSocket's life; backend keep-alive fixed at 600s.
    Balancer("gcp", whole=30, reuse=600, setting="timeoutSec", source="cloud.google.com/load-balancing/docs/https"),
    # Azure Load Balancer, rules: 4 minutes.
    Balancer("azure", 240, setting="idleTimeoutInMinutes", source="learn.microsoft.com, load-balancer-tcp-idle-timeout"),
    # Proxy Read Timeout 120s (524); Proxy Idle Timeout 900s.
    Balancer("cloudflare", 120, reuse=900, setting="Proxy Read Timeout", source="developers.cloudflare.com, connection-limits"),
    # H12: 30s to the first byte; then a rolling window of 55s (H15, H28). Neither can be set.
    Balancer("heroku", 55, first=30, setting="a fixed limit", source="devcenter.heroku.com/articles/request-timeout"),
    # No limit on an answer (responseHeaderTimeout, writeTimeout 0s); serversTransport idleConnTimeout 90s.
    Balancer("traefik", reuse=90, setting="respondingTimeouts", source="doc.traefik.io, serversTransport"),
)
BALANCERS: dict[str, Balancer] = {balancer.name: balancer for balancer in _ALL}


def named(name: str | None, idle: float | None) -> Balancer | None:
    """The one named, with `idle` in place of its default."""
    if name is None:
        return None if idle is None else Balancer("the balancer", idle, setting="its idle limit")
    known = BALANCERS[name]
    if idle is None:
        return known
    return Balancer(name, idle, known.first, known.whole, known.reuse, known.setting, known.source)
