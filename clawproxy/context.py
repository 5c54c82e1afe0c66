"""What hooks are given: the exchange, its attempts, the service around them, and the registry at start.

Rule: plugins read these freely and write only through methods, and through `exchange.state[NAME]`, a place of their own.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from attrs import define, field

from clawproxy.clocks import Deadlines
from clawproxy.errors import ClawError
from clawproxy.events import FinishReason, Notice
from clawproxy.messages import EMPTY, ChatRequest, Principal, Route, Usage
from clawproxy.values import value

if TYPE_CHECKING:
    from pathlib import Path

    import trio

    from clawproxy.config import Config, Residency, SecretRef
    from clawproxy.secrets import Secret
    from clawproxy.stores.base import Store


_HEADER = re.compile(r"[a-z][a-z0-9-]{0,63}")
_IDS_AT_ONCE = 64
_HEX = 20
"""Hex digits of randomness an id takes."""
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_random: list[str] = []


def new_id() -> str:
    """A UUIDv7 (RFC 9562): sorts by time, 74 random bits. The kernel is asked once for `_IDS_AT_ONCE` of them (1.8 -> 0.8 us)."""
    try:
        bits = _random.pop()
    except IndexError:
        pool = os.urandom(_IDS_AT_ONCE * _HEX // 2).hex()
        bits, *more = [pool[at : at + _HEX] for at in range(0, len(pool), _HEX)]
        _random.extend(more)
    millis = f"{time.time_ns() // 1_000_000:012x}"
    return f"{millis[:8]}-{millis[8:]}-7{bits[:3]}-{_VARIANT[bits[3]]}{bits[4:7]}-{bits[7:19]}"


os.register_at_fork(after_in_child=_random.clear)  # else parent and child would mint the same ids


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
    prompt: float | None = None
    """The client streaming its prompt."""
    _told: Mapping[str, float] | None = field(default=None, init=False, repr=False, eq=False)
    """What `milliseconds` made of all this for `_told_of`."""
    _told_of: float = field(default=0.0, init=False, repr=False, eq=False)

    def gateway(self) -> float | None:
        """What the gateway itself added: total less what was spent waiting for others."""
        if self.total is None:
            return None
        others = (self.queue or 0.0) + (self.connect or 0.0) + (self.upstream or 0.0) + (self.prompt or 0.0)
        return max(0.0, self.total - others)

    def milliseconds(self) -> Mapping[str, float]:
        """`{"queue": 0.1, ...}`, phases not reached left out. Nothing changes once there is a `total`: then it is made once."""
        if self._told is not None and self._told_of == self.total:
            return self._told
        out: dict[str, float] = {}  # no loop, no round(): they took half of the time
        if (queue := self.queue) is not None:
            out["queue"] = int(queue * 1e6 + 0.5) / 1000
        if (policy := self.policy) is not None:
            out["policy"] = int(policy * 1e6 + 0.5) / 1000
        if (connect := self.connect) is not None:
            out["connect"] = int(connect * 1e6 + 0.5) / 1000
        if (first_token := self.first_token) is not None:
            out["first_token"] = int(first_token * 1e6 + 0.5) / 1000
        if (upstream := self.upstream) is not None:
            out["upstream"] = int(upstream * 1e6 + 0.5) / 1000
        if (prompt := self.prompt) is not None:
            out["prompt"] = int(prompt * 1e6 + 0.5) / 1000
        if (total := self.total) is not None:
            others = (queue or 0.0) + (connect or 0.0) + (upstream or 0.0) + (prompt or 0.0)
            out["gateway"] = int(max(0.0, total - others) * 1e6 + 0.5) / 1000
            out["total"] = int(total * 1e6 + 0.5) / 1000
            self._told, self._told_of = out, total
        return out


@value
class Attribution:
    """Who asks within a key, in the client's own words (`X-ClawRouter-*`): for the log and the audit, never for policy, never
    sent on. Each at most 256 printable ASCII characters."""

    client: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    project_id: str | None = None


@define(slots=True, eq=False)
class Rest:
    """What is still read of an answer whose client has left (`[providers.NAME] on_cancel = "drain"`)."""

    size: int = 0
    """Bytes of content that came after nobody listened."""
    whole: bool = False
    """It was read to its end."""
    waiting: list[Callable[[], Awaitable[None]]] = field(factory=list)

    def then(self, settle: Callable[[], Awaitable[None]]) -> None:
        """For a plugin that is left (`open_attempt`) with this in `attempt.rest`: called once, when nothing more is read, in a
        task of the service, shielded and bounded. Its `exchange` is over by then."""
        self.waiting.append(settle)


@define(slots=True, eq=False)
class Attempt:
    """One call of one provider."""

    id: str
    number: int
    reason: str
    """first, retry, failover, hedge, steer, continue."""
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
    output_limit: int | None = None
    """Tokens that its answer may have at most, set by whoever opens it: the provider is told, whatever the client said."""
    cut: FinishReason | None = None
    """Set by a transform that ended the answer here: the provider is not read on, its connection is closed."""
    timing: Timing | None = None
    """Its own phases, where it was tried in a race (`Route.hedge_after`); else they are the exchange's."""
    rest: Rest | None = None
    """Its client has left, and the provider is read on for its figures: `usage` may still come."""


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
    attribution: Attribution | None = None
    cache_control: str | None = None
    """The client's `Cache-Control`, unread."""
    answer_headers: tuple[tuple[str, str], ...] = ()
    operation: str = "chat"
    """As in `messages.ChatRequest`."""
    wanted: Mapping[str, str] = EMPTY
    """What the client asks of a route in its headers: `capabilities`, `quality`, `region`, unread."""
    considered: Sequence[Considered] = ()
    """What the router weighed, best first; nothing where it had nothing to weigh."""
    rules: Sequence[RuleHit] = ()
    """The policies that spoke, in the order they did."""
    last_resort: Route | None = None
    """What to answer from where no route can, before anything was released (an older answer, `Route.recorded`)."""
    parent: str | None = None
    """The `request_id` of the exchange within which a plugin asks this (`App.ask`)."""
    asked: int = 0
    """Questions of their own that plugins asked within it."""
    asking: int = 0
    """Those that are not answered yet."""
    spoke: float | None = None
    """`trio.current_time()` when the client was last sent something, a keep-alive included; None: nothing yet."""
    residency: Residency | None = None
    """Where its data may go; None: anywhere. The core holds every attempt to it, whatever a router chose."""
    scanned: Scanned | None = None
    """What a content policy looked at, where one did."""

    def may_go(self, route: Route) -> bool:
        """Whether residency rules let it take this route. An answer that a route brings with it is sent to nobody."""
        residency = self.residency
        return residency is None or route.recorded is not None or residency.allows(route.provider, route.model)

    def answer_header(self, name: str, value: str) -> None:
        """A header of the answer over HTTP, where there is one; set before the first content. `name` is a constant of the
        plugin's, in lower case; of `value`, what is not plain is percent-encoded."""
        if _HEADER.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name for a header")
        self.answer_headers = (*self.answer_headers, (name, value))

    def notice(self, code: str, message: str, **details: Any) -> None:
        """Tell the client something about its request; sent before the next content."""
        self.notices.append(Notice(code, message, details or EMPTY))


