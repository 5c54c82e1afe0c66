"""What only the embedded store promises: one writer, private files, exact folding, refusal while it can not write."""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from clawproxy.errors import ClawError, ConfigError
from clawproxy.secrets import Secret
from clawproxy.stores import database, schema, sqlite, writer
from clawproxy.stores.sqlite import SqliteStore

from .conftest import eventually, make_close, make_key, make_open


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


def segment_paths(state_dir: Path) -> list[Path]:
    return sorted((state_dir / "journal").iterdir())


async def reopened(store: SqliteStore, state_dir: Path) -> SqliteStore:
    await store.aclose()
    return SqliteStore.open(state_dir, "one")


def crash(store: SqliteStore, *, at_once: bool = False) -> None:
    """What kill -9 leaves behind some milliseconds after the last closing, or at once, without the process: nothing folded,
    nothing ended properly. The descriptors go away."""
    if not at_once:
        store._writer.write_closings()
    assert store._writer.segment is not None
    store._writer.segment.close()
    for lane in store._lanes:
        lane.connection.close()
    assert store._lock is not None
    store._lock.release()


async def test_it_keeps_over_a_restart(state_dir: Path) -> None:
    store = SqliteStore.open(state_dir, "one")
    row, key = make_open(), make_key()
    await store.open_row(row)
    await store.add_key(key)
    await store.flush()
    await store.close_row(make_close(row.id))
    store = await reopened(store, state_dir)
    assert await store.keys() == [key]
    [found] = await store.rows()
    assert found.opened == row
    assert found.closed == make_close(row.id)
    await store.aclose()


async def test_a_clean_end_leaves_no_journal(state_dir: Path) -> None:
    store = SqliteStore.open(state_dir, "one")
    await store.open_row(make_open())
    assert len(segment_paths(state_dir)) == 1
    await store.aclose()
    assert segment_paths(state_dir) == []


async def test_an_orphan_of_a_crash_is_closed_at_what_was_reserved(state_dir: Path) -> None:
    store = SqliteStore.open(state_dir, "one")
    await store.open_row(make_open(reserved_input=40, reserved_output=7))
    crash(store)
    store = SqliteStore.open(state_dir, "two")
    assert [path.name for path in segment_paths(state_dir)] == ["000000000002.two.journal"]
    [row] = await store.rows()
    assert row.closed is not None
    assert (row.closed.outcome, row.closed.sent, row.closed.source) == ("orphaned", True, "estimated")
    assert (row.closed.input_tokens, row.closed.output_tokens, row.closed.cost_nano) == (40, 7, None)
    assert row.opened.instance == "one"
    assert (await store.usage())[0].input_tokens == 40
    await store.aclose()


@pytest.mark.parametrize("cut", [1, 10, 100])
async def test_a_torn_last_line_is_left_out(state_dir: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    store = SqliteStore.open(state_dir, "one")
    rows = [make_open(), make_open()]
    for row in rows:
        await store.open_row(row)
    crash(store)
    [path] = segment_paths(state_dir)
    os.truncate(path, path.stat().st_size - cut)
    store = SqliteStore.open(state_dir, "one")
    assert [row.opened for row in await store.rows()] == rows[:1]
    assert "never finished" in caplog.text
    await store.aclose()


async def test_a_damaged_line_is_named_and_the_others_are_kept(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SqliteStore.open(state_dir, "one")
    rows = [make_open() for _ in range(3)]
    for row in rows:
        await store.open_row(row)
    crash(store)
    [path] = segment_paths(state_dir)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"bench", b"BENCH")
    path.write_bytes(b"".join(lines))
    store = SqliteStore.open(state_dir, "one")
    assert {row.opened.id for row in await store.rows()} == {rows[0].id, rows[2].id}
    assert "1 damaged lines" in caplog.text
    await store.aclose()


async def test_a_record_the_database_refuses_does_not_hold_up_the_others(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore.open(state_dir, "one")
    good = make_open()
    await store.open_row(make_open(opened=float("inf")))  # JSON has no infinity: it comes back as null
    await store.open_row(good)
    assert [row.opened for row in await store.rows()] == [good]
    assert "1 damaged lines" in caplog.text
    await store.aclose()


async def test_every_file_is_private(state_dir: Path) -> None:
    before = os.umask(0)
    try:
        store = SqliteStore.open(state_dir, "one")
        await store.open_row(make_open())
        await store.flush()
        for folder, _, names in os.walk(state_dir):
            assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
            assert names
            for name in names:
                assert stat.S_IMODE(os.stat(Path(folder) / name).st_mode) == 0o600, name
        assert (state_dir / "clawproxy.db-wal").exists()
        await store.aclose()
    finally:
        os.umask(before)


async def test_a_second_writer_is_refused_by_name(state_dir: Path) -> None:
    store = SqliteStore.open(state_dir, "one")
    with pytest.raises(ConfigError, match=str(state_dir)) as refused:
        SqliteStore.open(state_dir, "two")
    assert "in use" in refused.value.problems[0]
    await store.open_row(make_open())
    assert len(await store.rows()) == 1
    await store.aclose()
    await SqliteStore.open(state_dir, "two").aclose()


async def test_a_failed_open_lets_go_of_the_lock(state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "clawproxy.db").write_bytes(b"not a database at all, but long enough to be looked at" * 10)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"clawproxy\.db can not be used"):
            SqliteStore.open(state_dir, "one")
    (state_dir / "clawproxy.db").unlink()
    await SqliteStore.open(state_dir, "one").aclose()


async def test_a_newer_schema_is_refused(state_dir: Path) -> None:
    await SqliteStore.open(state_dir, "one").aclose()
    connection = sqlite3.connect(state_dir / "clawproxy.db")
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigError, match="newer clawproxy"):
        SqliteStore.open(state_dir, "one")
    with pytest.raises(ConfigError, match="newer clawproxy"):
        SqliteStore.open_tool(state_dir)


