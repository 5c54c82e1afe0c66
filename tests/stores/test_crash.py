"""kill -9 at random instants: every id the gateway said it had opened is in the ledger afterwards, and is charged once.

`KILLS=200` does it two hundred times.
"""

from __future__ import annotations

import os
import random
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from clawproxy.errors import ConfigError
from clawproxy.stores import sqlite, writer
from clawproxy.stores.base import UNLIMITED, Account, Charge, Claim, LedgerOpen
from clawproxy.stores.sqlite import SqliteStore

from .conftest import make_close, make_key, make_open

CYCLES = int(os.environ.get("KILLS", "20"))
ACCOUNTS = [Account("key:bench", "nano", "total", False), Account("global", "tokens", "month", True)]
HELD, USED = 40, 3


async def write_until_killed(state_dir: Path) -> None:
    """Say each id after it was opened, and again when its closing is written: with the next opening. Folds and rotates as often
    as it can."""
    sqlite.FOLD_EVERY = 0.002
    writer.SEGMENT_BYTES = 10_000
    store = SqliteStore.open(state_dir, f"pid-{os.getpid()}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        closed: list[LedgerOpen] = []
        while True:
            rows = [make_open(opened=time.time()) for _ in range(5)]
            for row in rows:
                assert await store.reserve(row, [Claim(*account, HELD, UNLIMITED - 1, "b") for account in ACCOUNTS]) is None
                os.write(1, b"o %b\n" % row.id.encode())
            for row in closed:
                os.write(1, b"c %b\n" % row.id.encode())
            await trio.lowlevel.checkpoint()
            for row in rows[:4]:
                used = [Charge(*account, USED) for account in ACCOUNTS]
                await store.close_row(make_close(row.id, input_tokens=2, output_tokens=1, cost_nano=USED), used)
            closed = rows[:4]


@contextmanager
def gateway(state_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs `write_until_killed`, killed at the end."""
    script = (
        "import sys, trio; from pathlib import Path; from tests.stores import test_crash as t; "
        "trio.run(t.write_until_killed, Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", script, str(state_dir)], cwd=root, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def heard(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """What the child says in that time from its first word on."""
    assert child.stdout is not None
    said = b""
    until = None
    while until is None or time.monotonic() < until:
        ready, _, _ = select.select([child.stdout], [], [], 0.005)
        if ready:
            data = os.read(child.stdout.fileno(), 65536)
            assert data, "the child ended by itself"
            said += data
            until = until or time.monotonic() + seconds
    return said


def run_and_kill(state_dir: Path, after: float) -> list[str]:
    with gateway(state_dir) as child:
        assert child.stdout is not None
        said = heard(child, after)
        child.kill()
        said += child.stdout.read()
    return said.decode().split("\n")[:-1]


async def test_tools_see_what_a_running_gateway_has_written(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with gateway(state_dir) as child:
        said = await trio.to_thread.run_sync(heard, child, 0.05)
        with pytest.raises(ConfigError, match="in use"):
            SqliteStore.open(state_dir, "second")
        tool = SqliteStore.open_tool(state_dir)
        attempts = 0
        for _ in range(5):
            opened = {line[2:] for line in said.decode().split("\n")[:-1] if line.startswith("o")}
            assert opened <= {row.opened.id for row in await tool.rows()}
            await tool.add_key(make_key())
            [total] = await tool.usage()
            assert total.attempts > attempts
            attempts = total.attempts
            said += await trio.to_thread.run_sync(heard, child, 0.01)
        assert len(await tool.keys()) == 5
        await tool.aclose()


@pytest.mark.slow
async def test_kill_9_loses_no_attempt(tmp_path: Path) -> None:
    """B-06, of the store alone."""
    state_dir = tmp_path / "state"
    chance = random.Random(20)
    opened: set[str] = set()
    closed: set[str] = set()
    for _ in range(CYCLES):
        for line in await trio.to_thread.run_sync(run_and_kill, state_dir, chance.uniform(0.0, 0.06)):
            what, _, id_ = line.partition(" ")
            (opened if what == "o" else closed).add(id_)
        before = time.monotonic()
        store = SqliteStore.open(state_dir, "parent")
        assert time.monotonic() - before < 2.0
        rows = {row.opened.id: row for row in await store.rows()}
        assert opened <= rows.keys()
        ended = {id_ for id_, row in rows.items() if row.closed is not None and row.closed.outcome != "orphaned"}
        assert closed <= ended
        assert all(row.closed for row in rows.values())
        # at most what was under way when it was killed is there without having been said
        assert len(rows) - len(opened) <= CYCLES
        [total] = await store.usage()
        done = len(ended)
        assert total.attempts == len(rows)
        assert total.input_tokens == 2 * done + 40 * (len(rows) - done)
        assert total.output_tokens == done
        orphans = len(rows) - done
        assert total.cost_nano == USED * done + HELD * orphans
        for standing in await store.standing(ACCOUNTS, time.time()):
            assert (standing.used, standing.held, standing.overrun) == (total.cost_nano, 0, 0)
        for account in ACCOUNTS:
            charged = [each.used for each in await store.totals() if each.account == account]
            assert sum(charged) == total.cost_nano
        assert await store.holding() == 0
        await store.aclose()
    assert len(opened) > 20 * CYCLES
    assert list((state_dir / "journal").iterdir()) == []
    check = sqlite3.connect(state_dir / "clawproxy.db")
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert check.execute("SELECT count(*) FROM segments WHERE folded = 0").fetchone() == (0,)
    check.close()
