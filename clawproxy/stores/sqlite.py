"""The embedded store: a journal written at once, folded into SQLite by one thread, which answers every query.

    state_dir/lock             flock: one writer
    state_dir/clawproxy.db     keys, attempts, and how far each journal segment is folded (WAL)
    state_dir/journal/*.journal

Rule 1: the request path (`open_row`, `reserve`, `top_up`, `close_row`) decides in memory, hands one line to the journal
        (`writer`) and returns: no thread, no await, no database.
Rule 2: every connection has its own thread limiter of one, so that a long query delays neither folding nor authentication.
Rule 3: while the database can not be written, or the journal can not, nothing new is admitted; what runs may still close.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from pathlib import Path

import trio
from msgspec.structs import astuple

from clawproxy.done import DONE, Ready
from clawproxy.errors import ClawError, ConfigError
from clawproxy.stores import books, database, queries, usage
from clawproxy.stores.accounts import Accounts, held_entries
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
from clawproxy.stores.lane import Lane
from clawproxy.stores.ledger import Names
from clawproxy.stores.records import Entry, close_record, open_record, top_up_line
from clawproxy.stores.statedir import Lock, make_private_dir
from clawproxy.stores.writer import Writer

log = logging.getLogger("clawproxy.store")

FOLD_EVERY = 0.25
"""Seconds between folds."""
BUSY = 2.0
"""Seconds to wait for another process's lock on the database."""
PRUNE_EVERY = 3600.0
"""Seconds between forgetting old totals."""
_CLOSE_WITHIN = 10.0
"""Seconds the last fold may take."""
_NOT_CLOSED = "%d attempts could not be closed in the ledger: the next start does it, at what was reserved"