@define(slots=True, eq=False)
class Scanned:
    """What a content policy looked at: which groups of rules, and how much text. What it found, it only counts."""

    prompt: Sequence[str] = ()
    """The groups of rules the prompt was looked at with."""
    answer: Sequence[str] = ()
    prompt_bytes: int = 0
    answer_bytes: int = 0
    """Of all attempts; grows while the answer comes."""
    counts: list[Mapping[str, int]] = field(factory=list)
    """How often each rule matched, one mapping for each look; they grow as `answer_bytes` does."""
    veil: Callable[[str], str] | None = None
    """Takes out of a text what the policy put back into the answer for its client alone."""

    def found(self) -> dict[str, int]:
        """How often each rule matched, in all."""
        total: dict[str, int] = {}
        for counts in filter(None, self.counts):
            for name, count in counts.items():
                total[name] = total.get(name, 0) + count
        return total


@value
class RuleHit:
    """A policy that applied to a request."""

    rule: str
    """Its name in the configuration."""
    action: str
    """In a word of a closed set: what it did."""
    shadow: bool = False
    """It only watches: this is what it would have done."""


@value
class Considered:
    """A route as a router saw it."""

    provider: str
    model: str
    why: str
    """In a word of a closed set: why it came first, or was left out; empty for those between."""
    score: float | None = None
    """What it was ordered by, less is better; None where no figure did."""
    cached: int | None = None
    """Tokens of the prompt that its provider's cache is expected to have, where that counted."""


@value
class Checked:
    """What a provider came to that was asked whether it is there (`[providers.NAME.health]`)."""

    provider: str
    result: str
    """ok, answered (a status from 300 to 499: it is there), failed (500 and up), unreachable, timeout; unknown: the gateway could
    not ask."""
    down: bool
    """It failed as often in a row as it takes."""
    lasts: float
    """Seconds for which that is the last word."""
    failures: int = 0
    """In a row, this one included."""
    status: int | None = None
    seconds: float = 0.0
    """How long it took."""
    at: float = 0.0
    """Unix time."""


def _no_secrets(ref: SecretRef) -> Secret:
    raise LookupError(f"this service resolves no secrets ({ref.scheme}:...)")


async def _no_answers(exchange: Exchange, request: ChatRequest) -> str:
    raise LookupError("this service asks no models")


@value
class Alert:
    """Something an operator should know at once."""

    id: str
    event: str
    """One of those in docs/alerts.md: `budget.soft`."""
    at: float
    """Unix time."""
    message: str
    """A sentence, of names and figures."""
    details: Mapping[str, Any] = EMPTY
    """The same for programs: JSON values."""
    instance: str = ""


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
    random: Random = field(factory=Random)
    """Chance, for whatever needs no secrecy; seeded in tests."""
    log: Callable[..., None] = lambda *_a, **_k: None
    """`log("route.breaker", "warning", provider="a")`: one line of the log; fields from the log's own list, never a secret."""
    gauge: Callable[..., None] = lambda *_a, **_k: None
    """`gauge(name, help, read, labels)`: a figure asked for at each scrape: `read()` gives a number, or with labels a mapping."""
    ask: Callable[[Exchange, ChatRequest], Awaitable[str]] = _no_answers
    """`await ask(exchange, request)` inside a hook: the text a model answers, as a whole exchange of the same principal within
    that exchange, metered and audited like any other. The caller bounds the time it may take. Raises ClawError; RuntimeError
    where `exchange` is such a question itself (`exchange.parent`)."""


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
