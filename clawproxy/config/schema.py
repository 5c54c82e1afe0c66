"""The configuration as attrs classes: the keys are a contract (add to it, do not rename).

Rule 1: a default stands here and nowhere else.
Rule 2: durations are seconds, sizes bytes, once structured; in the file they are `"5s"` and `"1MiB"` (`units`).
Rule 3: what this version does not do is refused at load with a sentence; a key is never accepted and ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NewType

from attrs import field, frozen

from clawproxy.clocks import Deadlines

Duration = NewType("Duration", float)
"""Seconds."""
Size = NewType("Size", int)
"""Bytes."""
Price = NewType("Price", int)
"""Micro-dollars per million tokens; in the file, dollars per million tokens: `"0.15"`."""

KIB, MIB = 1024, 1024 * 1024


@frozen
class SecretRef:
    """Where a secret is: `env:NAME`, `file:PATH`, a plugin's scheme, or a literal (`scheme == ""`). Resolved late, by whoever
    needs it, so that `keys` and `usage` work without any provider's secret."""

    scheme: str
    value: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> SecretRef:
        match = re.match(r"^([a-z][a-z0-9_]*):(?!//)(.+)$", text, re.DOTALL)
        return cls(match[1], match[2]) if match else cls("", text)


@frozen
class TLSConfig:
    certificate: Path
    key: Path


@frozen
class ServerConfig:
    listen: tuple[str, ...] = ("127.0.0.1:8642",)
    """`host:port`, `[v6]:port` or `unix:/path`; port 0 picks a free one."""
    admin: str | None = "127.0.0.1:8643"
    """The admin listener; an empty string turns it off."""
    workers: int = 1
    state_dir: Path = Path("~/.local/state/clawproxy")
    tls: TLSConfig | None = None
    origins: tuple[str, ...] = ()
    """Browser origins allowed, exact: `https://app.example`."""
    hosts: tuple[str, ...] = ()
    """Host names served; empty serves all (DNS rebinding is refused wherever an Origin comes)."""
    admin_token: SecretRef | None = None
    trusted_proxies: tuple[str, ...] = ()
    pepper: SecretRef | None = None


@frozen
class PoolConfig:
    min_idle: int = 0
    max: int = 1024
    idle: Duration = Duration(30.0)
    lifetime: Duration = Duration(600.0)


@frozen
class ProviderConfig:
    dialect: str = "openai_chat"
    base_url: str | None = None
    """`https://host[:port]/prefix`; the in-process `scripted` provider needs none."""
    api_key: SecretRef | None = None
    headers: Mapping[str, str] = field(factory=dict)
    pool: PoolConfig = PoolConfig()
    deadlines: Mapping[str, Duration] = field(factory=dict)
    """Those clocks of `[deadlines]` that run in an attempt, for this provider; that of `rate` is a `clocks.Rate`."""
    ca_file: Path | None = None
    """PEM certificates to trust instead of the system's."""
    profile: str | None = None
    """Which host's peculiarities to mind (`dialects.profiles`), where `base_url` does not tell."""
    api_version: str | None = None
    """Azure's `api-version`, Anthropic's `anthropic-version`, where the dialect's own default is not wanted."""
    websocket: bool = False
    """For `openai_responses`: attempts go over WebSockets, where the provider takes them."""
    script: str | None = None
    """For the `scripted` dialect: what it says, unless a prompt brings its own script."""
    models: tuple[str, ...] = ()
    """The names to list where no `[models]` are configured."""


@frozen
class PriceConfig:
    """What a model costs, or one of its routes. Tokens of a kind without a price of its own cost what input does."""

    input: Price
    output: Price
    cached_input: Price | None = None
    cache_write: Price | None = None


@frozen
class RouteConfig:
    """To a provider's model; or, without a `provider`, to another of `[models]`, whose own strategy then chooses."""

    provider: str | None = None
    model: str = ""
    """Required."""
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    weight: int = 1
    """Its share, against the others'; 0: only where the others failed."""
    price: PriceConfig | None = None
    """Over the model's."""
    quality: int = 0
    """Its tier; higher is better."""
    capabilities: tuple[str, ...] | None = None
    """What it can do; None: whatever can be inferred from a request."""
    region: str | None = None


@frozen
class ModelConfig:
    routes: tuple[RouteConfig, ...]
    strategy: str = "priority"
    deadlines: Mapping[str, Duration] = field(factory=dict)
    price: PriceConfig | None = None
    """None: not known, so that no cost is (which is not the same as free)."""
    quality: int = 0
    """The least tier of a route that a request for it takes."""


@frozen
class KeyConfig:
    """A static client key. `clawproxy keys create` adds hashed ones to the store."""

    secret: SecretRef
    models: tuple[str, ...] = ("*",)
    user: str | None = None
    team: str | None = None
    app: str | None = None
    roles: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    expires: float | None = None
    """A TOML date-time in the file; Unix time here."""
    may_assert: bool = False


@frozen
class PipelineConfig:
    order: tuple[str, ...] = ("audit", "auth", "sanitize", "truncate", "router", "meter")
    hook_budget: Duration = Duration(1.0)
    """How long one plugin's hook may take on its way down."""


@frozen
class LimitsConfig:
    head: Size = Size(16 * KIB)
    body: Size = Size(32 * MIB)
    frame: Size = Size(16 * MIB)
    """One WebSocket message."""
    connections: int = 0
    """0: half of RLIMIT_NOFILE, raised to its hard limit."""
    connections_per_address: int = 0
    """0: off."""
    in_flight: int = 0
    """Requests at work at once, in all; beyond it they queue, fairly by key. 0: off."""
    in_flight_per_key: int = 0
    in_flight_per_connection: int = 0
    requests_per_connection: int = 10_000
    errors_per_connection: int = 20
    json_depth: int = 64
    messages: int = 100_000
    response: Size = Size(64 * MIB)
    """What one answer of a provider may hold."""
    shed_lag: Duration = Duration(1.0)
    """Event-loop lag beyond which new requests are refused as `overloaded`."""


@frozen
class LogConfig:
    level: str = "info"
    """debug, info, warning or error."""


@frozen
class Config:
    server: ServerConfig = ServerConfig()
    providers: Mapping[str, ProviderConfig] = field(factory=dict)
    models: Mapping[str, ModelConfig] = field(factory=dict)
    keys: Mapping[str, KeyConfig] = field(factory=dict)
    pipeline: PipelineConfig = PipelineConfig()
    plugins: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    """Each plugin's own section, checked by its own class."""
    deadlines: Deadlines = field(factory=Deadlines)
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()
    path: Path | None = None
    """The file it came from."""
