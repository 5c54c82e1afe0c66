"""What the doctor says: causes from a closed set, and the findings that carry them."""

from __future__ import annotations

import math

from attrs import field, frozen

from clawproxy.config.units import render_duration

CAUSES: dict[str, str] = {
    "slow_first_token": "A provider begins to answer too late",
    "stall": "A provider falls silent in the middle of an answer",
    "slow_answer": "A provider answers too slowly",
    "out_of_time": "Requests take longer than they may in all",
    "connect": "A provider can not be reached in time",
    "dns": "A provider's name can not be looked up",
    "unreachable": "A provider refuses connections",
    "exhausted_pool": "No connection to a provider is free in time",
    "queue_full": "No place in the gateway is free in time",
    "client_idle_cut": "Idle clients are cut off",
    "dead_client": "WebSocket clients answer no pings",
    "slow_client": "Clients do not read their answers",
    "slow_request": "Clients send their requests too slowly",
    "silent_client": "WebSocket clients send no credential in time",
    "balancer_idle_cut": "Something between client and gateway cuts quiet connections",
    "client_timeout": "Clients give up after a fixed time",
    "disconnecting_client": "Clients leave before their answers end",
    "expired_token": "Clients show a credential that has expired or was revoked",
    "wrong_token": "Clients show a credential nobody knows",
    "provider_credential": "A provider refuses the gateway's own credential",
    "provider_limits": "A provider limits or sheds the gateway's requests",
    "overload": "The gateway sheds load",
    "clock_contradiction": "Clocks contradict each other",
    "balancer_contradiction": "A clock contradicts the load balancer in front",
}
"""Every cause, with its headline."""

SAVED = 0.1
"""What an attempt that another one made good weighs, against a request that failed."""
CHOSEN = 0.05
"""What weighs a client that left because it wanted to."""


@frozen
class Change:
    """What to change: a key of the configuration and its new value, both as they are written there."""

    key: str
    value: str = ""
    """Empty where only the operator can know it; `above ...` in somebody else's configuration."""


@frozen
class Finding:
    cause: str
    """A key of `CAUSES`."""
    fault: str
    """client, provider, gateway, operator; or `network`."""
    why: str
    """A sentence or two."""
    count: int = 0
    """Requests (or connections) that failed by it."""
    saved: int = 0
    """Attempts that failed by it and were made good by another."""
    clock: str | None = None
    setting: str | None = None
    """What holds the limit now."""
    where: tuple[str, ...] = ()
    change: tuple[Change, ...] = ()
    weight: float = 1.0
    of: int = 0
    """How many there were in all, where that is known."""
    wrong: bool = field(default=True)
    """Whether something should be changed; false: it is only told."""

    @property
    def harm(self) -> float:
        return self.count * self.weight + self.saved * SAVED


_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)


def round_up(seconds: float) -> float:
    """The next round duration: 100ms, 150ms, 200ms ... 1s ... 10s, 15s, 20s, 30s, 45s, 1m, 90s, 2m, 3m, 5m, 10m ..."""
    if seconds <= 0 or math.isinf(seconds):
        return seconds
    if seconds > 10:
        for step in (15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 450, 600, 900, 1200, 1800, 2700, 3600):
            if seconds <= step:
                return float(step)
        return math.ceil(seconds / 3600) * 3600.0
    scale = 10.0 ** math.floor(math.log10(seconds))
    return float(next((round(step * scale, 9) for step in _STEPS if seconds <= step * scale * 1.000001), 10 * scale))


def seconds(value: float) -> str:
    return render_duration(round(value, 3))
