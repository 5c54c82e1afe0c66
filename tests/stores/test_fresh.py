"""Folding what is still in memory: the same rows as reading the journal gives, each once, whoever folded before."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.errors import ClawError
from clawproxy.stores import database, sqlite, writer
from clawproxy.stores.base import LedgerRow, Store
from clawproxy.stores.memory import MemoryStore
from clawproxy.stores.records import open_line, read_lines
from clawproxy.stores.sqlite import SqliteStore

from .conftest import make_close, make_open


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lines were read from journals, at each reading."""
    done: list[int] = []

    def count(lines: Iterable[bytes]) -> tuple[list[Any], int]:
        records, broken = read_lines(lines)
        done.append(len(records) + broken)
        return records, broken

    monkeypatch.setattr(database, "read_lines", count)
    return done


async def write(store: SqliteStore, count: int, begin: int = 0) -> None:
    for number in range(begin, begin + count):
        row = make_open(id=f"{number:04d}", opened=float(number))
        await store.open_row(row)
        if number % 3:
            await store.close_row(make_close(row.id))


def ids(rows: Iterable[LedgerRow]) -> list[str]:
    return [row.opened.id for row in rows]


async def test_what_is_in_memory_is_not_read_again(tmp_path: Path, read: list[int]) -> None:
    store = SqliteStore.open(tmp_path, "one")
    for begin in (0, 100):
        await write(store, 100, begin)
        await store.flush()
    await store.flush()
    await store.close_row(make_close("0000"))
    rows = await store.rows()
    assert ids(rows) == [f"{number:04d}" for number in range(200)]
    assert all((row.closed is not None) == (row.opened.id == "0000" or int(row.opened.id) % 3 > 0) for row in rows)
    assert read == []
    await store.aclose()


async def test_another_process_may_fold_in_between(tmp_path: Path, read: list[int]) -> None:
    store, tool = SqliteStore.open(tmp_path, "one"), SqliteStore.open_tool(tmp_path)
    for begin in range(0, 120, 40):
        await write(store, 20, begin)
        assert len(await tool.rows()) == begin + 20
        await write(store, 20, begin + 20)
        assert len(await store.rows()) == begin + 40
    before = len(read)
    await write(store, 20, 120)
    assert len(await store.rows()) == 140
    assert len(read) == before, "it found back to its memory"
    await tool.aclose()
    await store.aclose()


async def test_after_a_fold_that_failed(tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY", 0.0)
    store = SqliteStore.open(tmp_path, "one")
    await write(store, 10)
    other = sqlite3.connect(tmp_path / "clawproxy.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ClawError):
        await store.flush()
    other.close()
    await store.close_row(make_close("0000"))
    assert len(await store.rows()) == 10
    assert len(read) == 1
    await write(store, 10, 10)
    rows = await store.rows()
    assert (len(rows), len(read)) == (20, 1)
    assert rows[0].closed is not None
    await store.aclose()


async def test_a_fold_that_never_began(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, "one")
    await write(store, 10)
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.flush()
    await write(store, 10, 10)
    assert len(await store.rows()) == 20
    await store.aclose()


async def test_more_than_memory_is_to_hold(tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FRESH_LINES", 30)
    store = SqliteStore.open(tmp_path, "one")
    await write(store, 100)
    assert 30 <= len(store._writer._fresh) <= 31, "a line and the closings that went with it"
    assert len(await store.rows()) == 100
    assert len(read) == 1
    await store.aclose()


async def test_the_file_has_more_than_memory(tmp_path: Path, read: list[int]) -> None:
    store = SqliteStore.open(tmp_path, "one")
    await write(store, 3)
    assert store._writer.segment is not None
    store._writer.segment.append(open_line(make_open(id="extra", opened=50.0)))
    await write(store, 3, 3)
    assert len(await store.rows()) == 7
    assert len(read) == 1
    await store.aclose()


async def test_segments_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 4000)
    store = SqliteStore.open(tmp_path, "one")
    for begin in range(0, 300, 7):
        await write(store, 7, begin)
        await store.flush()
    assert ids(await store.rows()) == [f"{number:04d}" for number in range(301)]
    await store.aclose()


async def test_one_bad_row_among_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SqliteStore.open(tmp_path, "one")
    await write(store, 100)
    await store.open_row(make_open(id="bad", opened=float("inf")))
    await write(store, 100, 100)
    assert ids(await store.rows()) == [f"{number:04d}" for number in range(200)]
    assert "1 damaged lines" in caplog.text
    await store.aclose()


records = st.lists(st.tuples(st.sampled_from("oc"), st.integers(0, 60), st.integers(0, 3)), max_size=200)


@settings(max_examples=25, deadline=None)
@given(records, st.integers(1, 80))
def test_memory_file_and_reference_agree(
    tmp_path_factory: pytest.TempPathFactory, done: list[tuple[str, int, int]], every: int
) -> None:
    """The same records through memory, through the file, and in the reference."""

    async def agree() -> None:
        folder = tmp_path_factory.mktemp("fresh")
        stores = [SqliteStore.open(folder / name, "one") for name in ("memory", "file")]
        reference = MemoryStore()
        for at, (kind, number, variant) in enumerate(done):
            every_store: tuple[Store, ...] = (*stores, reference)
            for store in every_store:
                if kind == "o":
                    await store.open_row(make_open(id=f"{number:04d}", request_id="r", opened=float(number), model=f"m{variant}"))
                else:
                    await store.close_row(make_close(f"{number:04d}", output_tokens=variant))
            if at % every == 0:
                for store in stores:
                    stores[1]._writer._fresh_bytes = -1
                    await store.flush()
        stores[1]._writer._fresh_bytes = -1
        expected = await reference.rows()
        for store in stores:
            assert await store.rows() == expected
            await store.aclose()

    trio.run(agree)
