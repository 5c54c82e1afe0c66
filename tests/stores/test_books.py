"""The embedded store's books: a start reads totals and not the ledger, old journals still read, nothing is charged twice."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from clawproxy.errors import ClawError
from clawproxy.stores import books, schema, sqlite
from clawproxy.stores.accounts import Accounts
from clawproxy.stores.base import Account, Charge, Claim, Store
from clawproxy.stores.journal import segments
from clawproxy.stores.ledger import Names
from clawproxy.stores.sqlite import SqliteStore

from .conftest import database_of, make_close, make_open
from .test_sqlite import crash

TOKENS = Account("key:bench", "tokens", "month", False)
DOLLARS = Account("global", "nano", "total", False)


def claims(tokens: int = 10, nano: int = 1000, limit: int = 10**9) -> list[Claim]:
    return [Claim(*TOKENS, tokens, limit, "tokens"), Claim(*DOLLARS, nano, limit, "dollars")]


def charges(tokens: int = 4, nano: int = 400) -> list[Charge]:
    return [Charge(*TOKENS, tokens), Charge(*DOLLARS, nano)]


async def used(store: Store) -> list[tuple[int, int]]:
    return [(standing.used, standing.held) for standing in await store.standing([TOKENS, DOLLARS], time.time())]


def test_a_top_up_copies_nothing_of_what_is_held() -> None:
    """A long answer has ten thousands."""
    accounts = Accounts()
    for _ in range(4):
        plan = accounts.plan(claims())
        assert isinstance(plan, list)
        accounts.hold("one", plan)
        if len(accounts.held["one"].taken) == 2:
            first = accounts.held["one"].taken
    assert accounts.held["one"].taken is first
    assert len(first) == 8
    accounts.end("one", charges(33, 4001))
    assert [(each.used, each.held, each.overrun) for each in accounts.standing([TOKENS, DOLLARS], 0.0)] == [
        (33, 0, 0),
        (4000, 0, 1),
    ]


async def test_counters_survive_a_restart(tmp_path: Path) -> None:
    for number in range(1, 4):
        store = SqliteStore.open(tmp_path, "one")
        row = make_open(opened=time.time())
        assert await store.reserve(row, claims(limit=3 * 1000)) is None
        await store.close_row(make_close(row.id), charges())
        assert await used(store) == [(4 * number, 0), (400 * number, 0)]
        await store.aclose()


async def test_an_orphan_is_charged_what_it_held_topped_up_too(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "one")
    rows = [make_open(opened=time.time()) for _ in range(4)]
    for number, row in enumerate(rows):
        await store.reserve(row, claims())
        if number == 1:
            await store.flush()
        await store.top_up(row.id, claims(1, 1))
    await store.close_row(make_close(rows[0].id), charges())
    await store.close_row(make_close(rows[3].id), charges())
    crash(store)
    for _ in range(2):
        store = SqliteStore.open(tmp_path, "two")
        assert await used(store) == [(8 + 22, 0), (800 + 2002, 0)]
        assert await store.holding() == 0
        found = {row.opened.id: row.closed for row in await store.rows()}
        for row in rows[1:3]:
            closed = found[row.id]
            assert closed is not None
            assert (closed.outcome, closed.source, closed.cost_nano) == ("orphaned", "estimated", 1001)
        crash(store)


async def test_an_orphans_row_says_what_was_held_of_its_answer_at_last(tmp_path: Path) -> None:
    output = Account("user:ann", "output_tokens", "day", True)
    store = SqliteStore.open(tmp_path, "one")
    by_all = make_open(opened=time.time(), reserved_input=3, reserved_output=7)
    by_answer = make_open(opened=time.time(), reserved_input=3, reserved_output=7)
    unknown = make_open(opened=time.time(), reserved_input=3, reserved_output=None)
    await store.reserve(by_all, claims())
    await store.top_up(by_all.id, claims(1024, 5))
    await store.reserve(by_answer, [Claim(*output, 7, 10**9, "o")])
    await store.top_up(by_answer.id, [Claim(*output, 512, 10**9, "o")])
    await store.open_row(unknown)
    crash(store)
    store = SqliteStore.open(tmp_path, "two")
    found = {row.opened.id: row.closed for row in await store.rows()}
    assert [closed.output_tokens for row in (by_all, by_answer, unknown) if (closed := found[row.id])] == [
        7 + 1024,
        7 + 512,
        None,
    ]
    assert await used(store) == [(3 + 7 + 1024, 0), (1005, 0)]
    await store.aclose()


async def test_killed_after_folding_the_closing_and_before_anything_else(tmp_path: Path) -> None:
    """The journal is still there; what was folded of it is not charged again."""
    store = SqliteStore.open(tmp_path, "one")
    row = make_open(opened=time.time())
    await store.reserve(row, claims())
    await store.close_row(make_close(row.id), charges())
    await store.flush()
    assert len(segments(tmp_path / "journal")) == 1
    crash(store)
    store = SqliteStore.open(tmp_path, "one")
    assert await used(store) == [(4, 0), (400, 0)]
    await store.aclose()


async def test_a_closing_line_folded_twice_is_charged_once(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "one")
    row = make_open(opened=time.time())
    await store.reserve(row, claims())
    await store.close_row(make_close(row.id), charges())
    store._writer.write_closings()
    [path] = segments(tmp_path / "journal")
    closing = path.read_bytes().splitlines(keepends=True)[1]
    crash(store)
    with path.open("ab") as journal:
        journal.write(closing)
    store = SqliteStore.open(tmp_path, "one")
    assert await used(store) == [(4, 0), (400, 0)]
    await store.aclose()


async def test_a_reservation_that_can_not_be_written_holds_nothing(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "one")
    running = make_open(opened=time.time())
    await store.reserve(running, claims())
    assert store._writer.segment is not None
    real, store._writer.segment._fd = store._writer.segment._fd, os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    with pytest.raises(ClawError):
        await store.reserve(make_open(opened=time.time()), claims())
    assert await used(store) == [(0, 10), (0, 1000)]
    assert await store.top_up(running.id, claims()) is None, "running answers finish (FAULTS, disk full)"
    assert await used(store) == [(0, 20), (0, 2000)]
    await store.close_row(make_close(running.id), charges())
    assert await used(store) == [(4, 0), (400, 0)], "settled at once, written when it can be"
    os.close(store._writer.segment._fd)
    store._writer.segment._fd = real
    await store.aclose()
    store = SqliteStore.open(tmp_path, "one")
    assert await used(store) == [(4, 0), (400, 0)]
    await store.aclose()


async def test_lines_without_claims_are_as_before(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "one")
    row = make_open()
    await store.reserve(row, ())
    await store.close_row(make_close(row.id), charges())
    [path] = segments(tmp_path / "journal")
    assert b"\t" not in path.read_bytes()
    await store.aclose()


async def test_a_start_does_not_look_at_the_ledger(tmp_path: Path) -> None:
    """However big it is: every question a start asks is answered by an index."""
    store = SqliteStore.open(tmp_path, "one")
    connection = store._folds.connection
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    books.settle_orphans(connection, time.time(), Names().orphaned(connection))
    books.prune(connection, time.time())
    books.load(connection, time.time())
    connection.set_trace_callback(None)
    assert len(asked) > 20
    for statement in asked:
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"))
        assert "SCAN totals" not in plan, statement
        assert "SCAN ledger" not in plan or "USING INDEX ledger_open" in plan or "max(opened)" in statement, (statement, plan)
    await store.aclose()


async def test_a_start_after_a_crash_with_a_big_ledger(tmp_path: Path) -> None:
    await SqliteStore.open(tmp_path, "one").aclose()
    connection = sqlite3.connect(tmp_path / "clawproxy.db")
    names = Names()
    labels = names.labels(connection, ("i", 1, "k", None, None, None, "m", "p", "pm"))
    connection.execute(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 50000) "
        "INSERT INTO ledger (id, request_id, labels, opened, reserved_input, closed, ending) "
        "SELECT printf('%08d', n), 'r', ?, n, 1, n, ? FROM n",
        (labels, names.orphaned(connection)),
    )
    connection.commit()
    connection.close()
    store = SqliteStore.open(tmp_path, "one")
    for _ in range(2000):
        await store.reserve(make_open(opened=time.time()), claims())
    crash(store)
    before = time.perf_counter()
    store = SqliteStore.open(tmp_path, "one")
    assert time.perf_counter() - before < 2.0
    assert await used(store) == [(20_000, 0), (2_000_000, 0)]
    await store.aclose()


async def test_old_totals_are_forgotten_and_what_counts_is_not(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "one")
    minute, month = TOKENS._replace(window="minute"), TOKENS._replace(window="month")
    for ago in (0.0, 30 * 86_400.0):
        row = make_open(opened=time.time() - 30 * 86_400 + ago)
        await store.reserve(row, [Claim(*account, 1, 10, "b") for account in (minute, month)])
        await store.close_row(make_close(row.id), [Charge(*account, 1) for account in (minute, month)])
    await store.aclose()
    store = SqliteStore.open(tmp_path, "one")
    kept = [total.account.window for total in await store.totals()]
    assert kept.count("minute") == 1
    assert sum(total.used for total in await store.totals() if total.account == month) == 2
    await store.aclose()


async def test_a_clock_far_ahead_is_not_believed_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SqliteStore.open(tmp_path, "one")
    row = make_open(opened=time.time() + 3e9)
    await store.reserve(row, claims())
    await store.close_row(make_close(row.id), charges())
    await store.aclose()
    store = SqliteStore.open(tmp_path, "one")
    assert "ahead of the clock" in caplog.text
    assert await used(store) == [(0, 0), (400, 0)]
    await store.aclose()


async def test_nothing_is_forgotten_by_a_time_that_no_book_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock jumps ahead, a request is turned away, old totals are forgotten, the gateway starts again and the clock is put
    right: what was used in the minute before is still known."""
    minute = Account("global", "requests", "minute", True)
    now = began = 1_800_000_000.0
    monkeypatch.setattr(sqlite, "time", SimpleNamespace(time=lambda: now))
    store = SqliteStore.open(tmp_path, "one")
    row = make_open(opened=now)
    assert await store.reserve(row, [Claim(*minute, 4, 4, "b")]) is None
    await store.close_row(make_close(row.id), [Charge(*minute, 4)])
    now = began + 30 * 86_400
    assert await store.reserve(make_open(opened=now), [Claim(*minute, 5, 4, "b")]) is not None
    await store.flush()
    crash(store)
    now = began + 10
    store = SqliteStore.open(tmp_path, "two")
    [standing] = await store.standing([minute], now)
    assert (standing.used, standing.held) == (4, 0)
    assert await store.reserve(make_open(opened=now), [Claim(*minute, 1, 4, "b")]) is not None, "the minute was given twice"
    await store.aclose()


