"""B-06: `kill -9` at random instants of a whole `clawproxy serve` under load, its provider in another process with its own log on
disk: every id of that log is in the ledger, what was under way is settled at the restart, and nothing is charged twice.

`CLAW_KILLS=200` is the long form.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from clawproxy.stores.base import Account, Unit
from clawproxy.stores.sqlite import SqliteStore
from tests.e2e.http_client import chat_body
from tests.e2e.process import Served, served, settings

KILLS = int(os.environ.get("CLAW_KILLS", "4"))
CLIENTS = 16
ENVIRON = {"TEST_PROVIDER_KEY": "sk-canary-0123456789", "TEST_CLIENT_KEY": "sk-test-0123456789abcdefghijklm"}
BUDGETS = """
[models."gpt-4-turbo".price]
input = "1.00"
output = "2.00"
"""
LIMITS: dict[str, tuple[str, str, Unit]] = {
    "all": ("global", "$100000", "nano"),
    "key": ("key:bench", "1_000_000_000 tokens", "tokens"),
    "model": ("model:*", "1_000_000_000 output_tokens", "output_tokens"),
    "count": ("global", "1_000_000_000 requests", "requests"),
}


def configured(folder: Path, base_url: str) -> str:
    budgets = "".join(
        f'[budgets.{name}]\nscope = "{scope}"\nlimit = "{limit}"\nwindow = "total"\n'
        for name, (scope, limit, _) in LIMITS.items()
    )
    return settings(folder, base_url) + BUDGETS + budgets


@asynccontextmanager
async def provider(log: Path) -> AsyncIterator[str]:
    """Its base URL."""
    command = [sys.executable, "-m", "tests.e2e.killed_provider", str(log)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    try:
        with trio.fail_after(20):
            base_url = bytes(await process.stdout.receive_some()).decode().strip()
        yield base_url
    finally:
        process.kill()
        await process.stdout.aclose()
        with trio.move_on_after(5, shield=True):
            await process.wait()


async def put_load(gateway: Served) -> None:
    """One request after the other on a connection, until there is no gateway."""
    body = chat_body("say something", stream=True, max_tokens=50).replace(b"test-model", b"gpt-4-turbo")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {ENVIRON['TEST_CLIENT_KEY']}\r\n"
    request = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    try:
        async with await trio.open_tcp_stream(*gateway.address) as stream:
            while True:
                await stream.send_all(request)
                heard = b""
                while not heard.endswith(b"0\r\n\r\n"):
                    data = await stream.receive_some(65536)
                    if not data:
                        return
                    heard += data
    except OSError:
        return
    except trio.BrokenResourceError:
        return


async def load_and_kill(gateway: Served, log: Path, after: float) -> None:
    """Killed so many seconds after the provider heard the first request of this process."""
    before = log.stat().st_size if log.exists() else 0
    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(put_load, gateway)
        with trio.fail_after(20):
            while not log.exists() or log.stat().st_size == before:
                await trio.sleep(0.001)
        await trio.sleep(after)
        await gateway.stop(signal.SIGKILL)


@pytest.mark.slow
async def test_b06_kill_9_of_a_serving_gateway(tmp_path: Path) -> None:
    chance = random.Random(6)
    log, folder = tmp_path / "provider.log", tmp_path / "gateway"
    slowest = 0.0
    async with provider(log) as base_url:
        config = configured(folder, base_url)
        for _ in range(KILLS):
            before = time.monotonic()
            async with served(folder, config, **ENVIRON) as gateway:
                slowest = max(slowest, time.monotonic() - before)
                await load_and_kill(gateway, log, chance.uniform(0.0, 0.25))
    asked = log.read_text().split("\n")[:-1]
    assert len(set(asked)) == len(asked)
    before = time.monotonic()
    store = SqliteStore.open(folder / "state", "afterwards")
    took = time.monotonic() - before
    assert took < 2.0
    rows = {row.opened.id: row for row in await store.rows()}
    assert not set(asked) - rows.keys()
    closed = [row.closed for row in rows.values() if row.closed is not None]
    assert len(closed) == len(rows)
    orphans = sum(row.outcome == "orphaned" for row in closed)
    print(
        f"{KILLS} kills, {len(rows)} attempts, {orphans} orphans; slowest start {slowest:.2f} s, last one settled in {took:.3f} s"
    )
    assert orphans
    assert all(row.cost_nano for row in closed if row.sent or row.outcome == "orphaned")
    figures: dict[Unit, int] = {
        "nano": sum(row.cost_nano or 0 for row in closed),
        "tokens": sum((row.input_tokens or 0) + (row.output_tokens or 0) for row in closed),
        "output_tokens": sum(row.output_tokens or 0 for row in closed),
        "requests": sum(row.sent or row.outcome == "orphaned" for row in closed),
    }
    charged = {total.account: total.used + total.overrun for total in await store.totals()}
    for scope, _, unit in LIMITS.values():
        who = scope.replace("*", "gpt-4-turbo")
        account = Account(who, unit, "total", False)
        [standing] = await store.standing([account], time.time())
        assert (standing.used + standing.overrun, standing.held) == (figures[unit], 0), unit
        assert charged[account] == figures[unit], unit
    assert await store.holding() == 0
    await store.aclose()
