"""Whatever is reserved, topped up, closed, repeated or left behind by a crash, in whatever order and with whatever clock: the
stores agree with a reference that remembers everything and adds it up anew each time."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from queue import Queue
from threading import Thread
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import trio
from attrs import define, field
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from clawproxy.stores import books, sqlite
from clawproxy.stores.base import UNLIMITED, Account, Charge, Claim, Shortage, Store
from clawproxy.stores.memory import MemoryStore
from clawproxy.stores.sqlite import SqliteStore

from .conftest import make_close, make_open
from .test_sqlite import crash

T = TypeVar("T")

START = datetime(2020, 2, 28, 23, 59, 30, tzinfo=UTC).timestamp()
ACCOUNTS = [
    Account("global", "requests", "minute", False),
    Account("global", "requests", "minute", True),
    Account("key:bench", "tokens", "hour", True),
    Account("key:bench", "nano", "day", False),
    Account("user:ann", "output_tokens", "month", False),
    Account("user:ann", "tokens", "total", False),
    Account("global", "concurrent", "total", False),
]
PART = {"minute": 1, "hour": 60}
LENGTH = {"minute": 60, "hour": 3600}

accounts = st.sampled_from(ACCOUNTS)
limits = st.integers(0, 12) | st.just(UNLIMITED)


def _claim(account: Account, amount: int, limit: int) -> Claim:
    return Claim(account.scope, account.unit, account.window, account.sliding, amount, limit, "b")


def _charge(account: Account, amount: int, overrun: int) -> Charge:
    return Charge(account.scope, account.unit, account.window, account.sliding, amount, overrun)


claims = st.lists(st.builds(_claim, accounts, st.integers(0, 5), limits), max_size=4)
charges = st.lists(st.builds(_charge, accounts, st.integers(0, 9), st.integers(0, 1)), max_size=4)


def began(account: Account, now: float) -> int:
    """When the period that `now` is in began, by the calendar."""
    date = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
    if account.sliding:
        return int(now) - int(now) % PART[account.window]
    if account.window == "total":
        return 0
    for window, change in (
        ("minute", {"second": 0}), ("hour", {"minute": 0}), ("day", {"hour": 0}), ("month", {"day": 1}),
    ):  # fmt: skip
        date = date.replace(**change)  # type: ignore[arg-type]
        if window == account.window:
            break
    return int(date.timestamp())


@define
class Part:
    """Of one attempt, on one account."""

    account: Account
    period: int
    amount: int
    limited: bool


@define
class Tried:
    since: float
    held: list[Part] = field(factory=list)
    done: bool = False


class Reference:
    """Remembers all, computes all anew."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tried: dict[str, Tried] = {}
        self.charged: list[tuple[Account, int, int, int]] = []

    def counts(self, account: Account, period: int) -> bool:
        if account.unit == "concurrent":
            return True
        first = began(account, self.now) - (LENGTH[account.window] if account.sliding else 0)
        return period >= first

    def used(self, account: Account) -> int:
        return sum(used for at, period, used, _ in self.charged if at == account and self.counts(at, period))

    def held(self, account: Account) -> int:
        parts = (part for tried in self.tried.values() if not tried.done for part in tried.held)
        return sum(part.amount for part in parts if part.account == account and self.counts(account, part.period))

    def take(self, id_: str, wanted: list[Claim]) -> bool:
        for one in wanted:
            account = Account(*_key(one))
            if self.used(account) + self.held(account) + one.amount > one.limit:
                return False
        tried = self.tried.setdefault(id_, Tried(self.now))
        for key in dict.fromkeys(map(_key, wanted)):
            same = [one for one in wanted if _key(one) == key]
            account = Account(*key)
            limited = any(one.limit < UNLIMITED for one in same)
            tried.held.append(Part(account, began(account, self.now), max(one.amount for one in same), limited))
        return True

    def close(self, id_: str, wanted: list[Charge]) -> None:
        tried = self.tried[id_]
        tried.done = True
        for key in dict.fromkeys(map(_key, wanted)):
            account = Account(*key)
            if account.unit == "concurrent":
                continue
            largest = max((one for one in wanted if _key(one) == key), key=lambda one: one.amount + one.overrun)
            parts = [part for part in tried.held if part.account == account]
            if not parts:
                self.charged.append((account, began(account, tried.since), largest.amount, largest.overrun))
                continue
            rest = largest.amount
            for part in parts:
                used = min(rest, part.amount)
                rest -= used
                self.charged.append((account, part.period, used, 0))
            limited = any(part.limited for part in parts)
            beyond = (0, rest + largest.overrun) if limited else (rest, largest.overrun)
            self.charged.append((account, parts[-1].period, *beyond))

    def orphan(self) -> None:
        for tried in self.tried.values():
            if not tried.done:
                tried.done = True
                self.charged += [
                    (part.account, part.period, part.amount, 0) for part in tried.held if part.account.unit != "concurrent"
                ]

    def totals(self) -> list[tuple[Account, int, int, int]]:
        by_period = groupby(sorted(self.charged), key=lambda each: each[:2])
        sums = [(*key, *map(sum, zip(*[each[2:] for each in all_], strict=True))) for key, all_ in by_period]
        return [each for each in sums if any(each[2:])]


