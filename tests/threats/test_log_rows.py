"""M-01, M-02, L-01, L-02: what strangers say becomes no series, no line and no flood. L-03 to L-06 are the audit's tests."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path

import pytest
import trio

from clawproxy.ops.logs import LOG
from clawproxy.scripted import ScriptedProvider
from tests.e2e import harness
from tests.e2e.harness import gateway
from tests.e2e.process import Served, served, settings
from tests.threats.kit import SAID, Raw, closed, document, entries, get, post, say

KEY = "sk-client-canary-0918273645abcdef"
SECRETS = {"TEST_CLIENT_KEY": KEY, "TEST_PROVIDER_KEY": "sk-provider-canary-5a6b7c8d9e0f1122"}
MANY = int(os.environ.get("CLAW_ROWS", "600"))
"""Requests of a bomb or a flood: a hundred thousand in the long form (CLAW_ROWS)."""
LONG = MANY >= 10_000
WARM = 30_000 if LONG else 600
"""Requests before: what is bounded (failed credentials, causes of log lines) fills up in the long form."""
TRIES = 3
"""An allocator takes memory in large pieces: what grows with the labels, grows each time."""
MIB = 1024 * 1024


def admin_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


async def scrape(address: tuple[str, int]) -> Raw:
    return await say(address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


def series(page: Raw) -> set[str]:
    """But for those that a busy machine makes: a hook that took long."""
    lines = [line for line in page.body.decode().splitlines() if line and not line.startswith("#") and '_slow"' not in line]
    return {line.rpartition(" ")[0] for line in lines}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Served]:
    async with ScriptedProvider.running() as provider, served(tmp_path, settings(tmp_path, provider.base_url), **SECRETS) as it:
        yield it


async def many(address: tuple[str, int], requests: list[bytes]) -> None:
    """All of them, few at a time, however they are answered."""
    limiter = trio.CapacityLimiter(16)
    async with trio.open_nursery() as nursery:

        async def one(data: bytes) -> None:
            async with limiter:
                await say(address, data, seconds=30)

        for data in requests:
            nursery.start_soon(one, data)


def strangers(model: str, key: str, seed: int = 7) -> Iterator[bytes]:
    """Requests with models, users, tokens, paths, methods, hosts, user agents, origins and ids, each at random."""
    rng = random.Random(seed)
    while True:
        word = f"{rng.getrandbits(64):x}"
        headers = {"Authorization": f"Bearer {key}", "User-Agent": word, "X-Request-Id": word, "Origin": f"http://{word}.test"}
        yield post(document(model=word), headers={**headers, "Origin": ""})
        yield post(document(model=model, user=word), headers={**headers, "Origin": ""})
        yield post(document(model=model), headers={"Authorization": f"Bearer {word}"})
        yield post(b"{}", f"/{word}", headers=headers)
        yield f"{word.upper()} /{word} HTTP/1.1\r\nHost: {word}\r\nConnection: close\r\n\r\n".encode()
        yield get(f"/v1/models/{word}", f"Authorization: Bearer {word}\r\n")


KINDS = 6
"""Of requests that `strangers` makes."""


async def test_m01_a_label_bomb_makes_no_series(world: Served) -> None:
    """M-01. In the long form memory too, as the system has it; `test_m01_nor_anything_else` has it by the entry."""

    def resident() -> int:
        return int(Path(f"/proc/{world.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    admin, bomb = admin_of(world.ready["admin"]), strangers("gpt-4-turbo", KEY)
    await many(world.address, list(islice(bomb, WARM)))  # each kind of answer, each table that is bounded
    before = series(await scrape(admin))
    grown = []
    for _ in range(TRIES if LONG else 1):
        held = resident()
        await many(world.address, list(islice(bomb, MANY)))
        assert series(await scrape(admin)) == before
        grown.append(resident() - held)
        if grown[-1] < MIB:
            break
    print(f"{len(before)} series; {MANY} requests: {[round(each / MIB, 2) for each in grown]} MiB")
    assert min(grown) < MIB or not LONG


async def test_m01_nor_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """M-01: a mebibyte for a hundred thousand requests is no entry in any table for any kind of them. Counted, for memory moves
    by itself. Tables that are bounded are made small, so that they are full before."""
    monkeypatch.setattr("clawproxy_auth.throttle.ENTRIES", 20)
    monkeypatch.setattr("clawproxy.gateway.CACHED_CREDENTIALS", 5)
    monkeypatch.setattr("clawproxy.context._IDS_AT_ONCE", 1)
    monkeypatch.setattr(LOG.ration, "most_causes", 5)
    async with gateway(tmp_path) as running:
        bomb = strangers("test-model", harness.KEY)

        async def held() -> int:
            """When what waits to be written is."""
            await running.at_rest()
            await running.server.gateway.app.store.flush()
            await trio.sleep(0.05)
            return entries(running)

        with trio.fail_after(30):
            await many(running.address, list(islice(bomb, 240)))
            before = min([await held() for _ in range(5)])
            await many(running.address, list(islice(bomb, KINDS * 100)))
            grown = await held() - before
            with trio.move_on_after(5):
                while grown >= 50:
                    grown = await held() - before
        assert grown < 50


async def test_m02_figures_are_for_the_admin_listener_alone(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        secret = running.config.keys["test"].secret
        assert secret is not None
        async with closed(running):
            for path in ("/metrics", "/healthz", "/readyz", "/admin", "/admin/keys", "/", "/dashboard"):
                for authorization in ("", f"Authorization: Bearer {secret.value}\r\n"):
                    answer = await say(running.address, get(path, authorization))
                    assert answer.status == 404, path
        admin = admin_of(running.admin)
        assert (await scrape(admin)).status == 200
        for path in ("/healthz", "/readyz"):
            assert (await say(admin, get(path).replace(b"gw.test", b"localhost"))).status == 200
        for path in ("/admin/keys", "/admin/config", "/v1/chat/completions"):
            answer = await say(admin, get(path).replace(b"gw.test", b"localhost"))
            assert answer.status in (401, 403, 404), path


LINES = [
    "a\r\nb", "a\nlevel: error", "\x1b[2J\x1b[1;31m", "\u202eevil", "\u2066x\u2069", "\u2028\u2029", "\x85", "\x7f\x00",
    '","level":"error',
    "\ud83d\ude00", "\\u000a", "%0d%0aSet-Cookie: a",
]  # fmt: skip


async def test_l01_every_request_is_one_line_that_can_be_read(world: Served) -> None:
    """CRLF, ANSI and bidi controls in the model, the user, the path, the user agent and the id."""
    for text in LINES:
        for changes in (
            {"model": text},
            {"model": "gpt-4-turbo", "user": text},
            {"model": "gpt-4-turbo", "metadata": {"user": text}},
        ):
            await say(world.address, post(document(**changes), headers={"Authorization": f"Bearer {KEY}"}))
        plain = text.encode("utf-8", "replace")
        await say(world.address, b"GET /" + plain + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await say(
            world.address, post(document(), headers={"Authorization": f"Bearer {KEY}"}, extra=b"User-Agent: " + plain + b"\r\n")
        )
        await say(
            world.address, post(document(), headers={"Authorization": f"Bearer {KEY}"}, extra=b"X-Request-Id: " + plain + b"\r\n")
        )
    assert await world.stop() == 0
    raw = world.stderr.read_bytes()
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", raw), "no control character but the line's end"
    assert not re.search("[\x80-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", raw.decode())
    lines = raw.decode().split("\n")
    assert lines.pop() == ""
    records = [json.loads(line) for line in lines]
    assert not [record for record in records if record["event"] == "exchange.crashed"]
    ids = [record["request_id"] for record in records if record["event"] == "exchange.closed"]
    assert len(ids) == len(set(ids)) >= len(LINES)
    for path in (world.stderr.parent / "state").rglob("*.jsonl"):
        for row in path.read_bytes().splitlines():
            json.loads(row)
        assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", path.read_bytes())


async def test_l02_a_flood_of_mistakes_is_rationed(world: Served) -> None:
    """Ten bad requests or a million: lines of one cause are counted beyond a few a second (10 MB for a million)."""
    bad = [
        post(b"{", headers={"Authorization": f"Bearer {KEY}"}),
        post(document(), headers={"Authorization": "Bearer wrong"}),
        get("/nowhere"),
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        post(document(model="none"), headers={"Authorization": f"Bearer {KEY}"}),
        b"\x16\x03\x01\x00\xff garbage\r\n\r\n",
    ]
    await many(world.address, [bad[number % len(bad)] for number in range(MANY)])
    await say(world.address, post(document(model="gpt-4-turbo", messages=[SAID]), headers={"Authorization": f"Bearer {KEY}"}))
    assert await world.stop() == 0
    size = world.stderr.stat().st_size
    print(f"{MANY} bad requests: {size} bytes of log")
    assert size < max(400_000, MANY * 10)
    records = world.log()
    assert [record for record in records if record.get("outcome") == "complete"], "what went well is there"
    assert sum(record.get("suppressed", 0) for record in records) > MANY / 20
