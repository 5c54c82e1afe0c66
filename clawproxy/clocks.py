"""Every clock by name. The rest of the code asks this table; no other place holds a time limit of a request.

All limits are seconds, `math.inf` where a clock is off. A request carries one `Deadlines` value; `exchange.py` arms its
clocks, and what runs out is reported by `expired`, which names the clock, its limit and the setting that holds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import evolve, fields, frozen

from clawproxy.errors import KINDS, ClockExpired


@frozen(slots=True)
class Deadlines:
    """The limits of one request, in seconds: `[deadlines]`, then the provider's own, the model's own, the client's."""

    head: float = 10.0
    """Accept (TLS included) to the whole request head."""
    auth: float = 10.0
    """WebSocket open to authenticated."""
    body: float = 60.0
    """Head to whole body; and a body slower than 1 KiB/s after 5 s is cut."""
    queue: float = 10.0
    """Admitted to sent: pool, concurrency, throttle."""
    connect: float = 5.0
    """DNS, TCP and TLS to a provider."""
    first_token: float = 120.0
    """Request sent to first content."""
    stall: float = 60.0
    """Between events with content. Keep-alives do not reset it."""
    rate: float = math.inf
    """Reserved: the slowest a provider may answer."""
    total: float = 600.0
    """All of it."""
    write: float = 60.0
    """One write to a client that does not read, measured in bytes accepted."""
    idle: float = 75.0
    """HTTP: between requests."""
    idle_ws: float = math.inf
    """WebSocket: no application frame either way."""
    grace: float = 15.0
    """Client gone to cancel, where `on_disconnect` is `grace`."""
    session: float = 86400.0
    drain: float = 25.0
    """SIGTERM to exit."""
    keepalive_sse: float = 15.0
    """A comment on a quiet SSE stream, so that no load balancer drops it."""
    keepalive_ws: float = 20.0
    """A ping on a WebSocket; two misses close."""

    def overridden(self, changes: Mapping[str, float]) -> Deadlines:
        """These limits with a provider's or a model's own in place. Unknown names are a TypeError."""
        return evolve(self, **changes) if changes else self

    def shortened(self, total: float | None) -> Deadlines:
        """A client may only shorten `total`."""
        return self if total is None or total >= self.total else evolve(self, total=total)


CLOCKS: tuple[str, ...] = tuple(a.name for a in fields(Deadlines))


def expired(clock: str, limit: float, **details: Any) -> ClockExpired:
    """The error for a clock that ran out after `limit` seconds."""
    slug = "timeout.idle" if clock == "idle_ws" else f"timeout.{clock}"
    setting = f"deadlines.{clock}"
    kind = KINDS[slug]
    message = f"{kind.message} Clock `{clock}` ran out after {limit:g} s (setting {setting}; at fault: {kind.fault})."
    return ClockExpired(slug, message, clock=clock, limit_ms=round(limit * 1000), setting=setting, **details)
