"""The store's interface, async from the first day: what the memory and SQLite stores do, a Redis one will do alike.

Rule 1: the caller mints ids. Opening, closing and revoking are idempotent by id, because a cancelled call can not be known.
Rule 2: `open_row` returns only when the row would survive `kill -9`.
Rule 3: money is integer nano-dollars, tokens are integers, None is "not known" and never zero.
Rule 4: an account is (scope, unit, window, sliding), and nothing else: budgets with other limits or names find what was counted.
Rule 5: what is used and what is held of an account together never pass the limit of a claim that was granted. What a provider
        reports beyond what was held is an overrun: kept beside what is used, never in it.
Rule 6: windows are UTC. What is reserved counts in the window of the time it is reserved in, wherever it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from attrs import frozen
from msgspec import Struct


@frozen(slots=True)
class KeyRecord:
    """A client key as stored: never the key itself."""

    id: str
    name: str
    digest: bytes
    """HMAC-SHA256(pepper, key)."""
    prefix: str
    """The first characters, for people."""
    created: float
    expires: float | None = None
    revoked: float | None = None
    user: str | None = None
    team: str | None = None
    app: str | None = None
    roles: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] = ("*",)
    may_assert: bool = False
    maker: str | None = None
    """The name of the key that made it; None for an operator's."""


class LedgerOpen(Struct, frozen=True, array_like=True, gc=False):
    """An attempt about to be made. As JSON it is an array of its fields, in this order."""

    id: str
    """The attempt's id."""
    request_id: str
    number: int
    reason: str
    opened: float
    """Unix time."""
    instance: str
    generation: int
    key: str
    user: str | None
    team: str | None
    app: str | None
    model: str
    """As the client asked."""
    provider: str
    provider_model: str
    reserved_input: int
    """Upper bound of the prompt, in tokens."""
    reserved_output: int | None = None
    reserved_nano: int | None = None
    """What that comes to at most, in nano-dollars; None where there is no price."""


class LedgerClose(Struct, frozen=True, array_like=True, gc=False):
    """What became of it. As JSON it is an array of its fields, in this order."""

    id: str
    closed: float
    outcome: str
    sent: bool
    """Whether any byte of the request reached the provider; an attempt that was never sent is free."""
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    source: Literal["measured", "estimated", "none", "cache"] = "none"
    """`cache`: an answer that was played again; no provider was asked."""
    cost_nano: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    """Part of `cache_write_tokens`, as the next ones are parts of the input and the output."""
    cached_audio_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    image_input_tokens: int | None = None
    image_output_tokens: int | None = None
    service_tier: str | None = None
    """As the provider named it."""
    card: str | None = None
    """What priced it: `config`, or the shipped card's version and entry. None where nothing did."""


@frozen(slots=True)
class LedgerRow:
    opened: LedgerOpen
    closed: LedgerClose | None
    """None while the attempt runs, and for orphans of a crash."""


Unit = Literal["tokens", "input_tokens", "output_tokens", "requests", "nano", "concurrent"]
Window = Literal["minute", "hour", "day", "month", "total"]
UNLIMITED = 2**62
"""The limit of a claim that is only counted: charges are taken whole, nothing is an overrun."""


class Account(NamedTuple):
    """What is counted together. Of `concurrent` only what is held counts, whatever the window."""

    scope: str
    """"key:bench", "user:alice", "global"."""
    unit: Unit
    window: Window
    sliding: bool
    """Whether the window ends now, wherever that is; a month is thirty days then. Counted in parts of it, never too little."""


class Claim(Struct, frozen=True, array_like=True, gc=False):
    """What an attempt is to reserve of an account. Where one attempt names an account twice, it is the same use: the larger
    amount is held, and both limits count."""

    scope: str
    unit: Unit
    window: Window
    sliding: bool
    amount: int
    """The upper bound of what it may use. 0 is allowed: then the account is only named, and room for 0 must be left."""
    limit: int
    """Hard; UNLIMITED where it is only counted. What is used and held with this amount must not be more."""
    name: str
    """The budget's, for messages."""


class Charge(Struct, frozen=True, array_like=True, gc=False):
    """What an attempt used of an account, at its end."""

    scope: str
    unit: Unit
    window: Window
    sliding: bool
    amount: int
    """All that was used. The store charges at most what was held and makes the rest an overrun, unless UNLIMITED was claimed."""
    overrun: int = 0
    """An overrun that the caller knows of already, added to the store's."""


@frozen(slots=True)
class Shortage:
    """Why a claim was not granted. Of several that were not, the one that frees last."""

    claim: Claim
    used: int
    held: int
    """By attempts under way."""
    frees_at: float | None
    """Unix time at which the amount may fit; None: never, or when somebody finishes."""


@frozen(slots=True)
class Standing:
    """An account, as it stands in the window of a time."""

    account: Account
    used: int
    held: int
    overrun: int
    resets_at: float | None
    """Unix time: the end of a fixed window, the next part leaving a sliding one; None where nothing will."""


@frozen(slots=True)
class Total:
    """What was charged to an account in one of its windows, or in one part of a sliding one."""

    account: Account
    period: int
    """When it began, Unix time; 0 for `total`."""
    used: int
    overrun: int


