"""Every clock by name. The rest of the code asks this table; no other place holds a time limit of a request.

All limits are seconds, `math.inf` where a clock is off; one that a provider, a model or the client set for itself is a `Limit`,
which knows its setting, and that of `rate` is a `Rate`. A request carries one `Deadlines` value; `exchange.py` arms its
clocks, and what runs out is reported by `expired`, which names the clock, its limit and the setting that holds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import Factory, evolve, field, fields, frozen

from clawproxy.errors import KINDS, ClockExpired, Fault


class Limit(float):
    """Seconds, and the setting that holds them."""

    __slots__ = ("setting",)
    setting: str

    def __new__(cls, seconds: float, setting: str) -> Limit:
        limit = super().__new__(cls, seconds)
        limit.setting = setting
        return limit

    def __getnewargs__(self) -> tuple[float, str]:  # type: ignore[override]  # float's own has one
        return float(self), self.setting


class Rate(float):
    """The window of the `rate` clock in seconds, and the tokens a second that must come in each."""

    __slots__ = ("setting", "tokens")
    setting: str
    tokens: float

    def __new__(cls, window: float, tokens: float, setting: str = "deadlines.rate") -> Rate:
        rate = super().__new__(cls, window)
        rate.tokens, rate.setting = tokens, setting
        return rate

    def __getnewargs__(self) -> tuple[float, float, str]:  # type: ignore[override]  # float's own has one
        return float(self), self.tokens, self.setting

    def __eq__(self, other: object) -> bool:
        return float.__eq__(self, other) is True and self.tokens == getattr(other, "tokens", None)

    def __hash__(self) -> int:
        return hash((float(self), self.tokens))

    def __repr__(self) -> str:
        return f"<{self.tokens:g} tokens/s over {float(self):g} s>"


def held(limit: float, setting: str) -> float:
    """`limit`, of that setting."""
    return Rate(limit, limit.tokens, setting) if isinstance(limit, Rate) else Limit(limit, setting)


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
    """The slowest a provider may answer: a `Rate`, or off. Counted from the first content, while the provider has the word."""
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
    stall_reasoning: float = field(default=Factory(lambda self: 2 * self.stall, takes_self=True))
    """`stall`, where a model reasons. Twice as long unless it is set."""

    def overridden(self, changes: Mapping[str, float], home: str = "deadlines") -> Deadlines:
        """These limits with a provider's or a model's own in place, whose table is `home`. Its `stall` alone is meant for
        reasoning too: whoever sets it there knows the model. Unknown names are a TypeError."""
        if not changes:
            return self
        own = {clock: held(limit, f"{home}.{clock}") for clock, limit in changes.items()}
        if "stall" in own:
            own.setdefault("stall_reasoning", own["stall"])
        return evolve(self, **own)

    def shortened(self, total: float | None) -> Deadlines:
        """A client may only shorten `total`."""
        return self if total is None or total >= self.total else evolve(self, total=Limit(total, CLIENTS_OWN))


CLIENTS_OWN = "deadline_ms"
"""What a client shortens `total` with; over HTTP it is the header `x-claw-deadline-ms`."""
SLUGS: Mapping[str, str] = {"idle_ws": "timeout.idle", "stall_reasoning": "timeout.stall"}
"""Clocks that share another's row of the table of errors."""


CLOCKS: tuple[str, ...] = tuple(a.name for a in fields(Deadlines))
CLOCK_SLUGS: Mapping[str, str] = {clock: slug for clock in CLOCKS if (slug := SLUGS.get(clock, f"timeout.{clock}")) in KINDS}
"""The row of the table of errors of each clock that has one."""


def expired(clock: str, limit: float, *, fault: Fault | None = None, **details: Any) -> ClockExpired:
    """The error for a clock that ran out after `limit` seconds. `fault`: whose it was, where the clock alone does not tell."""
    slug = CLOCK_SLUGS[clock]
    setting = getattr(limit, "setting", f"deadlines.{clock}")
    kind = KINDS[slug]
    whose = fault or kind.fault
    slower = f" (fewer than {limit.tokens:g} tokens a second)" if isinstance(limit, Rate) else ""
    message = f"{kind.message} Clock `{clock}` ran out after {limit:g} s{slower} (setting {setting}; at fault: {whose})."
    if fault is not None:
        details["fault"] = fault
    return ClockExpired(slug, message, clock=clock, limit_ms=round(limit * 1000), setting=setting, **details)
