"""The store's interface, async from the first day: what the memory and SQLite stores do, a Redis one will do alike.

Rule 1: the caller mints ids. Opening, closing and revoking are idempotent by id, because a cancelled call can not be known.
Rule 2: `open_row` returns only when the row would survive `kill -9`.
Rule 3: money is integer nano-dollars, tokens are integers, None is "not known" and never zero.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Literal, Protocol

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


GroupBy = Literal["key", "user", "team", "app", "model", "provider", "outcome"]


@frozen(slots=True)
class UsageRow:
    group: str | None
    requests: int
    attempts: int
    input_tokens: int
    output_tokens: int
    cost_nano: int | None


class Store(Protocol):
    # keys
    async def add_key(self, record: KeyRecord) -> None: ...
    async def find_key(self, digest: bytes) -> KeyRecord | None: ...
    async def keys(self) -> Sequence[KeyRecord]: ...
    async def revoke_key(self, name: str, at: float) -> bool:
        """False where there is no such key. Revoking twice keeps the first time."""
        ...

    # ledger
    def open_row(self, row: LedgerOpen) -> Awaitable[None]:
        """Returns `DONE` where there is nothing to wait for. Raises ClawError("store_unavailable") where it can not be kept: then
        nothing may be sent."""
        ...

    def close_row(self, row: LedgerClose) -> Awaitable[None]: ...
    async def rows(self, since: float = 0.0, until: float | None = None) -> Sequence[LedgerRow]: ...
    async def usage(
        self, group_by: GroupBy | None = None, since: float = 0.0, until: float | None = None, key: str | None = None
    ) -> Sequence[UsageRow]:
        """Sums by group; a single row with group None where `group_by` is None. Opened and orphaned attempts count.
        `key`: only that key's."""
        ...

    async def flush(self) -> None:
        """Everything written so far is in the place that answers queries."""
        ...

    async def aclose(self) -> None: ...