Dimension = Literal["key", "user", "team", "app", "model", "provider", "provider_model", "outcome"]
"""What attempts are told apart by. The outcome of one that is not closed is None."""
GroupBy = Literal[
    "key", "user", "team", "app", "model", "provider", "provider_model", "outcome", "hour", "day", "month"
]  # fmt: skip
"""Hours, days and months are UTC, of the time an attempt was opened: `2026-11-22T05:00Z`, `2026-11-22`, `2026-11`."""
By = GroupBy | Sequence[GroupBy] | None
Where = Mapping[Dimension, str | None]
ALL: Where = MappingProxyType({})


@frozen(slots=True)
class UsageRow:
    """Sums of a group of attempts."""

    group: str | None
    """The first of `groups`; None where nothing is grouped."""
    requests: int
    """Told apart within the group: one whose attempts are in two groups counts in both."""
    attempts: int
    input_tokens: int
    output_tokens: int
    cost_nano: int | None
    """None where that of one attempt is not known, or nothing cost anything."""
    groups: tuple[str | None, ...] = ()
    """In the order they were asked for."""
    known_nano: int | None = None
    """The sum of the costs that are known."""
    unpriced: int = 0
    """Attempts of which the cost is not."""
    cached_tokens: int | None = None
    """Parts of the input, or the output; None where nobody said."""
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_audio_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    image_input_tokens: int | None = None
    image_output_tokens: int | None = None
    estimated: int = 0
    """Attempts whose figures were not measured: those not closed included."""
    estimated_tokens: int = 0
    """Their input and output."""
    estimated_nano: int = 0
    """Their costs, as far as they are known."""
    open: int = 0
    """Attempts under way, or left by a crash and not settled yet: counted at what they reserved."""
    orphaned: int = 0
    """Attempts that a crash left, settled at what they reserved."""
    overruns: int = 0
    """Attempts of which a provider measured more than was reserved."""
    overrun_tokens: int = 0
    overrun_nano: int = 0
    first: float | None = None
    """When the first was opened, Unix time."""
    last: float | None = None


class Store(Protocol):
    # keys
    async def add_key(self, record: KeyRecord) -> None: ...
    async def find_key(self, digest: bytes) -> KeyRecord | None: ...
    async def keys(self) -> Sequence[KeyRecord]: ...
    async def revoke_key(self, name: str, at: float) -> bool:
        """All keys of that name, and what they made. False where there is no such key. Revoking twice keeps the first time."""
        ...

    async def rotate_key(self, record: KeyRecord, until: float) -> bool:
        """Adds `record` beside the keys of its name, which end at `until` where they would not sooner: one step. False, and
        nothing is changed, where no key of that name is good at `record.created`. Idempotent by `record.id`."""
        ...

    # ledger
    def open_row(self, row: LedgerOpen) -> Awaitable[None]:
        """Returns `DONE` where there is nothing to wait for. Raises ClawError("store_unavailable") where it can not be kept: then
        nothing may be sent."""
        ...

    def reserve(self, row: LedgerOpen, claims: Sequence[Claim]) -> Awaitable[Shortage | None]:
        """Opens the row and holds all claims, or does neither and tells why: one step, which nothing comes between. The time of
        the reservation is `row.opened`; where a clock goes back, the latest time seen is taken instead, so that no window comes
        twice. Returns `DONE` where it is granted and there is nothing to wait for. With no claims it is `open_row`.

        Idempotent by `row.id`. Raises like `open_row`; then nothing is held.
        """
        ...

    def top_up(self, attempt: str, claims: Sequence[Claim]) -> Awaitable[Shortage | None]:
        """More for a running attempt, all of it or nothing: `amount` is what is to be added. It is a reservation of its own,
        in the window of the latest time the store has seen.

        Where it can not be written down it may be taken all the same: running answers finish. What a crash then leaves is settled
        at what was written. Raises LookupError where the attempt holds nothing (`reserve` with a claim comes first),
        ClawError("store_unavailable").
        """
        ...

    def close_row(self, row: LedgerClose, charges: Sequence[Charge] = ()) -> Awaitable[None]:
        """Closes the row, lets go of all it holds and charges the accounts, once: a second closing does nothing.

        A charge to an account that the attempt did not claim is counted whole. Charges of an attempt that was opened without
        any claim are not taken: what is to be counted only is claimed, with the limit UNLIMITED.
        """
        ...

    async def standing(self, accounts: Sequence[Account], now: float) -> Sequence[Standing]:
        """In the order asked."""
        ...

    async def totals(self, since: float = 0.0) -> Sequence[Total]:
        """What was charged, by account and window, of the windows that began since then and are still kept; in the order of their
        accounts and periods. What is zero may be left out."""
        ...

    async def holding(self) -> int:
        """How many attempts hold something. At rest it is 0."""
        ...

    async def rows(self, since: float = 0.0, until: float | None = None) -> Sequence[LedgerRow]: ...
    async def usage(
        self,
        group_by: By = None,
        since: float = 0.0,
        until: float | None = None,
        key: str | None = None,
        where: Where = ALL,
    ) -> Sequence[UsageRow]:
        """Sums by group, in the groups' order; one row where `group_by` is None or empty. Opened and orphaned attempts count.

        Args:
            key: only that key's; `where` says the same of any dimension (None: those without one).
        """
        ...

    async def flush(self) -> None:
        """Everything written so far is in the place that answers queries."""
        ...

    async def aclose(self) -> None: ...
