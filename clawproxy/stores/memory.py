"""Everything in this process, nothing kept: tests, `--ephemeral`, and the reference the other stores are compared with."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence

import attrs

from clawproxy.done import DONE, Ready
from clawproxy.stores.accounts import Accounts
from clawproxy.stores.base import (
    ALL,
    Account,
    By,
    Charge,
    Claim,
    KeyRecord,
    LedgerClose,
    LedgerOpen,
    LedgerRow,
    Shortage,
    Standing,
    Total,
    UsageRow,
    Where,
)
from clawproxy.stores.records import close_line, open_line, read_line
from clawproxy.stores.usage import summed


class MemoryStore:
    """A `Store`. It grows with each attempt: give a long-lived gateway a state_dir."""

    def __init__(self) -> None:
        self._keys: dict[str, KeyRecord] = {}
        self._opened: dict[str, LedgerOpen] = {}
        self._closed: dict[str, LedgerClose] = {}
        self._accounts = Accounts()
        self._totals: dict[tuple[Account, int], Total] = {}

    # keys
    async def add_key(self, record: KeyRecord) -> None:
        if record.id in self._keys:
            return
        if any(key.digest == record.digest for key in self._keys.values()):
            raise ValueError("another key has this digest")
        self._keys[record.id] = record

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        return next((key for key in self._keys.values() if key.digest == digest), None)

    async def keys(self) -> Sequence[KeyRecord]:
        return sorted(self._keys.values(), key=lambda key: (key.created, key.id))

    async def revoke_key(self, name: str, at: float) -> bool:
        named = [key for key in self._keys.values() if key.name == name]
        for key in (*named, *(each for each in self._keys.values() if each.maker == name)):
            if key.revoked is None:
                self._keys[key.id] = attrs.evolve(key, revoked=at)
        return bool(named)

    async def rotate_key(self, record: KeyRecord, until: float) -> bool:
        if record.id in self._keys:
            return True
        good = [key for key in self._keys.values() if key.name == record.name and _is_good(key, record.created)]
        if not good:
            return False
        await self.add_key(record)
        for key in good:
            if key.expires is None or key.expires > until:
                self._keys[key.id] = attrs.evolve(key, expires=until)
        return True

    # ledger
    def open_row(self, row: LedgerOpen) -> Awaitable[None]:
        if row.id not in self._opened:
            record = read_line(open_line(row)[:-1])  # bounded and valid exactly as a store that writes makes it
            assert record is not None
            self._opened[row.id] = LedgerOpen(*record[1])
        return DONE

    def reserve(self, row: LedgerOpen, claims: Sequence[Claim]) -> Awaitable[Shortage | None]:
        if claims and row.id not in self._opened:
            plan = self._accounts.plan(claims, row.opened)
            if isinstance(plan, Shortage):
                return Ready(plan)
            self._accounts.hold(row.id, plan)
        return self.open_row(row)

    def top_up(self, attempt: str, claims: Sequence[Claim]) -> Awaitable[Shortage | None]:
        if attempt not in self._accounts.held:
            raise LookupError(f"the attempt {attempt} holds nothing that could be topped up")
        plan = self._accounts.plan(claims)
        if isinstance(plan, Shortage):
            return Ready(plan)
        self._accounts.hold(attempt, plan)
        return DONE

    def close_row(self, row: LedgerClose, charges: Sequence[Charge] = ()) -> Awaitable[None]:
        if row.id in self._opened and row.id not in self._closed:
            record = read_line(close_line(row)[:-1])
            assert record is not None
            self._closed[row.id] = LedgerClose(*record[1])
            for entry in self._accounts.end(row.id, charges) or ():
                account, period = Account(entry.scope, entry.unit, entry.window, entry.sliding), entry.period
                before = self._totals.get((account, period)) or Total(account, period, 0, 0)
                self._totals[account, period] = Total(account, period, before.used + entry.amount, before.overrun + entry.overrun)
        return DONE

    async def standing(self, accounts: Sequence[Account], now: float) -> Sequence[Standing]:
        return self._accounts.standing(accounts, now)

    async def totals(self, since: float = 0.0) -> Sequence[Total]:
        return [total for (_, period), total in sorted(self._totals.items()) if period >= since]

    async def holding(self) -> int:
        return len(self._accounts.held)

    async def rows(self, since: float = 0.0, until: float | None = None) -> Sequence[LedgerRow]:
        return sorted(self._between(since, until), key=lambda row: (row.opened.opened, row.opened.id))

    def _between(self, since: float, until: float | None) -> Iterator[LedgerRow]:
        for id_, opened in self._opened.items():
            if since <= opened.opened and (until is None or opened.opened < until):
                yield LedgerRow(opened, self._closed.get(id_))

    async def usage(
        self,
        group_by: By = None,
        since: float = 0.0,
        until: float | None = None,
        key: str | None = None,
        where: Where = ALL,
    ) -> Sequence[UsageRow]:
        return summed(self._between(since, until), group_by, key, where)

    async def flush(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def _is_good(key: KeyRecord, now: float) -> bool:
    return key.revoked is None and (key.expires is None or key.expires > now)
