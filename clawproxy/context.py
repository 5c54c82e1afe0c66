"""What hooks are given: the exchange, its attempts, the service around them, and the registry at start.

Rule: plugins read these freely and write only through methods, and through `exchange.state[NAME]`, a place of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field

from clawproxy.clocks import Deadlines
from clawproxy.errors import ClawError
from clawproxy.events import Notice
from clawproxy.messages import EMPTY, Principal, Route, Usage

if TYPE_CHECKING:
    from pathlib import Path

    import trio

    from clawproxy.config import Config, SecretRef
    from clawproxy.secrets import Secret
    from clawproxy.stores.base import Store


def new_id() -> str:
    """A UUIDv7 (RFC 9562): sorts by time, 74 random bits."""
    millis = time.time_ns() // 1_000_000
    value = (millis << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@define(slots=True)
class Timing:
    """Where the time went, in seconds. Phases not reached stay None."""

    queue: float | None = None
    policy: float | None = None
    """Hooks going down."""
    connect: float | None = None
    """Zero where a pooled connection served."""
    first_token: float | None = None
    """Request sent to first content."""
    upstream: float | None = None
    """Request sent to the provider's end."""
    total: float | None = None

    def gateway(self) -> float | None:
        """What the gateway itself added: total less what was spent waiting for others."""
        if self.total is None:
            return None
        return max(0.0, self.total - (self.queue or 0.0) - (self.connect or 0.0) - (self.upstream or 0.0))

    def milliseconds(self) -> dict[str, float]:
        """`{"queue": 0.1, ...}`, phases not reached left out."""
        values = {
            "queue": self.queue,
            "policy": self.policy,
            "connect": self.connect,
            "first_token": self.first_token,
            "upstream": self.upstream,
            "gateway": self.gateway(),
            "total": self.total,
        }
        return {name: round(value * 1000, 3) for name, value in values.items() if value is not None}


@define(slots=True, eq=False)
class Attempt:
    """One call of one provider."""

    id: str
    number: int
    reason: str
    """first, retry, failover (hedge, steer and continue are to come)."""
    route: Route
    started: float = 0.0
    """Unix time."""
    sent: bool = False
    """Whether any byte of the request went out: from then on it may be billed."""
    content: bool = False
    """Whether content came back."""
    usage: Usage | None = None
    """What the provider reported last."""
    status: int | None = None
    outcome: str | None = None
    """One of `errors.OUTCOMES`, once over."""
    error: ClawError | None = None
    closed_at: float | None = None
    """Unix time at which the provider's stream was closed or handed back whole."""


@define(slots=True, eq=False)
class Exchange:
    """One request, from the moment it is understood to the moment it is closed."""

    request_id: str
    surface: str
    """The client's dialect: `claw`, `openai_chat`."""
    principal: Principal
    deadlines: Deadlines
    instance: str = ""
    generation: int = 0
    peer: str = ""
    client_request_id: str | None = None
    session_id: str | None = None
    started: float = 0.0
    """`trio.current_time()`."""
    started_unix: float = field(factory=time.time)
    requested_model: str = ""
    stream: bool = False
    route: Route | None = None
    candidates: Sequence[Route] = ()
    """The routes the request might take; known to `prepare_request` hooks so that they can fit the prompt."""
    attempts: list[Attempt] = field(factory=list)
    notices: list[Notice] = field(factory=list)
    timing: Timing = field(factory=Timing)
    usage: Usage | None = None
    """What the exchange used in all, once known: measured where the provider said so, else estimated."""
    cost_nano: int | None = None
    """Nano-dollars; None where the price is not known."""
    state: dict[str, Any] = field(factory=dict)
    user: str | None = None
    """The principal's user, or the client's own word where its key `may_assert`."""
    app: str | None = None

    def notice(self, code: str, message: str, **details: Any) -> None:
        """Tell the client something about its request; sent before the next content."""
        self.notices.append(Notice(code, message, details or EMPTY))


def _no_secrets(ref: SecretRef) -> Secret:
    raise LookupError(f"this service resolves no secrets ({ref.scheme}:...)")


@define(eq=False)
class App:
    """The service a plugin's `lifespan` lives in."""

    config: Config
    store: Store
    instance: str
    state_dir: Path | None
    """None where nothing is kept (tests, `--ephemeral`)."""
    resolve_secret: Callable[[SecretRef], Secret] = _no_secrets
    """Raises LookupError with a sentence that holds no secret."""
    pepper: bytes = field(default=b"", repr=False)
    """The HMAC key under which client keys are known (`keys.digest`); it lives outside the store."""
    shared: dict[str, Any] = field(factory=dict)
    """What plugins keep across reloads (counters, breakers): one entry each, under the plugin's name."""
    nursery: trio.Nursery | None = None
    """The service nursery, for work that outlives a request."""
    count: Callable[..., None] = lambda *_a, **_k: None
    """`count("clawproxy_name_total", label="value")`: add one to a counter; labels from closed sets only."""


@define(eq=False)
class Registry:
    """What a plugin adds at start."""

    settings: dict[str, type[Any]] = field(factory=dict)
    dialects: dict[str, Any] = field(factory=dict)
    secret_schemes: dict[str, Callable[[str], str]] = field(factory=dict)

    def add_settings(self, name: str, cls: type[Any]) -> None:
        """The attrs class that checks `[plugins.NAME]`."""
        self.settings[name] = cls

    def add_provider_dialect(self, name: str, dialect: Any) -> None:
        self.dialects[name] = dialect

    def add_secret_scheme(self, scheme: str, resolve: Callable[[str], str]) -> None:
        """`resolve("path")` gives the value of `scheme:path`, or raises LookupError with a sentence."""
        self.secret_schemes[scheme] = resolve