def _key(one: Claim | Charge) -> tuple[Any, ...]:
    return (one.scope, one.unit, one.window, one.sliding)


@contextmanager
def trio_thread() -> Iterator[Callable[[Callable[[], Awaitable[T]]], T]]:
    """Runs awaitables in one run of trio, which goes on between them."""
    ready: Queue[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = Queue()

    async def stay() -> None:
        with trio.CancelScope() as scope:
            ready.put((trio.lowlevel.current_trio_token(), scope))
            await trio.sleep_forever()

    thread = Thread(target=trio.run, args=(stay,))
    thread.start()
    token, scope = ready.get()
    try:
        yield lambda work: trio.from_thread.run(work, trio_token=token)
    finally:
        trio.from_thread.run_sync(scope.cancel, trio_token=token)
        thread.join()


class Machine(RuleBasedStateMachine):
    """Over the memory store; subclasses make another."""

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.reference = Reference()
        self.wall = self.furthest = START
        self.latest = 0.0
        """The latest opening in the ledger."""
        self.number = 0
        self._thread: Any = trio_thread()
        self.run = self._thread.__enter__()
        self.alive: set[str] = set()
        """Attempts of this process, running or not."""

    async def make(self) -> Store:
        return MemoryStore()

    @initialize()
    def begin(self) -> None:
        self.store: Store = self.run(self.make)

    def teardown(self) -> None:
        try:
            for id_ in self.alive:
                self.close(id_, [])
            self.the_books_agree()
            assert self.run(self.store.holding) == 0
            assert all(standing.held == 0 for standing in self.run(partial(self.store.standing, ACCOUNTS, self.wall)))
        finally:
            self.run(self.store.aclose)
            self._thread.__exit__(None, None, None)

    def _answer(self, ask: Callable[[], Awaitable[Shortage | None]]) -> Shortage | None:
        async def wait() -> Shortage | None:
            return await ask()

        return self.run(wait)

    @rule(seconds=st.sampled_from([0.3, 1, 7, 29.5, 30, 61, 600, 3600, 86_400, 30 * 86_400, -1, -45, -4000]))
    def time_passes(self, seconds: float) -> None:
        self.wall += seconds
        self.furthest = max(self.furthest, self.wall)

    @rule(target=attempts, wanted=claims)
    def reserve(self, wanted: list[Claim]) -> Any:
        self.number += 1
        row = make_open(id=f"a{self.number}", opened=self.wall)
        short = self._answer(lambda: self.store.reserve(row, wanted))
        if wanted:
            self.reference.now = max(self.reference.now, self.wall)
        taken = self.reference.take(row.id, wanted)
        assert taken == (short is None), short
        if short is not None:
            account = Account(*_key(short.claim))
            assert (short.used, short.held) == (self.reference.used(account), self.reference.held(account))
            assert short.frees_at is None or short.frees_at > self.reference.now
            return multiple()
        self.latest = max(self.latest, self.wall)
        self.alive.add(row.id)
        return row.id

    @rule(id_=attempts, wanted=claims)
    def again(self, id_: str, wanted: list[Claim]) -> None:
        if id_ in self.alive and self.reference.tried[id_].held:
            assert self._answer(lambda: self.store.reserve(make_open(id=id_, opened=self.wall), wanted)) is None

    @rule(id_=attempts, wanted=claims)
    def top_up(self, id_: str, wanted: list[Claim]) -> None:
        tried = self.reference.tried[id_]
        if tried.held and not tried.done:
            short = self._answer(lambda: self.store.top_up(id_, wanted))
            assert self.reference.take(id_, wanted) == (short is None)

    @rule(id_=attempts, wanted=charges)
    def close(self, id_: str, wanted: list[Charge]) -> None:
        async def close() -> None:
            await self.store.close_row(make_close(id_), wanted)

        self.run(close)
        tried = self.reference.tried[id_]
        if not tried.done and tried.held:
            self.reference.close(id_, wanted)
        tried.done = True

    @invariant()
    def the_books_agree(self) -> None:
        reference = self.reference
        for standing in self.run(partial(self.store.standing, ACCOUNTS, reference.now)):
            account = standing.account
            assert (standing.used, standing.held) == (reference.used(account), reference.held(account)), account
        running = [tried for tried in reference.tried.values() if tried.held and not tried.done]
        assert self.run(self.store.holding) == len(running)


class OnDisk(Machine):
    """Over the embedded store, which may crash or be stopped and started at any step."""

    async def make(self) -> Store:
        self.folder = tempfile.TemporaryDirectory()
        self._patch = patch.object(sqlite, "time", SimpleNamespace(time=lambda: self.wall))
        self._patch.start()
        return SqliteStore.open(Path(self.folder.name), "one")

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._patch.stop()
            self.folder.cleanup()

    @rule()
    def fold(self) -> None:
        self.run(self.store.flush)
        found = [(each.account, each.period, each.used, each.overrun) for each in self.run(self.store.totals)]
        assert [each for each in found if self._kept(each)] == [each for each in self.reference.totals() if self._kept(each)]

    def _kept(self, total: tuple[Account, int, int, int]) -> bool:
        """Whether it was never old enough to be forgotten."""
        account, period = total[:2]
        return period >= self.furthest - books._KEPT.get((account.window, account.sliding), float("inf"))

    @rule()
    def a_tool_sees_the_same(self) -> None:
        async def look() -> Any:
            assert isinstance(self.store, SqliteStore)
            self.store._writer.write_closings()  # which takes milliseconds
            tool = SqliteStore.open_tool(Path(self.folder.name))
            try:
                return await tool.standing(ACCOUNTS[:-1], self.reference.now), await tool.holding()
            finally:
                await tool.aclose()

        with patch("clawproxy.stores.books.time", SimpleNamespace(time=lambda: self.wall)):
            standings, holding = self.run(look)
        now = self.reference.now
        self.reference.now = max(now, self.latest)  # a tool takes its time from the ledger
        for standing in standings:
            account = standing.account
            assert (standing.used, standing.held) == (self.reference.used(account), self.reference.held(account)), account
        self.reference.now = now
        assert holding == self.run(self.store.holding)

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        async def restart() -> Store:
            assert isinstance(self.store, SqliteStore)
            if killed:
                crash(self.store)
            else:
                await self.store.aclose()
            return SqliteStore.open(Path(self.folder.name), "one")

        reference = self.reference
        self.wall = max(self.wall, reference.now - 3600)
        reference.orphan()
        self.alive.clear()
        self.store = self.run(restart)
        # what was refused last may have been later than all that is in the books
        reference.now = max(self.latest, *(period for _, period, *_ in reference.totals()), 0)


PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking takes minutes: each step crosses a thread."""

TestMemory = Machine.TestCase
TestMemory.settings = settings(max_examples=30, stateful_step_count=25, deadline=None, phases=PHASES)
TestOnDisk = OnDisk.TestCase
TestOnDisk.settings = settings(max_examples=12, stateful_step_count=25, deadline=None, phases=PHASES)
