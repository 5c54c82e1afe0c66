"""Lines in batches, on real files and pipes: none lost, none late, and nobody waits for a reader that does not read."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from clawproxy.ops import sink as sinks
from clawproxy.ops.logs import Log, Ration
from clawproxy.ops.sink import MOST_LINES, Sink


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue


def read_all(reader: int) -> bytes:
    found = b""
    try:
        while data := os.read(reader, 1 << 20):
            found += data
    except BlockingIOError:
        pass
    return found


def test_a_batch_is_one_write_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        sink = Sink(file.fileno())
        for number in range(60):
            sink.put(b"%d\n" % number)
        assert (tmp_path / "log").read_bytes() == b""
        sink.flush()
        assert (tmp_path / "log").read_bytes() == b"".join(b"%d\n" % number for number in range(60))
        for _ in range(64):
            sink.put(b"x\n")
        assert not sink.waiting


def test_a_full_pipe_blocks_nothing_and_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    lines = [b"%05d " % number + b"x" * (number % 700) + b"\n" for number in range(2000)] + [b"y" * 20_000 + b"\n"]
    found = b""
    for line in lines:
        sink.put(line)
    assert sink.waiting, "the pipe was too large for this test"
    while sink.waiting:
        found += read_all(reader)
        sink.flush()
    found += read_all(reader)
    assert found == b"".join(lines)
    assert sink.lost == 0


def test_lines_that_nobody_takes_are_bounded_and_counted(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    for number in range(MOST_LINES + 3000):
        sink.put(b"%06d" % number + b"x" * 100 + b"\n")
    assert len(sink.waiting) == MOST_LINES
    lost = sink.lost
    assert 0 < lost < 3000
    found = b""
    while sink.waiting:
        found += read_all(reader)
        sink.flush()
    found += read_all(reader)
    assert found.count(b"\n") + lost == MOST_LINES + 3000


def test_a_reader_that_went_away(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    sink.put(b"x\n")
    os.close(reader)
    sink.flush()
    assert (sink.lost, sink.waiting) == (1, [])


def test_a_descriptor_that_is_non_blocking(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    sink = Sink(writer)
    sink._is_file = True  # as if poll had promised too much
    for _ in range(200):
        sink.put(b"x" * 1000 + b"\n")
    assert sink.waiting
    found = b""
    while sink.waiting:
        found += read_all(reader)
        sink.flush()
    assert len(found + read_all(reader)) == 200 * 1001


async def test_good_lines_wait_a_little_and_bad_ones_do_not(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        log = Log(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.testing.wait_all_tasks_blocked()
            log.write("good", "info", {"model": "日本"})
            assert path.read_bytes() == b""
            with trio.fail_after(2):
                while not path.read_bytes():
                    await trio.sleep(0.005)
            log.write("good", "info", {})
            log.write("bad", "error", {})
            assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["good", "good", "bad"]
            log.write("last", "info", {})
            nursery.cancel_scope.cancel()
        assert path.read_text().count("\n") == 4
        log.write("after", "info", {})
        assert path.read_text().count("\n") == 5


async def test_other_threads_may_complain(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with os.fdopen(os.dup(writer), "w", encoding="utf-8") as stream:
        log = Log(stream, ration=Ration(10**6, 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.testing.wait_all_tasks_blocked()

            def complain() -> None:
                for number in range(1000):
                    log.write("bad", "error", {"message": "x" * 100, "count": number})

            found = b""
            done = trio.Event()

            async def read() -> None:
                nonlocal found
                while not done.is_set() or found.count(b"\n") < 2300:
                    await trio.sleep(0.005)
                    found += read_all(reader)

            async def work() -> None:
                async with trio.open_nursery() as threads:
                    for _ in range(2):
                        threads.start_soon(trio.to_thread.run_sync, complain)
                    for number in range(300):
                        log.write("good", "info", {"count": number})
                        await trio.lowlevel.checkpoint()
                done.set()

            with trio.fail_after(20):
                async with trio.open_nursery() as working:
                    working.start_soon(read)
                    working.start_soon(work)
            nursery.cancel_scope.cancel()
    rows = [json.loads(line) for line in found.splitlines()]
    assert len(rows) == 2300
    assert [row["count"] for row in rows if row["event"] == "good"] == list(range(300))


async def test_what_was_lost_is_said(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "MOST_LINES", 100)
    reader, writer = pipe
    with os.fdopen(os.dup(writer), "w", encoding="utf-8") as stream:
        log = Log(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(2000):
                log.write("good", "info", {"message": "x" * 200})
            found = b""
            with trio.fail_after(5):
                while b"log.blocked" not in found:
                    found += read_all(reader)
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        rows = [json.loads(line) for line in found.splitlines()]
        [said] = [row for row in rows if row.get("cause") == "log.blocked"]
        assert len(rows) - 1 + said["suppressed"] == 2000
        assert log.suppressed == said["suppressed"]


async def test_a_stream_without_a_descriptor_is_written_at_once() -> None:
    text = io.StringIO()
    log = Log(text)
    await log.run()
    log.write("x", "info", {})
    assert text.getvalue()
