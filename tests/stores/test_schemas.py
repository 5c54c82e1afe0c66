"""Databases and journals of before: they open, keep what they hold, and take what came since."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from msgspec.structs import asdict

from clawproxy.stores import database
from clawproxy.stores.sqlite import SqliteStore

from .conftest import BEFORE_MAKERS, make_close, make_open

ALL = {
    "cached_tokens": 3,
    "reasoning_tokens": 2,
    "cost_nano": 12_345,
    "cache_write_tokens": 2,
    "cache_write_1h_tokens": 1,
    "cached_audio_tokens": 1,
    "audio_input_tokens": 2,
    "audio_output_tokens": 1,
    "image_input_tokens": 1,
    "image_output_tokens": 1,
    "service_tier": "flex",
    "card": "2026-11-01 openai/gpt-5",
}


async def test_a_row_keeps_every_class_of_tokens(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "state", "one")
    row = make_open()
    await store.open_row(row)
    await store.close_row(make_close(row.id, **ALL))
    await store.flush()
    (kept,) = await store.rows()
    assert kept.closed is not None
    assert asdict(kept.closed).items() >= ALL.items()
    await store.aclose()


async def test_a_database_of_the_first_schema_is_brought_up_once(tmp_path: Path) -> None:
    """Its rows stay, and what it did not know is not known: None, and never zero."""
    await SqliteStore.open(tmp_path / "state", "one").aclose()
    path = tmp_path / "state" / "clawproxy.db"
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE attempts")
    connection.execute(database._TABLES.split(";")[2])
    names = "id, request_id, number, reason, opened, instance, generation, key, model, provider, provider_model, reserved_input"
    connection.execute(f"INSERT INTO attempts ({names}) VALUES ('a', 'r', 1, 'first', 1000, 'one', 1, 'k', 'm', 'p', 'pm', 9)")
    closed = "closed = 1001, outcome = 'complete', sent = 1, input_tokens = 7, output_tokens = 5, source = 'measured'"
    connection.execute(f"UPDATE attempts SET {closed}, cost_nano = 99")
    connection.execute(BEFORE_MAKERS)
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()

    for _ in range(2):
        store = SqliteStore.open(tmp_path / "state", "one")
        row = make_open()
        await store.open_row(row)
        await store.close_row(make_close(row.id, **ALL))
        await store.flush()
        rows = {each.opened.id: each.closed for each in await store.rows()}
        await store.aclose()
        old, new = rows["a"], rows[row.id]
        assert old is not None
        assert new is not None
        assert (old.input_tokens, old.cost_nano, old.cache_write_tokens, old.card) == (7, 99, None, None)
        assert asdict(new).items() >= ALL.items()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == database.SCHEMA
    connection.close()


async def test_a_database_from_before_costs_were_reserved(tmp_path: Path) -> None:
    """What an attempt reserved then is not known, and stays so; since, a crash settles it at what it may have cost."""
    await SqliteStore.open(tmp_path / "state", "one").aclose()
    path = tmp_path / "state" / "clawproxy.db"
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE attempts DROP COLUMN reserved_nano")
    names = "id, request_id, number, reason, opened, instance, generation, key, model, provider, provider_model, reserved_input"
    connection.execute(f"INSERT INTO attempts ({names}) VALUES ('a', 'r', 1, 'first', 1000, 'one', 1, 'k', 'm', 'p', 'pm', 9)")
    connection.execute("PRAGMA user_version = 4")
    connection.commit()
    connection.close()
    store = SqliteStore.open(tmp_path / "state", "one")
    row = make_open(reserved_input=7, reserved_output=5, reserved_nano=120)
    await store.open_row(row)
    await store.aclose()
    for _ in range(2):
        store = SqliteStore.open(tmp_path / "state", "one")
        rows = {each.opened.id: each for each in await store.rows()}
        before, left = rows["a"].closed, rows[row.id].closed
        assert before is not None
        assert left is not None
        assert (rows["a"].opened.reserved_nano, before.outcome, before.cost_nano) == (None, "orphaned", None)
        assert (left.outcome, left.source, left.output_tokens, left.cost_nano) == ("orphaned", "estimated", 5, 120)
        [total] = await store.usage(where={"model": "m", "provider_model": row.provider_model})
        assert total.orphaned == 2
        assert (total.cost_nano, total.known_nano, total.unpriced) == (None, 120, 1)
        await store.aclose()
