"""The rows of FAULTS that are no one answer's: providers out of reach, bytes cut anywhere, connections, figures, breakers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import Duration, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.scripted import parse
from tests.e2e.faultworld import DOORS, LIMIT, QUICK, Door, World, of_reply, world
from tests.e2e.harness import KEY
from tests.e2e.http_client import chat, fetch

pytestmark = pytest.mark.timed

ON_EACH_DOOR = pytest.mark.parametrize("door", DOORS)

# --- refuses, unroutable, DNS fails or hangs ---------------------------------------------------------------------------


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


@pytest.fixture
def unroutable() -> Iterator[str]:
    """An address that says nothing: its queue is full, and the kernel drops what else comes, as a firewall does."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        for each in waiting:
            each.close()


async def both_ways(it: World, door: Door, status: int, slug: str, tries: int) -> str:
    """The only route fails so; of two, the other answers. Nothing was sent, and nothing is billed. Returns the message."""
    seen = await it.ask(door)
    assert (seen.status, seen.slug) == (status, slug)
    rows = await it.rows()
    assert [(row.closed.outcome, row.closed.sent, row.closed.source) for row in rows if row.closed] == [
        (slug, False, "none")
    ] * tries
    assert it.fails_in_a_row() == tries
    it.running.forget_trouble()
    other = await it.ask(door, "both")
    assert (other.status, other.route, other.text) == (200, "good", "from the good one")
    assert "fallback" in other.notices
    assert it.bad.log.connections_opened == 0
    return seen.message


@ON_EACH_DOOR
async def test_refuses(tmp_path: Path, door: Door, nobody: str) -> None:
    async with world(tmp_path, url=nobody) as it:
        assert "connection refused" in await both_ways(it, door, 502, "provider_error.unreachable", 3)


@ON_EACH_DOOR
async def test_unroutable(tmp_path: Path, door: Door, unroutable: str) -> None:
    async with world(tmp_path, url=unroutable, short=True, router={"max_attempts": 2, "retries": {"most": 0}}) as it:
        message = await both_ways(it, door, 504, "timeout.connect", 1)
    assert "providers.bad.deadlines.connect" in message


def look_up(it: World, lookup: object) -> None:
    upstream = it.running.server.gateway.current.upstream
    upstream._resolver._lookup = lookup  # type: ignore[attr-defined]


@ON_EACH_DOOR
async def test_dns_fails(tmp_path: Path, door: Door) -> None:
    def unknown(host: str) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    async with world(tmp_path, url="http://nowhere.invalid/v1") as it:
        look_up(it, unknown)
        assert "name not found" in await both_ways(it, door, 502, "provider_error.unreachable", 3)


@ON_EACH_DOOR
async def test_dns_hangs(tmp_path: Path, door: Door) -> None:
    over = threading.Event()

    def hangs(host: str) -> object:
        over.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "at last")

    async with world(
        tmp_path, url="http://hangs.invalid/v1", short=True, router={"max_attempts": 2, "retries": {"most": 0}}
    ) as it:
        look_up(it, hangs)
        await both_ways(it, door, 504, "timeout.connect", 1)
        over.set()


async def test_fifty_look_ups_that_hang_take_nobody_elses_thread(tmp_path: Path) -> None:
    """More names than there are threads for look-ups; the ledger, which writes in a thread, and other providers go on."""
    over = threading.Event()
    names = [f"hung{at}" for at in range(50)]

    def hangs(host: str) -> object:
        over.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "at last")

    async with world(tmp_path / "outer") as outer:
        good = outer.running.config.providers["good"]
        providers = {name: ProviderConfig(base_url=f"http://{name}.invalid/v1") for name in names}
        models = {name: ModelConfig((RouteConfig(name, "m"),)) for name in names}
        models["well"] = ModelConfig((RouteConfig("good", "m"),))
        async with world(
            tmp_path / "inner", providers={**providers, "good": good}, models=models, deadlines=Deadlines(connect=0.6)
        ) as it:
            look_up(it, hangs)
            slugs: list[str] = []

            async def hung(name: str) -> None:
                slugs.append((await it.ask("http", name)).slug)

            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(hung, name)
                await trio.sleep(0.1)
                store = it.running.server.gateway.app.store
                with trio.fail_after(0.4):
                    assert (await it.ask("websocket", "well")).route == "good"
                    await store.flush()
                assert not slugs, "they hang still"
            assert slugs == ["timeout.connect"] * 50
            assert all(row.closed is not None for row in await it.rows())
            over.set()


# --- all breakers open -------------------------------------------------------------------------------------------------


