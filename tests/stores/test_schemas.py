"""Databases and journals of before: they open, keep what they hold, and take what came since."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import asdict, astuple

from clawproxy.errors import ClawError
from clawproxy.stores import database, schema
from clawproxy.stores.records import CLOSE_FIELDS, OPEN_FIELDS
from clawproxy.stores.sqlite import SqliteStore

from .conftest import database_of, make_close, make_open

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
    values = "('a', 'r', 1, 'first', 1000, 'one', 1, 'k', 'm', 'p', 'pm', 9)"
    names = "id, request_id, number, reason, opened, instance, generation, key, model, provider, provider_model, reserved_input"
    with database_of(1, tmp_path / "state") as connection:
        connection.execute(f"INSERT INTO attempts ({names}) VALUES {values}")
        closed = "closed = 1001, outcome = 'complete', sent = 1, input_tokens = 7, output_tokens = 5, source = 'measured'"
        connection.execute(f"UPDATE attempts SET {closed}, cost_nano = 99")

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
    connection = sqlite3.connect(tmp_path / "state" / "clawproxy.db")
    assert connection.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION
    connection.close()


async def test_a_database_from_before_costs_were_reserved(tmp_path: Path) -> None:
    """What an attempt reserved then is not known, and stays so; since, a crash settles it at what it may have cost."""
    values = "('a', 'r', 1, 'first', 1000, 'one', 1, 'k', 'm', 'p', 'pm', 9)"
    names = "id, request_id, number, reason, opened, instance, generation, key, model, provider, provider_model, reserved_input"
    with database_of(4, tmp_path / "state") as connection:
        connection.execute(f"INSERT INTO attempts ({names}) VALUES {values}")
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


async def test_rows_from_before_labels_were_kept_apart_read_as_they_were(tmp_path: Path) -> None:
    """Every column of them, whoever shares it; and a crash that left one open is settled."""
    opened = [
        make_open(id="a", opened=1.0, user="ann", team="red", app="cli", reserved_output=3, reserved_nano=9),
        make_open(id="b", opened=2.0, number=2, reason="retry"),
        make_open(id="c", opened=3.0, user="ann", team="red", app="cli"),
        make_open(id="d", opened=4.0, model="other", reserved_output=7, reserved_nano=70),
    ]
    closed = [make_close("a", **ALL), make_close("b", sent=False, outcome="error", input_tokens=None), make_close("c")]
    with database_of(5, tmp_path / "state") as connection:
        for row in opened:
            names = ", ".join(f'"{name}"' for name in OPEN_FIELDS)
            connection.execute(f"INSERT INTO attempts ({names}) VALUES ({', '.join('?' * len(OPEN_FIELDS))})", astuple(row))
        for ended in closed:
            names = ", ".join(f"{name} = ?" for name in CLOSE_FIELDS)
            connection.execute(f"UPDATE attempts SET {names} WHERE id = ?", (*astuple(ended), ended.id))
    store = SqliteStore.open(tmp_path / "state", "two")
    rows = await store.rows()
    assert [row.opened for row in rows] == opened
    assert [row.closed for row in rows][:3] == closed
    left = rows[3].closed
    assert left is not None
    assert (left.outcome, left.sent, left.source, left.output_tokens, left.cost_nano) == ("orphaned", True, "estimated", 7, 70)
    assert [(row.group, row.attempts) for row in await store.usage("user")] == [(None, 2), ("ann", 2)]
    await store.aclose()


async def test_labels_and_endings_are_written_once(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "one")
    for number in range(60):
        row = make_open(user=f"user{number % 3}", model=f"m{number % 2}")
        await store.open_row(row)
        await store.close_row(make_close(row.id, outcome="complete" if number % 5 else "error"))
        if number % 7 == 0:
            await store.flush()
    await store.aclose()
    store = SqliteStore.open(tmp_path, "one")
    await store.open_row(make_open(user="user0", model="m0"))
    assert len(await store.rows()) == 61
    connection = store._reader.connection
    assert connection.execute("SELECT count(*) FROM labels").fetchone() == (6,)
    assert connection.execute("SELECT count(*) FROM endings").fetchone() == (3,)  # that of orphans is always there
    await store.aclose()


async def test_a_fold_that_failed_leaves_no_names_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transaction named is gone with it: the next one names it anew."""
    store = SqliteStore.open(tmp_path, "one")
    with monkeypatch.context() as broken:
        broken.setattr(database, "_set_offset", raising)
        await store.open_row(row := make_open(user="ann"))
        await store.close_row(make_close(row.id))
        with pytest.raises(ClawError):
            await store.flush()
    await store.flush()
    [kept] = await store.rows()
    assert kept.opened == row
    assert kept.closed == make_close(row.id)
    await store.aclose()


def raising(*args: object) -> None:
    raise sqlite3.OperationalError("disk I/O error")
