"""`clawproxy doctor` on what real runs of the gateway wrote: each prepared trouble must be named, with whose fault it is, the
setting that holds it and what to change, before everything else.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import Config, KeyConfig, ModelConfig, PoolConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.config.schema import Duration, LimitsConfig
from clawproxy.context import Exchange
from clawproxy.doctor import Finding, as_text, diagnose, gather
from clawproxy.doctor.balancers import Balancer, named
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import ChatRequest
from clawproxy.ops.logs import LOG, Ration
from clawproxy.scripted import ScriptedProvider
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import chat, chat_body
from tests.e2e.websocket_client import Frames, open_raw

pytestmark = pytest.mark.timed

FAST = Deadlines(connect=0.1, queue=0.1, first_token=0.2, stall=0.2, total=2.0, keepalive_sse=0.05, keepalive_ws=5.0, write=0.5)
SLOW = attrs.evolve(FAST, first_token=5.0, stall=5.0, stall_reasoning=5.0, total=10.0, keepalive_sse=4.0)
OLD = "sk-test-old-0123456789abcdefghijklmnop"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(LOG, "stream", stream)
    monkeypatch.setattr(LOG, "level", 20)
    monkeypatch.setattr(LOG, "ration", Ration(50, 5))
    return stream


async def ask(running: Running, script: str, times: int = 3, key: str = KEY, **changes: Any) -> list[int]:
    statuses = []
    for _ in range(times):
        async with await running.connect() as connection:
            statuses.append((await chat(connection, f"script: {script}", key=key, **changes)).status)
    return statuses


async def all_at_once(clients: int, running: Running, script: str, times: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(partial(ask, running, script, times))


async def leave_after(running: Running, seconds: list[float], stream: bool) -> None:
    """Clients that ask, all at once, and close their connection after so long."""

    async def one(after: float) -> None:
        async with await running.connect() as connection:
            body = chat_body("script: stall", stream=stream)
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            await connection.send_all(head.encode() + body)
            await trio.sleep(after)

    async with trio.open_nursery() as nursery:
        for after in seconds:
            nursery.start_soon(one, after)
    await running.at_rest()


def examine(log: io.StringIO, running: Running, behind: Balancer | None = None) -> list[Finding]:
    findings = diagnose(running.config, gather(log.getvalue().splitlines()), behind)
    text = as_text(findings, gather(log.getvalue().splitlines()))
    assert all(len(line) <= 80 or "->" in line for line in text.splitlines()), text
    return findings


def case(run: Callable[..., Any]) -> Callable[..., Any]:
    """A trouble takes at most so long."""

    async def bounded(tmp_path: Path, log: io.StringIO) -> None:
        with trio.fail_after(8):
            await run(tmp_path, log)

    bounded.__name__ = run.__name__
    return bounded


# --- the ten, and a few more --------------------------------------------------------------------------------------------------


@case
async def test_client_idle_cut(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=attrs.evolve(FAST, idle_ws=0.1)) as running:
        for _ in range(2):
            async with await running.connect() as connection:
                frames = Frames(connection, await open_raw(connection, KEY))
                while (await frames.next())["type"] != "error":
                    pass
        first, *_ = examine(log, running)
    assert (first.cause, first.clock, first.setting) == ("client_idle_cut", "idle_ws", "deadlines.idle_ws")
    assert (first.count, first.fault) == (2, "client")
    assert [(change.key, change.value) for change in first.change] == [("deadlines.idle_ws", "500ms")]


@case
async def test_balancer_idle_cut(tmp_path: Path, log: io.StringIO) -> None:
    """Something closes every quiet connection after 1.2 s; the gateway's keep-alives come later."""
    async with gateway(tmp_path, deadlines=SLOW) as running:
        await leave_after(running, [1.2] * 5 + [0.3], stream=True)
        first, *others = examine(log, running, named("nginx", 1.2))
    assert (first.cause, first.fault, first.count) == ("balancer_idle_cut", "network", 5)
    assert (first.clock, first.setting) == ("keepalive_sse", "deadlines.keepalive_sse")
    assert first.change[0].key == "deadlines.keepalive_sse"
    assert first.change[0].value == "500ms"
    assert "nginx" in first.why
    assert any(other.cause == "balancer_contradiction" and other.setting == "deadlines.keepalive_sse" for other in others)