def test_a_directory_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state_dir"):
        SqliteStore.open(tmp_path / "file" / "state", "one")
    with pytest.raises(ConfigError, match="state_dir"):
        SqliteStore.open(tmp_path / "file", "one")


async def test_tools_work_beside_the_gateway(state_dir: Path) -> None:
    store = SqliteStore.open(state_dir, "one")
    row = make_open(reserved_input=40)
    await store.open_row(row)  # not folded yet

    tool = SqliteStore.open_tool(state_dir)
    assert [found.opened for found in await tool.rows()] == [row]
    assert (await tool.usage())[0].input_tokens == 40
    key = make_key()
    await tool.add_key(key)
    assert await store.find_key(key.digest) == key
    assert await tool.revoke_key(key.name, 10.0)
    found = await store.find_key(key.digest)
    assert found is not None
    assert found.revoked == 10.0
    with pytest.raises(ClawError, match="store_unavailable"):
        await tool.open_row(make_open())
    await tool.aclose()

    await store.close_row(make_close(row.id))
    assert (await store.usage())[0].input_tokens == 7
    assert len(await store.rows()) == 1
    await store.aclose()


async def test_another_process_that_leaves_does_not_take_the_wal_along(state_dir: Path) -> None:
    """SQLite removes the -wal file with the last connection, as told by POSIX locks, which any close() of the file drops."""
    store = SqliteStore.open(state_dir, "one")
    tool = SqliteStore.open_tool(state_dir)
    await store.open_row(make_open())
    await store.flush()
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM attempts').fetchall(); c.close()"
    await trio.run_process([sys.executable, "-c", script, str(state_dir / "clawproxy.db")])
    assert (state_dir / "clawproxy.db-wal").exists()
    await tool.aclose()
    await store.aclose()


async def test_tools_work_without_a_gateway_and_leave_the_journal_to_it(state_dir: Path) -> None:
    tool = SqliteStore.open_tool(state_dir)
    key = make_key()
    await tool.add_key(key)
    assert (await tool.usage())[0].attempts == 0
    await tool.aclose()
    store = SqliteStore.open(state_dir, "one")
    await store.open_row(make_open())
    crash(store)
    tool = SqliteStore.open_tool(state_dir)
    assert (await tool.usage())[0].attempts == 1
    assert len(segment_paths(state_dir)) == 1
    await tool.aclose()
    store = SqliteStore.open(state_dir, "one")
    assert (await store.usage())[0].attempts == 1
    assert await store.keys() == [key]
    await store.aclose()