async def test_all_breakers_open_is_said_at_once_on_every_door(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    router = {"breaker": {"open": "30s", "longest": "30s"}}
    async with world(tmp_path, router=router) as it:
        it.bad.default = it.good.default = parse("status 500")
        while it.bad.log.requests < 5 or it.good.log.requests < 5:
            assert (await it.ask("http", "both", stream=False)).status in (502, 503)
        asked, opened = (it.bad.log.requests, it.good.log.requests), len(await it.rows())
        quickest = 1.0
        for _ in range(5):
            async with await it.running.connect() as stream:
                began = trio.current_time()
                reply = await chat(stream, "hello", key=KEY, model="both")
                quickest = min(quickest, trio.current_time() - began)
            seen = of_reply(reply)
            assert (seen.status, seen.slug) == (503, "provider_error.breaker_open")
            assert seen.retry_after is not None
            assert 20 <= seen.retry_after <= 30
        assert quickest < 0.05
        seen = await it.ask("websocket", "both")
        assert (seen.status, seen.slug) == (503, "provider_error.breaker_open")
        assert seen.retry_after is not None
        assert 20 <= seen.retry_after <= 30
        assert (it.bad.log.requests, it.good.log.requests) == asked
        assert len(await it.rows()) == opened, "no attempt, no row"
        metrics = await metrics_of(it)
        assert 'clawproxy_breaker_state{model="m",provider="bad"} 2.0' in metrics
        assert 'clawproxy_breaker_transitions_total{provider="bad",state="open"} 1.0' in metrics
        log = tmp_path / "state" / "audit"
        with trio.fail_after(3):
            while not (whys := {each["why"] for row in audited(log) for each in row.get("considered") or ()}):
                await trio.sleep(0.01)
        assert whys <= {"breaker_open", ""}
    assert '"event":"route.breaker"' in capfd.readouterr().err


def audited(folder: Path) -> Iterator[dict[str, Any]]:
    for file in folder.glob("*.jsonl"):
        yield from map(json.loads, file.read_text().splitlines())


async def metrics_of(it: World) -> str:
    async with await trio.open_tcp_stream("127.0.0.1", int(it.running.admin.rsplit(":", 1)[1])) as stream:
        return (await fetch(stream, "GET", "/metrics", headers={"host": "127.0.0.1"})).body.decode()


# --- bytes, however they come ------------------------------------------------------------------------------------------

TEXT = 'caf\u00e9 \u4f60\u597d \U0001f469\u200d\U0001f680 a\u2028b\u2029c \\ "quoted" e\u0301 \ufeff end'.replace(
    "\u0000", "\\u0000"
)


@ON_EACH_DOOR
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
async def test_utf8_cut_anywhere_is_byte_equal(tmp_path: Path, door: Door, size: int) -> None:
    async with world(tmp_path) as it:
        it.bad.will(parse(f"split {size}; say* {json.dumps(TEXT, ensure_ascii=False)}"))
        seen = await it.ask(door)
    assert (seen.slug, seen.text) == ("", TEXT)


@ON_EACH_DOOR
@pytest.mark.parametrize("stream", [True, False])
async def test_a_line_of_a_mebibyte(tmp_path: Path, door: Door, stream: bool) -> None:
    said = "\u00e9\u2028" * (2**20 // 5)
    async with world(tmp_path) as it:
        it.bad.will_say(*parse(f"say* {said}").steps)
        assert (await it.ask(door, stream=stream)).text == said


@ON_EACH_DOOR
async def test_unknown_events_are_passed_or_left_out(tmp_path: Path, door: Door) -> None:
    async with world(tmp_path) as it:
        it.bad.default = parse(r'unknown event; comment x; say one; unknown event; raw ": x\n\n"; say " two"')
        seen = await it.ask(door)
        assert (seen.status, seen.slug, seen.text) == (200, "", "one two")
        [row] = await it.rows()
        assert row.closed is not None
        assert (row.closed.outcome, row.closed.source) == ("complete", "measured")
        assert it.fails_in_a_row() == 0


async def test_chunks_without_events_pass_through(tmp_path: Path) -> None:
    """A role or a filter chunk says nothing to us, and something to its client: same dialect, same bytes."""
    chunk = '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"prompt_filter_results":[{"x":1}]}'
    async with world(tmp_path) as it:
        it.bad.will(f"raw {json.dumps(f'data: {chunk}' + chr(10) * 2)}; say one")
        async with await it.running.connect() as connection:
            reply = await chat(connection, "hello", key=KEY, model="alone", stream=True)
    assert reply.text() == "one"
    assert json.loads(next(reply.events())) == json.loads(chunk)


@ON_EACH_DOOR
@pytest.mark.parametrize("then", ["reset", "cut", "stall"])
async def test_a_whole_answer_is_complete_whatever_the_socket_does_next(tmp_path: Path, door: Door, then: str) -> None:
    async with world(tmp_path, short=True) as it:
        it.bad.will(rf'say* "all of it"; raw "data: [DONE]\n\n"; {then}')
        seen = await it.ask(door)
        assert (seen.slug, seen.text) == ("", "all of it")
        [row] = await it.rows()
        assert row.closed is not None
        assert row.closed.outcome == "complete"
        assert it.fails_in_a_row() == 0


# --- connections -------------------------------------------------------------------------------------------------------


@ON_EACH_DOOR
async def test_closes_an_idle_connection_before_its_reuse(tmp_path: Path, door: Door) -> None:
    """No byte was accepted on it: a fresh one serves, and nobody notices."""
    async with world(tmp_path) as it:
        it.bad.will("say one; close idle 1ms")
        await it.ask(door)
        with trio.fail_after(3):
            await it.bad.log.wait_for(lambda log: not log.open_connections)
        assert (await it.ask(door)).status == 200
        assert (it.bad.log.connections_opened, it.bad.log.requests, len(await it.rows())) == (2, 2, 2)


@ON_EACH_DOOR
async def test_closes_an_idle_connection_exactly_at_reuse(tmp_path: Path, door: Door) -> None:
    """Bytes were accepted, and nobody knows what of them was read: it is not sent there again. Elsewhere it is."""
    async with world(tmp_path) as it:
        it.bad.default = parse("say one; close at reuse")
        assert (await it.ask(door)).status == 200
        seen = await it.ask(door)
        assert (seen.status, seen.slug) == (502, "provider_error.cut")
        assert it.bad.log.requests == 1, "it was closed unread"
        assert (await it.ask(door)).status == 200
        assert (await it.ask(door, "both")).route == "good"
        rows = await it.rows()
        assert [row.closed.outcome for row in rows if row.closed] == ["complete", "provider_error.cut"] * 2 + ["complete"]
        assert [row.closed.sent for row in rows if row.closed] == [True] * 5


# --- figures -----------------------------------------------------------------------------------------------------------


@ON_EACH_DOOR
@pytest.mark.parametrize("figures", ["negative", "absurd", "contradictory", "missing"])
async def test_usage_that_can_not_be_is_clamped_and_flagged(tmp_path: Path, door: Door, figures: str) -> None:
    async with world(tmp_path) as it:
        it.bad.will(f"say one two three; usage {figures}")
        assert (await it.ask(door)).text == "one two three"
        [row] = await it.rows()
        flagged = it.running.server.metrics.value("clawproxy_usage_clamped_total", provider="bad")
    closed = row.closed
    assert closed is not None
    assert closed.outcome == "complete"
    assert closed.source == ("estimated" if figures == "missing" else closed.source)
    assert 0 <= (closed.input_tokens or 0) <= 100_000
    assert 1 <= (closed.output_tokens or 0) <= 100_000, "what was said is never free"
    assert (closed.cached_tokens or 0) <= (closed.input_tokens or 0)
    assert flagged == int(figures != "missing")


# --- a credential ------------------------------------------------------------------------------------------------------


@ON_EACH_DOOR
async def test_our_key_is_disabled_after_three_refusals(tmp_path: Path, door: Door, capfd: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path) as it:
        it.bad.default = parse("status 401")
        for _ in range(4):
            seen = await it.ask(door)
            assert (seen.status, seen.slug) == (502, "provider_error.auth"), "never 401"
        assert (it.bad.log.requests, it.credential()) == (3, "disabled")
        assert (await it.ask(door, "both")).route == "good"
        assert it.bad.log.requests == 3
    assert '"alert":true' in capfd.readouterr().err


# --- three in a row ----------------------------------------------------------------------------------------------------


@ON_EACH_DOOR
async def test_another_route_takes_over_unseen(tmp_path: Path, door: Door, nobody: str) -> None:
    """One refuses, one hangs, the third answers: three rows in the ledger, one answer."""
    async with world(tmp_path / "outer") as outer:
        works, hangs = (outer.running.config.providers[name] for name in ("good", "bad"))
        outer.bad.default = parse("stall")
        providers = {
            "refuses": ProviderConfig(base_url=nobody),
            "bad": ProviderConfig(base_url=hangs.base_url, deadlines={"first_token": Duration(LIMIT)}),
            "good": works,
        }
        models = {"three": ModelConfig(tuple(RouteConfig(name, "m") for name in providers))}
        async with world(tmp_path / "inner", providers=providers, models=models, router={"retries": QUICK}) as it:
            seen = await it.ask(door, "three")
            assert (seen.text, seen.route) == ("from the good one", "good")
            closed = [(row.opened.provider, row.opened.reason, row.closed) for row in await it.rows()]
    assert [(name, reason, row.outcome, row.sent) for name, reason, row in closed if row] == [
        ("refuses", "first", "provider_error.unreachable", False),
        ("bad", "failover", "timeout.first_token", True),
        ("good", "failover", "complete", True),
    ]
