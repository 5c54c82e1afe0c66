"""The configuration as attrs classes: the keys are a contract (add to it, do not rename).

Rule 1: a default stands here and nowhere else; those of policies, prices and roles in their own rooms, which this one shows.
Rule 2: durations are seconds, sizes bytes, once structured; in the file they are `"5s"` and `"1MiB"` (`units`).
Rule 3: what this version does not do is refused at load with a sentence; a key is never accepted and ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NewType

from attrs import field, frozen

from clawproxy.clocks import Deadlines
from clawproxy.config.identities import all_canonical
from clawproxy.config.policies import PolicyConfig
from clawproxy.config.prices import PriceConfig, RatesConfig
from clawproxy.config.residency import ResidencyConfig
from clawproxy.config.roles import RoleConfig
from clawproxy.config.tls import TLSConfig

Duration = NewType("Duration", float)
"""Seconds."""
Size = NewType("Size", int)
"""Bytes."""

KIB, MIB = 1024, 1024 * 1024


@frozen
class SecretRef:
    """Where a secret is: `env:NAME`, `file:PATH`, a plugin's scheme, or a literal (`scheme == ""`). Resolved late, by whoever
    needs it, so that `keys` and `usage` work without any provider's secret. Of a provider's, see also `FETCHED`."""

    scheme: str
    value: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> SecretRef:
        match = re.match(r"^([a-z][a-z0-9_]*):(?!//)(.+)$", text, re.DOTALL)
        return cls(match[1], match[2]) if match else cls("", text)


FETCHED = ("command", "vault", "aws")
"""Schemes of a provider's credentials that take time: they are had while requests go on, and never when a file is checked."""


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
    on_revoke: Literal["finish", "cut"] = "finish"
    """What becomes of requests at work whose credential was revoked or expires: they may finish, or are cut."""


@frozen
class PoolConfig:
    min_idle: int = 0
    max: int = 1024
    idle: Duration = Duration(30.0)
    lifetime: Duration = Duration(600.0)


@frozen
class OAuthConfig:
    """A provider's credential is an access token (RFC 6749): by the refresh token where there is one, else by the client's own
    credentials."""

    token_url: str
    client_id: str
    client_secret: SecretRef | None = None
    scope: str | None = None
    refresh_token: SecretRef | None = None
    audience: str | None = None
    """Sent as `audience`, for servers that want to know what the token is for."""
    client_auth: Literal["basic", "post"] = "basic"
    """Where `client_id` and `client_secret` go: a header, or the body (RFC 6749, 2.3.1)."""
    ca_file: Path | None = None


@frozen
class ProviderTLSConfig:
    """Of an https provider, beyond what is always verified."""

    certificate: Path | None = None
    """The gateway's own, for providers that ask for one; the chain included."""
    key: Path | None = None
    pin: tuple[str, ...] = ()
    """`sha256/BASE64`: what the digest of the provider's public key (SPKI) must be, one of them."""
    server_name: str | None = None
    """What its certificate is for, where that is not the host of `base_url`."""


@frozen
class HealthConfig:
    """Whether a provider is there, asked again and again though no client asked it anything."""

    every: Duration
    """Required."""
    path: str | None = None
    """What is asked for, below `base_url`; None: the dialect's list of models."""
    timeout: Duration = Duration(5.0)
    failures: int = 2
    """In a row, after which the provider is down."""


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
    prefill: bool | None = None
    """Whether its models go on with an assistant message that comes last; None: as far as is known."""
    api_keys: tuple[SecretRef, ...] = ()
    """More credentials, beside `api_key` or instead of it: requests take turns among those that are well."""
    oauth: OAuthConfig | None = None
    """Instead of them: tokens that an authorization server issues."""
    refresh: Duration | None = None
    """How long a credential is used before it is had anew where it comes from (`command:`, `vault:`, `aws:`, and tokens that do
    not say when they expire). None: until the provider refuses it, or the configuration is read again."""
    tls: ProviderTLSConfig | None = None
    health: HealthConfig | None = None
    """None: nothing reaches it unless a client asked."""
    region: str | None = None
    """Where it processes what it is sent: of all its routes that do not say otherwise."""
    on_cancel: Literal["cancel", "drain"] = "cancel"
    """What becomes of an answer whose client left: its connection is closed, or it is read on for the provider's figures."""
    drain_time: Duration = Duration(30.0)
    drain_bytes: Size = Size(MIB)
    """How far it is read on, at most; bytes of content."""

    @property
    def credentials(self) -> tuple[SecretRef, ...]:
        """All of them, in the order `Route.credential` counts."""
        if self.oauth is not None:
            return (SecretRef("oauth", f"{self.oauth.client_id} {self.oauth.token_url}"),)
        return self.api_keys if self.api_key is None else (self.api_key, *self.api_keys)


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
class Hedge:
    """In the file `"800ms"`, or `"p95"`: after that share of first tokens was there, as far as it was learnt."""

    after: Duration | None = None
    quantile: float | None = None