async def test_many_fold_at_once_and_each_record_counts_once(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHUNK", 2048)
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 20_000)
    monkeypatch.setattr(sqlite, "FOLD_EVERY", 0.001)
    store = SqliteStore.open(state_dir, "one")
    tools = [SqliteStore.open_tool(state_dir) for _ in range(2)]
    folds = 0

    async def keep_folding(tool: SqliteStore) -> None:
        nonlocal folds
        while True:
            await tool.flush()
            folds += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        for tool in tools:
            nursery.start_soon(keep_folding, tool)
        for number in range(600):
            row = make_open(opened=float(number))
            await store.open_row(row)
            await store.close_row(make_close(row.id, input_tokens=3, output_tokens=2, cost_nano=1))
            if number % 20 == 0:
                await trio.sleep(0.001)
        [total] = await store.usage()
        nursery.cancel_scope.cancel()
    assert folds > 10
    assert (total.attempts, total.input_tokens, total.output_tokens, total.cost_nano) == (600, 1800, 1200, 600)
    for tool in tools:
        await tool.aclose()
    await store.aclose()
    assert segment_paths(state_dir) == []


async def test_a_record_is_applied_once_even_if_the_row_is_gone(state_dir: Path) -> None:
    """The offset is in the folding transaction: what was folded is not looked at again."""
    store = SqliteStore.open(state_dir, "one")
    await store.open_row(make_open())
    await store.flush()
    connection = sqlite3.connect(state_dir / "clawproxy.db")
    connection.execute("DELETE FROM ledger")
    connection.commit()
    connection.close()
    await store.open_row(make_open(model="second"))
    assert [row.opened.model for row in await store.rows()] == ["second"]
    crash(store)
    store = SqliteStore.open(state_dir, "one")
    assert [row.opened.model for row in await store.rows()] == ["second"]
    await store.aclose()


async def test_the_journal_is_rotated_and_removed(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 1000)
    store = SqliteStore.open(state_dir, "one")
    names = set()
    for number in range(50):
        row = make_open(opened=float(number))
        await store.open_row(row)
        if number % 10 == 9:
            await store.flush()
            names |= {path.name for path in segment_paths(state_dir)}
            assert len(segment_paths(state_dir)) <= 2
        await store.close_row(make_close(row.id))
    assert len(names) > 3
    assert all(row.closed for row in await store.rows())
    assert len(await store.rows()) == 50
    await store.aclose()
    store = SqliteStore.open(state_dir, "one")  # a number is never used twice
    assert segment_paths(state_dir)[0].name not in names
    await store.aclose()


async def test_folding_happens_within_its_period(state_dir: Path) -> None:
    store = SqliteStore.open(state_dir, "one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        await store.open_row(make_open())
        reader = sqlite3.connect(state_dir / "clawproxy.db")
        await eventually(lambda: reader.execute("SELECT count(*) FROM attempts").fetchone()[0] == 1)
        reader.close()
        nursery.cancel_scope.cancel()
    await store.aclose()


async def test_the_request_path_never_waits(state_dir: Path) -> None:
    """No thread hop, so no lost row: even a task that is already cancelled opens and closes its row."""
    store = SqliteStore.open(state_dir, "one")
    with trio.CancelScope() as scope, trio.testing.assert_no_checkpoints():
        scope.cancel()
        row = make_open()
        await store.open_row(row)
        await store.close_row(make_close(row.id))
    [found] = await store.rows()
    assert found.closed is not None
    await store.aclose()


async def test_closing_a_cancelled_gateway_still_folds(state_dir: Path) -> None:
    store = SqliteStore.open(state_dir, "one")
    await store.open_row(make_open())
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.aclose()
    assert segment_paths(state_dir) == []
    with pytest.raises(ClawError, match="store_unavailable"):
        await store.open_row(make_open())
    await store.close_row(make_close("late"))
    await store.aclose()
    store = SqliteStore.open(state_dir, "one")
    assert len(await store.rows()) == 1
    await store.aclose()


async def test_no_secret_reaches_the_disk(state_dir: Path) -> None:
    """A hundred keys, A-02: only their digests and prefixes are kept."""
    secrets = [Secret(f"ck-{os.urandom(16).hex()}") for _ in range(100)]
    store = SqliteStore.open(state_dir, "one")
    for secret in secrets:
        digest = hmac.digest(b"pepper", secret.reveal().encode(), hashlib.sha256)
        await store.add_key(make_key(digest=digest, prefix=secret.reveal()[:6]))
        await store.open_row(make_open(key=str(secret)))
    await store.flush()
    files = [str(path) for path in state_dir.rglob("*") if path.is_file()]
    assert any(name.endswith("-wal") for name in files)
    # by another process: closing the file here would let go of SQLite's locks
    kept = subprocess.run(["cat", *files], capture_output=True, check=True).stdout
    assert len(kept) > 10_000
    for secret in secrets:
        assert secret.reveal().encode()[:12] not in kept
    await store.aclose()