@case
async def test_clients_that_give_up(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=SLOW) as running:
        await leave_after(running, [1.0] * 4, stream=False)
        first, *_ = examine(log, running)
    assert (first.cause, first.fault, first.count, first.setting) == ("client_timeout", "client", 4, "deadlines.total")
    assert "stream" in first.why


@case
async def test_slow_first_token(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=FAST) as running:
        assert await ask(running, "pause 120ms; say late", 4) == [200] * 4
        assert await ask(running, "pause 900ms; say later", 3) == [504] * 3
        first, *_ = examine(log, running)
    assert (first.cause, first.clock, first.setting) == ("slow_first_token", "first_token", "deadlines.first_token")
    assert (first.fault, first.count, first.of) == ("provider", 3, 7)
    assert first.where[:2] == ("provider scripted", "model test-model")
    [change] = first.change
    assert (change.key, change.value) == ("models.test-model.deadlines.first_token", "500ms")


@case
async def test_a_provider_that_hangs_is_not_waited_for_longer(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=attrs.evolve(FAST, first_token=0.4, total=2.0)) as running:
        await ask(running, "say quick", 25)
        await ask(running, "stall", 1)
        first, *_ = examine(log, running)
    assert first.cause == "slow_first_token"
    assert "fail sooner" in first.why
    assert first.change[0].value not in ("", "400ms", "1s")


@case
async def test_stall(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=FAST) as running:
        await ask(running, "say a; stall", 2, stream=True)
        first, *_ = examine(log, running)
    assert (first.cause, first.clock, first.setting) == ("stall", "stall", "deadlines.stall")
    assert (first.fault, first.count) == ("provider", 2)
    assert [(c.key, c.value) for c in first.change] == [("models.test-model.deadlines.stall", "500ms")]


@case
async def test_what_another_route_made_good_is_seen(tmp_path: Path, log: io.StringIO) -> None:
    async with two_providers(tmp_path) as (changes, other), gateway(tmp_path / "two", deadlines=FAST, **changes) as running:
        other.by_model["m-1"] = _script("stall")
        for _ in range(2):
            async with await running.connect() as connection:
                assert (await chat(connection, "hello", key=KEY)).status == 200
        first, *_ = examine(log, running)
    assert (first.cause, first.count, first.saved) == ("slow_first_token", 0, 2)
    assert first.where[0] == "provider one"


def _script(text: str) -> Any:
    from clawproxy.scripted import parse

    return parse(text)


@asynccontextmanager
async def two_providers(tmp_path: Path) -> AsyncIterator[tuple[dict[str, Any], ScriptedProvider]]:
    async with gateway(tmp_path / "one") as other:
        base_url = other.config.providers["scripted"].base_url
        providers = {name: ProviderConfig(base_url=base_url) for name in ("one", "two")}
        models = {"test-model": ModelConfig((RouteConfig("one", "m-1"), RouteConfig("two", "m-2")))}
        yield {"providers": providers, "models": models}, other.provider


@case
async def test_exhausted_pool(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path / "one") as other:
        base_url = other.config.providers["scripted"].base_url
        providers = {"scripted": ProviderConfig(base_url=base_url, pool=PoolConfig(max=2))}
        async with gateway(tmp_path / "two", deadlines=SLOW, providers=providers) as running:
            await all_at_once(6, running, "pause 400ms; say done", 1)
        first, *_ = examine(log, running)
    assert (first.cause, first.clock, first.fault) == ("exhausted_pool", "queue", "gateway")
    assert (first.count, first.setting) == (4, "providers.scripted.pool.max")
    assert [(c.key, c.value) for c in first.change] == [("providers.scripted.pool.max", "4")]