class SqliteStore:
    """A `Store`. Made by `open` (the gateway) or `open_tool` (commands beside it), closed by `aclose`."""

    def __init__(self, state_dir: Path, lock: Lock | None, instance: str) -> None:
        """Not for callers: use `open` or `open_tool`."""
        self._folder = state_dir / "journal"
        self._lock = lock
        self._lanes: list[Lane] = []
        self._writer = Writer(self._folder, instance)
        self._accounts = Accounts()
        self._names = Names()
        self._pruned = time.time()
        self._closed = False

        path = state_dir / "clawproxy.db"
        try:
            for _ in range(3):
                self._lanes.append(Lane(path, BUSY))
        except (OSError, ConfigError) as error:
            self._abandon()
            if isinstance(error, ConfigError):
                raise
            raise ConfigError([f"server.state_dir: {path} can not be opened ({error.strerror})."]) from error
        self._folds, self._reader, self._keys = self._lanes

    @classmethod
    def open(cls, state_dir: Path, instance: str) -> SqliteStore:
        """The gateway's store. Blocks while it folds what a crash left (under a second).

        Raises ConfigError, naming the directory: in use, not writable, damaged, of a newer version.
        """
        state_dir = state_dir.expanduser()
        make_private_dir(state_dir)
        make_private_dir(state_dir / "journal")
        lock = Lock(state_dir)
        try:
            store = cls(state_dir, lock, instance)
            store._recover()
        except (sqlite3.Error, OSError, ConfigError) as error:
            lock.release()
            if isinstance(error, ConfigError):
                raise
            raise ConfigError([f"server.state_dir: {state_dir} can not be used: {error}."]) from error
        return store

    @classmethod
    def open_tool(cls, state_dir: Path) -> SqliteStore:
        """For commands (`keys`, `usage`), with the gateway up or down: all but `open_row` works. No lock. Raises ConfigError."""
        state_dir = state_dir.expanduser()
        make_private_dir(state_dir)
        make_private_dir(state_dir / "journal")
        return cls(state_dir, None, "")

    def _recover(self) -> None:
        connection = self._folds.connection
        try:
            database.fold(connection, self._names, self._folder)
            now = time.time()
            with database.immediate(connection):
                orphans = books.settle_orphans(connection, now, self._names.orphaned(connection))
            if orphans:
                log.warning("%d attempts were under way when the last process ended: closed at what was reserved", orphans)
            self._accounts = books.load(connection, now)
            books.prune(connection, self._accounts.now)
            database.remove_folded(connection, self._folder, None)
            self._writer.begin(database.next_number(connection, self._folder))
        except (sqlite3.Error, OSError):
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Where opening failed: no thread runs yet."""
        for lane in self._lanes:
            lane.connection.close()

    # --- the request path ----------------------------------------------------------------------------------------------------

    def open_row(self, row: LedgerOpen, held: Sequence[Entry] | None = None) -> Awaitable[None]:
        """Does not checkpoint: its caller is about to open a connection. `held`: what the attempt holds, for `reserve`."""
        kept, line = open_record(row, held)
        self._writer.open(("o", astuple(kept), held), line)
        return DONE

    def reserve(self, row: LedgerOpen, claims: Sequence[Claim]) -> Awaitable[Shortage | None]:
        """Does not checkpoint, either."""
        if not claims:
            return self.open_row(row)
        if self._accounts.knows(row.id):
            return DONE
        plan = self._accounts.plan(claims, row.opened)
        if isinstance(plan, Shortage):
            return Ready(plan)
        self.open_row(row, held_entries(plan))
        self._accounts.hold(row.id, plan)
        return DONE

    def top_up(self, attempt: str, claims: Sequence[Claim]) -> Awaitable[Shortage | None]:
        if attempt not in self._accounts.held:
            raise LookupError(f"the attempt {attempt} holds nothing that could be topped up")
        plan = self._accounts.plan(claims)
        if isinstance(plan, Shortage):
            return Ready(plan)
        line = top_up_line(attempt, entries := held_entries(plan))
        with suppress(ClawError):  # running streams finish; their closing, from the spool, says what they were charged
            self._writer.open(("t", (attempt,), entries), line)
        self._accounts.hold(attempt, plan)
        return DONE

    def close_row(self, row: LedgerClose, charges: Sequence[Charge] = ()) -> Awaitable[None]:
        """Raises nothing. Does not checkpoint: the books are closed even where their exchange is cancelled."""
        charged = self._accounts.end(row.id, charges) if row.id in self._accounts.held else None
        kept, line = close_record(row, charged)
        self._writer.close(("c", astuple(kept), charged), line)
        return DONE

    # --- folding -------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fold every 250 ms what was written since. Runs until cancelled, beside the service; `aclose` folds the rest."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._writer.keep_closing)
            while True:
                await self._writer.dirty.wait()
                await trio.sleep(FOLD_EVERY)
                self._writer.dirty = trio.Event()
                try:
                    await self._fold()
                except ClawError:
                    self._writer.dirty.set()

    async def _fold(self) -> None:
        """Raises ClawError("store_unavailable")."""
        writer = self._writer
        was_sick = writer.sick
        writer.write_closings()
        fresh = writer.take()
        try:
            folded = await self._folds.run(self._fold_now, fresh)
        except Exception as error:  # a defect, too: what runs finishes
            writer.sick = True
            if not was_sick:
                why = error.__cause__ or type(error).__name__
                log.error("the ledger can not be written (%s): new requests are refused until it can", why)
            raise ClawError("store_unavailable") from error
        writer.sick = False
        if was_sick:
            log.warning("the ledger can be written again")
        if writer.lost:
            log.error(_NOT_CLOSED, writer.lost)
            writer.lost = 0
        if fresh is not None and writer.segment is not None and writer.segment.path.name == fresh.name:
            writer.folded = folded.get(fresh.name, writer.folded)
            writer.behind = 0

    def _fold_now(self, connection: sqlite3.Connection, fresh: database.Fresh | None) -> dict[str, int]:
        """In the writer's thread."""
        folded = database.fold(connection, self._names, self._folder, fresh)
        if self._lock is not None:
            database.remove_folded(connection, self._folder, fresh.name if fresh else None)
            now = time.time()
            if now > self._pruned + PRUNE_EVERY:
                self._pruned = now
                books.prune(connection, min(now, self._accounts.now))
        return folded

    async def flush(self) -> None:
        await self._fold()

    # --- queries -------------------------------------------------------------------------------------------------------------

    async def rows(self, since: float = 0.0, until: float | None = None) -> Sequence[LedgerRow]:
        await self.flush()
        return await self._reader.run(queries.rows, since, until)

    async def usage(
        self, group_by: By = None, since: float = 0.0, until: float | None = None, key: str | None = None, where: Where = ALL
    ) -> Sequence[UsageRow]:
        await self.flush()
        return await self._reader.run(usage.usage, group_by, since, until, key, where)

    async def standing(self, accounts: Sequence[Account], now: float) -> Sequence[Standing]:
        if self._lock is not None:
            return self._accounts.standing(accounts, now)
        await self.flush()
        return await self._reader.run(books.standing, accounts, now)

    async def totals(self, since: float = 0.0) -> Sequence[Total]:
        await self.flush()
        return await self._reader.run(books.totals, since)

    async def holding(self) -> int:
        if self._lock is not None:
            return len(self._accounts.held)
        await self.flush()
        return await self._reader.run(books.holding)

    async def add_key(self, record: KeyRecord) -> None:
        await self._keys.run(queries.add_key, record)

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        return await self._keys.run(queries.find_key, digest)

    async def keys(self) -> Sequence[KeyRecord]:
        return await self._keys.run(queries.keys)

    async def revoke_key(self, name: str, at: float) -> bool:
        return await self._keys.run(queries.revoke_key, name, at)

    async def rotate_key(self, record: KeyRecord, until: float) -> bool:
        return await self._keys.run(queries.rotate_key, record, until)

    # --- the end -------------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Fold the rest and let go of the directory. What can not be folded now is folded at the next start."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_WITHIN):
            self._writer.write_closings()
            self._writer.end()
            try:
                if self._lock is not None:
                    await self._fold()
            except ClawError:
                log.error("the journal could not be folded: the next start does it")
            for lane in self._lanes:
                await lane.aclose()
        if self._writer.closings:
            log.error(_NOT_CLOSED, self._writer.closings)
        if self._lock is not None:
            self._lock.release()
