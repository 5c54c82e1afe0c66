"""When lines reach the journal: an opening before anything is sent, a closing in company or some milliseconds later."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from clawproxy.errors import ClawError
from clawproxy.stores.sqlite import SqliteStore
from clawproxy.stores.writer import CLOSINGS_WITHIN

from .conftest import make_close, make_open
from .test_sqlite import crash


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was written, by anybody."""
    done: list[bytes] = []
    write = os.write

    def count(fd: int, data: bytes) -> int:
        done.append(bytes(data))
        return write(fd, data)

    monkeypatch.setattr("clawproxy.stores.journal.os.write", count)
    return done


def kinds(data: bytes) -> str:
    return "".join(chr(line[8]) for line in data.splitlines())


async def test_closings_go_with_the_next_opening(tmp_path: Path, writes: list[bytes]) -> None:
    store = SqliteStore.open(tmp_path, "one")
    writes.clear()
    rows = [make_open(opened=float(number)) for number in range(3)]
    await store.open_row(rows[0])
    await store.open_row(rows[1])
    await store.close_row(make_close(rows[1].id))
    await store.close_row(make_close(rows[0].id))
    assert [kinds(data) for data in writes] == ["o", "o"]
    await store.open_row(rows[2])
    assert [kinds(data) for data in writes] == ["o", "o", "cco"]
    assert [bool(row.closed) for row in await store.rows()] == [True, True, False]
    await store.aclose()


async def test_a_closing_alone_is_written_within_milliseconds(
    tmp_path: Path, writes: list[bytes], autojump_clock: MockClock
) -> None:
    store = SqliteStore.open(tmp_path, "one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store._writer.keep_closing)
        row = make_open()
        await store.open_row(row)
        writes.clear()
        for _ in range(3):
            await trio.sleep(1)
            await store.close_row(make_close(row.id))
            await trio.sleep(CLOSINGS_WITHIN / 2)
            assert writes == []
            await trio.sleep(CLOSINGS_WITHIN)
            assert [kinds(data) for data in writes] == ["c"]
            writes.clear()
        nursery.cancel_scope.cancel()
    await store.aclose()


async def test_a_crash_in_between_settles_at_what_was_reserved(tmp_path: Path) -> None:
    """Nobody saw the closing: the attempt is one of those that a crash left."""
    store = SqliteStore.open(tmp_path, "one")
    row = make_open(reserved_input=40, reserved_output=7, reserved_nano=99)
    await store.open_row(row)
    await store.close_row(make_close(row.id, cost_nano=5))
    crash(store, at_once=True)
    store = SqliteStore.open(tmp_path, "two")
    [found] = await store.rows()
    assert found.closed is not None
    assert (found.closed.outcome, found.closed.source, found.closed.cost_nano) == ("orphaned", "estimated", 99)
    await store.aclose()


async def test_what_can_not_be_written_with_an_opening_waits_on(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Neither of them is written half: the opening is refused, the closings go when there is room."""
    store = SqliteStore.open(tmp_path, "one")
    rows = [make_open(opened=float(number)) for number in range(3)]
    for row in rows[:2]:
        await store.open_row(row)
        await store.close_row(make_close(row.id))
    segment = store._writer.segment
    assert segment is not None
    size = segment.size
    real, segment._fd = segment._fd, os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    with pytest.raises(ClawError, match="store_unavailable"):
        await store.open_row(rows[2])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store._writer.keep_closing)
        await trio.sleep(1)
        assert (store._writer.closings, segment.size) == (1, size)
        os.close(segment._fd)
        segment._fd = real
        await trio.sleep(1)
        assert store._writer.closings == 0
        nursery.cancel_scope.cancel()
    assert [bool(row.closed) for row in await store.rows()] == [True, True]
    await store.aclose()
