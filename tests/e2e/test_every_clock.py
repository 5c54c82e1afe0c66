"""Each clock that runs out says the same three times: to the client, in the log and in the metric (FAULTS: the table of clocks).

Status, slug, clock, limit, setting and fault are compared with the row; the limits are short and the sockets real.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy.clocks import Deadlines, Rate
from clawproxy.config import ModelConfig, PoolConfig, ProviderConfig, RouteConfig
from clawproxy.config.schema import Duration
from clawproxy.ops.logs import LOG, Ration
from tests.e2e.faultworld import error_of, over_websocket
from tests.e2e.harness import CALM, KEY, Running, gateway
from tests.e2e.http_client import Reply, chat, chat_body
from tests.e2e.websocket_client import Frames, open_raw

pytestmark = pytest.mark.timed

FAST = Deadlines(first_token=0.2, stall=0.2, total=5.0, connect=0.2, queue=0.2, write=0.2, head=0.2, body=0.2, auth=0.2)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(LOG, "stream", stream)
    monkeypatch.setattr(LOG, "level", 10)
    monkeypatch.setattr(LOG, "ration", Ration(1000, 1000))
    return stream


async def line_of(log: io.StringIO, clock: str) -> dict[str, Any]:
    """The line that tells of a clock, once it is there."""
    with trio.fail_after(3):
        while True:
            for line in map(json.loads, log.getvalue().splitlines()):
                if line.get("clock") == clock:
                    return dict(line)
            await trio.sleep(0.005)


async def check(log: io.StringIO, running: Running, clock: str, slug: str, limit: float, fault: str, setting: str = "") -> None:
    line = await line_of(log, clock)
    said = {name: line.get(name) for name in ("error", "clock", "limit_ms", "setting", "fault")}
    setting = setting or f"deadlines.{clock}"
    assert said == {"error": slug, "clock": clock, "limit_ms": round(limit * 1000), "setting": setting, "fault": fault}
    with trio.fail_after(3):
        await running.at_rest()
    assert running.server.metrics.value("clawproxy_timeouts_total", clock=clock, fault=fault) >= 1


PROVIDERS = [
    # clock, script, limit, status
    ("first_token", "stall", 0.2, 504),
    ("first_token", "head; stall", 0.2, 504),
    ("stall", "say one; stall", 0.2, 200),
    ("stall_reasoning", "reasoning hm; stall", 0.4, 200),
    ("rate", "tokens 1000 every 20ms", 0.3, 200),
]


@pytest.mark.parametrize(("clock", "script", "limit", "status"), PROVIDERS, ids=str)
async def test_a_provider_that_is_slow(
    tmp_path: Path, log: io.StringIO, clock: str, script: str, limit: float, status: int
) -> None:
    slow = Rate(0.3, 200.0)
    slug = "timeout.stall" if clock == "stall_reasoning" else f"timeout.{clock}"
    async with gateway(tmp_path, deadlines=attrs.evolve(FAST, rate=slow) if clock == "rate" else FAST) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                reply = await chat(connection, f"script: {script}", key=KEY, stream=True)
            assert reply.status == status
            said = error_of(reply)
            assert said["code"] == slug
            for words in (f"Clock `{clock}`", f"{limit:g} s", f"setting deadlines.{clock};", "at fault: provider"):
                assert words in said["message"]
            await check(log, running, clock, slug, limit, "provider")
            [*_, end] = await over_websocket(running, f"script: {script}")
        assert (end["error"], end["clock"], end["limit_ms"]) == (slug, clock, round(limit * 1000))
        assert (end["code"], end["setting"]) == (504, f"deadlines.{clock}")


async def test_one_that_answers_fast_enough_is_not_cut(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=attrs.evolve(FAST, rate=Rate(0.1, 20.0))) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                reply = await chat(connection, "script: tokens 40 every 10ms", key=KEY, stream=True)
    assert "[DONE]" in list(reply.events())


@pytest.mark.parametrize("where", ["provider", "model"])
async def test_the_setting_that_is_named_is_the_one_that_holds(tmp_path: Path, log: io.StringIO, where: str) -> None:
    own = {"stall": Duration(0.1)}
    async with gateway(tmp_path / "one", deadlines=FAST) as other:
        base_url = other.config.providers["scripted"].base_url
        provider = ProviderConfig(base_url=base_url, deadlines=own if where == "provider" else {"stall": Duration(9.0)})
        model = ModelConfig((RouteConfig("own", "m"),), deadlines=own if where == "model" else {})
        changes: dict[str, Any] = {"providers": {"own": provider}, "models": {"test-model": model}}
        async with gateway(tmp_path / "two", deadlines=FAST, **changes) as running:
            with trio.fail_after(5):
                [*_, end] = await over_websocket(running, "script: say a; stall")
            setting = "providers.own.deadlines.stall" if where == "provider" else "models.test-model.deadlines.stall"
            assert (end["clock"], end["limit_ms"], end["setting"]) == ("stall", 100, setting)
            await check(log, running, "stall", "timeout.stall", 0.1, "provider", setting)


async def test_total_names_who_held_it(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=attrs.evolve(FAST, total=0.2, first_token=5.0)) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                reply = await chat(connection, "script: stall", key=KEY)
        assert reply.status == 504
        message = error_of(reply)["message"]
        assert "setting deadlines.total; at fault: provider" in message
        assert "Last held by provider `scripted`" in message
        await check(log, running, "total", "timeout.total", 0.2, "provider")


async def test_a_client_shortens_total_and_it_is_its_own(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=FAST) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                headers = {"x-claw-deadline-ms": "100"}
                reply = await chat(connection, "script: stall", key=KEY, headers=headers)
        assert reply.status == 504
        await check(log, running, "total", "timeout.total", 0.1, "client", "deadline_ms")


async def second_of_two(running: Running) -> Reply:
    """What a request is answered while another holds the only place."""
    async with await running.connect() as first, await running.connect() as second, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: chat(first, "script: stall", key=KEY))
        while not running.provider.log.in_progress and not running.server.gateway.in_flight:
            await trio.sleep(0.005)
        await trio.sleep(0.03)
        reply = await chat(second, "script: say hi", key=KEY)
        nursery.cancel_scope.cancel()
    return reply


async def test_no_place_in_the_pool_or_in_the_gateway(tmp_path: Path, log: io.StringIO) -> None:
    deadlines = attrs.evolve(FAST, first_token=5.0)
    async with gateway(tmp_path / "one", deadlines=deadlines) as other:
        base_url = other.config.providers["scripted"].base_url
        small = {"scripted": ProviderConfig(base_url=base_url, pool=PoolConfig(max=1))}
        full: list[dict[str, Any]] = [{"providers": small}, {"limits": attrs.evolve(CALM, in_flight=1)}]
        for number, changes in enumerate(full):
            async with gateway(tmp_path / str(number), deadlines=deadlines, **changes) as running:
                with trio.fail_after(5):
                    reply = await second_of_two(running)
                    assert reply.status == 503
                    assert reply.headers["retry-after"] == "1"
                    assert error_of(reply)["code"] == "timeout.queue"
                    await check(log, running, "queue", "timeout.queue", 0.2, "gateway")
                line = await line_of(log, "queue")
                assert line.get("provider") == ("scripted" if not number else None)
                log.seek(0)
                log.truncate()


async def _say_nothing(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def deaf() -> AsyncIterator[int]:
    """A port that accepts and says nothing."""
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, _say_nothing, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_a_handshake_that_hangs_is_the_connect_clocks(tmp_path: Path, log: io.StringIO) -> None:
    async with deaf() as port:
        providers = {"scripted": ProviderConfig(base_url=f"https://127.0.0.1:{port}/v1")}
        async with gateway(tmp_path, deadlines=FAST, providers=providers) as running:
            with trio.fail_after(5):
                async with await running.connect() as connection:
                    reply = await chat(connection, "hello", key=KEY)
            assert reply.status == 504
            assert error_of(reply)["code"] == "timeout.connect"
            await check(log, running, "connect", "timeout.connect", 0.2, "provider")
            assert (await line_of(log, "connect"))["step"] == "tls"


@pytest.mark.parametrize(("clock", "sent"), [("head", "GET / HTT"), ("body", "POST"), ("idle", "whole")])
async def test_a_connection_that_is_slow_or_idle(tmp_path: Path, log: io.StringIO, clock: str, sent: str) -> None:
    if sent == "POST":
        sent = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n"
            "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
    async with gateway(tmp_path, deadlines=attrs.evolve(FAST, idle=0.2)) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                if clock == "idle":
                    await chat(connection, "script: say hi", key=KEY)
                else:
                    await connection.send_all(sent.encode())
                answer = b""
                while data := await connection.receive_some():
                    answer += data
        if clock == "idle":
            assert answer == b""
        else:
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert f"timeout.{clock}".encode() in answer
        await check(log, running, clock, f"timeout.{clock}", 0.2, "client")


async def test_a_websocket_that_says_nothing(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=attrs.evolve(FAST, idle_ws=0.2)) as running:
        for clock, key in (("auth", ""), ("idle_ws", KEY)):
            with trio.fail_after(5):
                async with await running.connect() as connection:
                    frames = Frames(connection, await open_raw(connection, key))
                    frame = await frames.next()
                    if clock == "idle_ws":
                        assert frame["type"] == "auth_ok"
                        frame = await frames.next()
            slug = "timeout.idle" if clock == "idle_ws" else "timeout.auth"
            assert (frame["error"], frame["clock"], frame["limit_ms"]) == (slug, clock, 200)
            await check(log, running, clock, slug, 0.2, "client")


async def test_a_client_that_does_not_read(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=attrs.evolve(FAST, stall=5.0)) as running:
        running.provider.will("; ".join(["say* " + "x" * 60_000] * 250))
        with trio.fail_after(10):
            async with await running.connect() as connection:
                body = chat_body("hello", stream=True)
                head = (
                    f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                await connection.send_all(head.encode() + body)
                await check(log, running, "write", "timeout.write", 0.2, "client")


async def test_a_websocket_that_answers_no_ping(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=attrs.evolve(FAST, keepalive_ws=0.1)) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                await open_raw(connection, KEY)
                line = await line_of(log, "keepalive_ws")
    assert (line["limit_ms"], line["setting"], line["fault"]) == (200, "deadlines.keepalive_ws", "client")