async def test_a_tool_sees_what_is_held_later_than_all_that_began(tmp_path: Path) -> None:
    """By a top-up, whose time is that of the last request, be it one that was turned away."""
    minute = Account("global", "requests", "minute", True)
    began = time.time()
    store = SqliteStore.open(tmp_path, "one")
    row = make_open(opened=began)
    await store.reserve(row, [Claim(*minute, 1, 100, "b")])
    assert await store.reserve(make_open(opened=began + 7), [Claim(*minute, 1, 0, "b")]) is not None
    await store.top_up(row.id, [Claim(*minute, 4, 100, "b")])
    await store.flush()
    tool = SqliteStore.open_tool(tmp_path)
    for each in (store, tool):
        [standing] = await each.standing([minute], began + 7)
        assert (standing.used, standing.held) == (0, 5)
    await tool.aclose()
    await store.aclose()


async def test_a_tool_neither_settles_nor_reserves(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "one")
    row = make_open(opened=time.time())
    await store.reserve(row, claims())
    tool = SqliteStore.open_tool(tmp_path)
    assert await used(tool) == [(0, 10), (0, 1000)]
    assert await tool.holding() == 1
    with pytest.raises(ClawError):
        await tool.reserve(make_open(opened=time.time()), claims())
    await tool.aclose()
    await store.close_row(make_close(row.id), charges())
    assert await used(store) == [(4, 0), (400, 0)]
    await store.aclose()


async def test_the_schema_before_accounts_is_brought_up(tmp_path: Path) -> None:
    with database_of(2, tmp_path):
        pass
    store = SqliteStore.open(tmp_path, "one")
    row = make_open(opened=time.time())
    await store.reserve(row, claims())
    await store.close_row(make_close(row.id), charges())
    await store.flush()
    assert len(await store.totals()) == 2
    assert store._reader.connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    await trio.lowlevel.checkpoint()
    await store.aclose()