@frozen
class ModelConfig:
    routes: tuple[RouteConfig, ...]
    strategy: str = "priority"
    deadlines: Mapping[str, Duration] = field(factory=dict)
    price: PriceConfig | None = None
    """None: not known, so that no cost is (which is not the same as free)."""
    quality: int = 0
    """The least tier of a route that a request for it takes."""
    hedge: Hedge | None = None
    """When a second attempt is made beside one that says nothing; None: never."""
    continuation: bool = False
    """Whether an answer that is cut in the middle goes on elsewhere."""
    unavailable: str | None = None
    """What its clients are told where no route could serve them, instead of the fault's own words."""
    affinity: str = "off"
    """By what requests are sent where their prompt is cached: `prefix`, `session`."""


@frozen
class KeyConfig:
    """A static client key. `clawproxy keys create` adds hashed ones to the store."""

    secret: SecretRef | None = None
    """Required, unless `certificates` are given."""
    models: tuple[str, ...] = ("*",)
    user: str | None = None
    team: str | None = None
    app: str | None = None
    roles: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    expires: float | None = None
    """A TOML date-time in the file; Unix time here."""
    may_assert: bool = False
    certificates: tuple[str, ...] = field(default=(), converter=all_canonical)
    """What a client certificate must say to be this key, any of them: as in `identities`."""


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
    media: Size = Size(20 * MIB)
    """Inline pictures, sounds and files of one request: of their base64, as it came."""
    shed_lag: Duration = Duration(1.0)
    """Event-loop lag beyond which new requests are refused as `overloaded`."""


@frozen
class BudgetConfig:
    """What somebody may use in a window. `config.budgets` says what the words mean."""

    scope: str
    """`global`, or `key:NAME` (user, app, team, model, provider); `user:*` is one for each user."""
    limit: str
    """`"10 requests"`, tokens, input_tokens, output_tokens, concurrent; `"$5.00"`."""
    window: Literal["minute", "hour", "day", "month", "total"] | None = None
    """In UTC. Required, but for `concurrent`."""
    sliding: bool = False
    """The window ends now, rather than beginning on the full hour."""
    soft: str | None = None
    """The share of the limit from which on it is told: `"80%"`."""
    action: str = "block"
    """At the limit: `block`, `throttle`, `fallback:MODEL` or `notify`."""
    mode: Literal["strict", "tight"] = "strict"
    """What is reserved before anything is sent: as many tokens as bytes, or tokens as they are estimated."""


@frozen
class AlertsConfig:
    """What operators are told of, and where. `checks_alerts.EVENTS` are the events."""

    url: SecretRef | None = None
    """Of a webhook; as a reference where it holds a secret."""
    secret: SecretRef | None = None
    """Its posts are signed with it."""
    events: tuple[str, ...] = ()
    """Those that are told; empty: all."""
    file: bool = True
    """Whether they are written to `state_dir/events/alerts.jsonl`, too."""
    repeat: Duration = Duration(300.0)
    """How long the same alert about the same thing is not told again."""
    window: Duration = Duration(300.0)
    """What `error_rate` and `latency` are figures of."""
    least: int = 20
    """Requests in the window below which neither is told."""
    error_rate: str | None = None
    """The share of requests that fail from which on it is told: `"5%"`; None: never."""
    latency: Duration | None = None
    """The 95th percentile of the time to first token; None: never."""
    unusual_use: float | None = None
    """How many times a key's usual tokens of an hour are unusual; None: nothing is."""
    unusual_least: int = 100_000
    """Tokens in an hour below which nothing is."""


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
    budgets: Mapping[str, BudgetConfig] = field(factory=dict)
    rates: RatesConfig = field(factory=RatesConfig)
    policies: Mapping[str, PolicyConfig] = field(factory=dict)
    """In the order they are written."""
    roles: Mapping[str, RoleConfig] = field(factory=dict)
    """None: what keys call their roles are words for policies, and allow nothing."""
    alerts: AlertsConfig = AlertsConfig()
    residency: Mapping[str, ResidencyConfig] = field(factory=dict)
    """None: data may go wherever a route leads."""