@case
async def test_dns(tmp_path: Path, log: io.StringIO) -> None:
    providers = {"gone": ProviderConfig(base_url="http://nowhere.invalid/v1")}
    models = {"test-model": ModelConfig((RouteConfig("gone", "m"),))}
    deadlines = attrs.evolve(SLOW, connect=3.0)
    async with gateway(tmp_path, deadlines=deadlines, providers=providers, models=models) as running:
        await ask(running, "say hi", 2)
        first, *_ = examine(log, running)
    assert (first.cause, first.setting) == ("dns", "providers.gone.base_url")
    assert (first.fault, first.count) == ("provider", 2)
    assert "nowhere.invalid" in first.why


def _hangs(host: str) -> list[Any]:
    time.sleep(0.3)
    raise socket.gaierror(socket.EAI_AGAIN, host)


@case
async def test_dns_that_hangs(tmp_path: Path, log: io.StringIO) -> None:
    providers = {"gone": ProviderConfig(base_url="http://slow.example/v1")}
    models = {"test-model": ModelConfig((RouteConfig("gone", "m"),))}
    async with gateway(tmp_path, deadlines=SLOW, providers=providers, models=models) as running:
        resolver = running.server.gateway.current.upstream._providers["gone"]._dialer._resolver  # type: ignore[attr-defined]
        resolver._lookup = _hangs
        await ask(running, "say hi", 2)
        first, *_ = examine(log, running)
    assert (first.cause, first.clock, first.setting) == ("dns", "connect", "providers.gone.base_url")


@case
async def test_expired_token(tmp_path: Path, log: io.StringIO) -> None:
    keys = {"test": KeyConfig(SecretRef("", KEY)), "old": KeyConfig(SecretRef("", OLD), expires=time.time() - 60)}
    async with gateway(tmp_path, keys=keys) as running:
        assert await ask(running, "say hi", 3, key=OLD) == [401] * 3
        assert await ask(running, "say hi", 1) == [200]
        first, *_ = examine(log, running)
    assert (first.cause, first.setting, first.fault, first.count) == ("expired_token", "keys.old.expires", "client", 3)


class Blocking:
    """A plugin that holds the event loop."""

    @hookimpl
    async def prepare_request(self, exchange: Exchange, request: ChatRequest) -> ChatRequest:
        time.sleep(0.15)  # noqa: ASYNC251  # the fault it stands for
        await trio.lowlevel.checkpoint()
        return request


@case
async def test_overload(tmp_path: Path, log: io.StringIO) -> None:
    limits = LimitsConfig(shed_lag=Duration(0.02))
    base = Config()
    pipeline = attrs.evolve(base.pipeline, order=("audit", "auth", "blocking", "router", "meter"))
    async with gateway(tmp_path, plugins={"blocking": Blocking()}, limits=limits, pipeline=pipeline) as running:
        await all_at_once(8, running, "say hi", 3)
        first, *_ = examine(log, running)
    assert (first.cause, first.setting, first.fault) == ("overload", "limits.shed_lag", "gateway")
    assert first.count >= 1


@case
async def test_clock_contradiction(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=Deadlines(total=5.0, first_token=30.0)) as running:
        await ask(running, "say fine", 2)
        findings = examine(log, running)
    contradictions = [finding for finding in findings if finding.cause == "clock_contradiction"]
    assert len(findings) == len(contradictions)
    about = next(finding for finding in contradictions if "first_token" in finding.why)
    assert (about.clock, about.setting, about.fault) == ("total", "deadlines.total", "operator")
    assert [(c.key, c.value) for c in about.change] == [("deadlines.total", "45s")]


@case
async def test_disconnecting_client(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path, deadlines=SLOW) as running:
        await ask(running, "say fine", 2)
        await leave_after(running, [0.06, 0.14, 0.25, 0.42, 0.6], stream=True)
        findings = examine(log, running)
    [only] = [finding for finding in findings if finding.cause != "clock_contradiction"]
    assert (only.cause, only.fault, only.count, only.setting) == ("disconnecting_client", "client", 5, None)
    assert only.where == ("key test",)
    assert not only.wrong
    assert not only.change


@case
async def test_a_healthy_gateway(tmp_path: Path, log: io.StringIO) -> None:
    async with gateway(tmp_path) as running:
        await ask(running, "say fine", 3)
        assert examine(log, running) == []
    assert "Nothing is wrong." in as_text([], gather(log.getvalue().splitlines()))
