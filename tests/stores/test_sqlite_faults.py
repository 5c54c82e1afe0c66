"""The embedded store while it can not write: refuse what is new, keep what runs, recover without a restart."""

from __future__ import annotations

import logging
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from clawproxy.errors import ClawError
from clawproxy.stores import sqlite, writer
from clawproxy.stores.sqlite import SqliteStore

from .conftest import eventually, make_close, make_open


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def test_nothing_is_admitted_while_the_database_is_locked(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY", 0.02)
    monkeypatch.setattr(sqlite, "FOLD_EVERY", 0.01)
    store = SqliteStore.open(state_dir, "one")
    running = make_open()
    await store.open_row(running)
    await store.flush()
    other = sqlite3.connect(state_dir / "clawproxy.db", isolation_level=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        other.execute("BEGIN IMMEDIATE")
        await store.open_row(make_open())  # nobody knows yet
        with pytest.raises(ClawError, match="store_unavailable"):
            await store.flush()
        with pytest.raises(ClawError, match="store_unavailable"):
            await store.open_row(make_open())
        await store.close_row(make_close(running.id))
        other.execute("ROLLBACK")
        await eventually(lambda: not (store._writer.sick))
        await store.open_row(make_open())
        nursery.cancel_scope.cancel()
    other.close()
    rows = {row.opened.id: row for row in await store.rows()}
    assert len(rows) == 3
    assert rows[running.id].closed is not None
    await store.aclose()


async def test_too_much_unfolded_journal_admits_nothing_more(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "UNFOLDED_BYTES", 1000)
    store = SqliteStore.open(state_dir, "one")
    admitted = 0
    with pytest.raises(ClawError, match="store_unavailable"):  # noqa: PT012
        for admitted in range(20):  # noqa: B007
            await store.open_row(make_open())
    assert 4 <= admitted <= 8
    await store.flush()
    await store.open_row(make_open())
    await store.aclose()


async def test_what_goes_wrong_is_logged_once(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clawproxy.store")
    monkeypatch.setattr(sqlite, "BUSY", 0.0)
    store = SqliteStore.open(state_dir, "one")
    await store.open_row(make_open())
    other = sqlite3.connect(state_dir / "clawproxy.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(5):
        with pytest.raises(ClawError):
            await store.flush()
    other.close()
    await store.flush()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the ledger can not be written (database is locked): new requests are refused until it can",
        "the ledger can be written again",
    ]
    await store.aclose()


async def fill_the_disk(state_dir: Path) -> None:
    """Run in a process of its own: a limit on the size of any file stands for a full disk, short writes included."""
    sqlite.FOLD_EVERY = 0.01
    store = SqliteStore.open(state_dir, "one")
    running = []
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with trio.open_nursery() as nursery:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
        refused = None
        while refused is None:
            row = make_open()
            try:
                await store.open_row(row)
                running.append(row)
            except ClawError as error:
                refused = error
        assert refused.slug == "store_unavailable"
        assert len(running) > 100
        for row in running:
            await store.close_row(make_close(row.id))
        assert store._writer.closings
        nursery.start_soon(store.run)
        await trio.sleep(0.1)
        try:
            await store.open_row(make_open())
        except ClawError:
            pass
        else:
            raise AssertionError("admitted with a spool that can not be written")
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await eventually(lambda: not (store._writer.closings or store._writer.sick))
        await store.open_row(make_open())
        nursery.cancel_scope.cancel()
    rows = await store.rows()
    assert {row.opened.id for row in rows if row.closed} == {row.id for row in running}
    assert len(rows) == len(running) + 1
    await store.aclose()
    print("recovered", len(running))


def test_a_full_disk_refuses_what_is_new_and_recovers(state_dir: Path) -> None:
    script = (
        "import sys, trio; from pathlib import Path; from tests.stores import test_sqlite_faults as t; "
        "trio.run(t.fill_the_disk, Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(state_dir)], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert "recovered" in done.stdout, done.stderr
    assert "the journal can not be written" in done.stderr


async def test_the_spool_is_bounded_and_says_what_it_lost(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "MOST_CLOSINGS", 3)
    store = SqliteStore.open(state_dir, "one")
    rows = [make_open(opened=float(number)) for number in range(5)]
    for row in rows:
        await store.open_row(row)
    segment, store._writer.segment = store._writer.segment, None  # nothing can be written
    for row in rows:
        await store.close_row(make_close(row.id))
    store._writer.segment = segment
    assert [bool(row.closed) for row in await store.rows()] == [False, False, True, True, True]
    assert "2 attempts could not be closed" in caplog.text
    await store.aclose()
