"""Providers that fail, limit and come back, over real sockets: what clients see, and what the providers saw."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import clawproxy_cache
from clawproxy.clocks import Deadlines
from clawproxy.config import ModelConfig, PipelineConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.scripted import ScriptedProvider, parse
from clawproxy.scripted.log import fingerprint
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat, fetch
from tests.e2e.test_cache import claw

pytestmark = pytest.mark.timed

KEYS = ("sk-canary-first-0123456789abcdef", "sk-canary-second-0123456789abcd")
FAST = Deadlines(first_token=1.0, stall=1.0, total=3.0, connect=0.5)
QUICK = {"first": "1ms", "longest": "1s"}
"""Settings of retries that wait for next to nothing."""


@attrs.define
class World:
    running: Running
    a: ScriptedProvider
    b: ScriptedProvider

    async def ask(self, prompt: str = "hello", model: str = "test-model", **changes: Any) -> Reply:
        with trio.fail_after(5):
            async with await self.running.connect() as stream:
                return await chat(stream, prompt, key=KEY, model=model, **changes)

    async def metrics(self) -> str:
        async with await trio.open_tcp_stream("127.0.0.1", int(self.running.admin.rsplit(":", 1)[1])) as stream:
            return (await fetch(stream, "GET", "/metrics", headers={"host": "127.0.0.1"})).body.decode()


def keys_seen(provider: ScriptedProvider) -> list[int]:
    """Which of `KEYS` each request came with."""
    known = {fingerprint(f"Bearer {key}"): at for at, key in enumerate(KEYS)}
    return [known[entry.credential or ""] for entry in provider.log.entries]


@asynccontextmanager
async def world(
    tmp_path: Path, *, keys: int = 1, router: dict[str, Any] | None = None, cache: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[World]:
    """Two providers: `a` has so many credentials, `b` one. Models: `test-model` (a, then b), `alone` (a only)."""
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(ScriptedProvider.running()) for _ in range(2)]
        providers = {
            "a": ProviderConfig(base_url=a.base_url, api_keys=tuple(SecretRef("", key) for key in KEYS[:keys])),
            "b": ProviderConfig(base_url=b.base_url, api_key=SecretRef("", KEYS[0])),
        }
        models = {
            "test-model": ModelConfig((RouteConfig("a", "m"), RouteConfig("b", "m"))),
            "alone": ModelConfig((RouteConfig("a", "m"),), unavailable="Back at noon."),
        }
        sections: dict[str, Any] = {"router": {"retries": QUICK, **(router or {})}}
        if cache is not None:
            sections["cache"] = cache
            order = ("audit", "auth", "sanitize", "truncate", "cache", "router", "meter")
            changes |= {"pipeline": PipelineConfig(order=order), "plugins": {"cache": clawproxy_cache}}
        changes = {"providers": providers, "models": models, "sections": sections, "deadlines": FAST, **changes}
        yield World(await stack.enter_async_context(gateway(tmp_path, **changes)), a, b)


def no_key(*texts: str | bytes) -> None:
    for text in texts:
        assert all(key not in (text.decode() if isinstance(text, bytes) else text) for key in KEYS)


# --- credentials -------------------------------------------------------------------------------------------------------


async def test_credentials_take_turns_and_a_limited_one_rests(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path, keys=2) as it:
        for _ in range(4):
            assert (await it.ask(model="alone")).status == 200
        assert keys_seen(it.a) == [0, 1, 0, 1]
        it.a.will_fail(429, retry_after="30")
        assert (await it.ask(model="alone")).status == 200, "the next credential answered"
        for _ in range(3):
            assert (await it.ask(model="alone")).status == 200
        assert keys_seen(it.a)[4:] == [0, 1, 1, 1, 1]
        it.a.will_fail(429, retry_after="40")
        refused = await it.ask(model="alone")
        assert refused.status == 429
        asked = it.a.log.requests
        again = await it.ask(model="alone")
        assert (again.status, again.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 25 <= int(again.headers["retry-after"]) <= 30, "when the first of them is back"
        assert it.a.log.requests == asked, "nobody asked the provider"
        assert (await it.ask()).headers["x-claw-route"].startswith("b/m"), "another route serves"
        metrics = await it.metrics()
        assert 'clawproxy_credential_rests_total{provider="a",why="cooling"} 2.0' in metrics
    logged = capfd.readouterr().err
    assert '"credential.cooling"' in logged
    no_key(logged, metrics, again.body)


LIMITS: list[tuple[Callable[[], str | None], int, int]] = [
    (lambda: "3", 2, 3),
    (lambda: formatdate(time.time() + 20, usegmt=True), 17, 20),
    (lambda: "999999999", 590, 600),
    (lambda: formatdate(time.time() - 1000, usegmt=True), 1, 1),
    (lambda: "-7", 1, 1),
    (lambda: "soon", 1, 1),
    (lambda: None, 1, 1),
]


@pytest.mark.parametrize(
    ("said", "least", "most"), LIMITS, ids=["seconds", "date", "absurd", "past", "negative", "words", "none"]
)
async def test_every_429_has_a_retry_after_within_bounds(
    tmp_path: Path, said: Callable[[], str | None], least: int, most: int
) -> None:
    async with world(tmp_path) as it:
        it.a.will_fail(429, retry_after=said())
        for _ in range(2):
            reply = await it.ask(model="alone")
            assert reply.status == 429
            assert least <= int(reply.headers["retry-after"]) <= most
        [*_, end] = await claw(it.running, "hello", model="alone")
        assert (end["error"], end["code"]) == ("provider_error.rate_limited", 429)
        assert 1000 <= end["retry_after_ms"] <= most * 1000
        assert it.a.log.requests == 1


async def test_spent_money_is_503_and_a_refused_key_502_and_both_stop_the_asking(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with world(tmp_path, keys=2) as it:
        body = json.dumps({"error": {"code": "insufficient_quota", "message": "You exceeded your current quota."}})
        it.a.will_fail(429, body=body, retry_after="1", times=2)
        reply = await it.ask(model="alone")
        assert (reply.status, it.a.log.requests) == (503, 2)
        assert (await it.ask(model="alone")).status == 503
        assert it.a.log.requests == 2, "no loop"
        it.running.forget_trouble()
        it.a.default = parse("status 401")
        for _ in range(5):
            reply = await it.ask(model="alone")
            assert reply.status == 502, "never 401"
            [*_, end] = await claw(it.running, "hello", model="alone")
            assert (end["error"], end["code"]) == ("provider_error.auth", 502)
        assert it.a.log.requests == 2 + 2 * 3, "three refusals of each"
        assert (await it.ask("hello")).status == 200
    logged = capfd.readouterr().err
    assert logged.count('"credential.spent"') == 2
    assert logged.count('"credential.disabled"') == 2
    no_key(logged)


async def test_a_socket_belongs_to_the_credential_it_was_opened_with(tmp_path: Path) -> None:
    async with ScriptedProvider.running() as provider:
        keys = tuple(SecretRef("", key) for key in KEYS)
        providers = {"r": ProviderConfig("openai_responses", provider.base_url, websocket=True, api_keys=keys)}
        models = {"test-model": ModelConfig((RouteConfig("r", "m"),))}
        async with gateway(tmp_path, providers=providers, models=models) as running:
            for _ in range(6):
                with trio.fail_after(5):
                    async with await running.connect() as stream:
                        assert (await chat(stream, "script: say hi", key=KEY, stream=True)).text() == "hi"
            assert (provider.log.sockets, provider.log.requests) == (2, 6)
            assert keys_seen(provider) == [0, 1] * 3


# --- retries -----------------------------------------------------------------------------------------------------------


async def test_a_status_is_retried_with_the_same_route_and_each_try_has_its_row(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.a.will_fail(500, times=2)
        reply = await it.ask("hello", model="alone")
        assert (reply.status, it.a.log.requests) == (200, 3)
        ids = {entry.request_id for entry in it.a.log.entries}
        assert len(ids) == 3
        assert "clawproxy_retries_total{reason=" in await it.metrics()
        it.a.will_fail(503, times=9)
        refused = await it.ask(model="alone")
        assert (refused.status, it.a.log.requests) == (503, 6), "max_attempts in all"
        assert refused.json()["error"]["message"] == "Back at noon."


async def test_what_may_be_under_way_is_not_sent_there_again(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        for script in ("cut", "reset", "head; cut"):
            it.running.forget_trouble()
            before = it.a.log.requests
            it.a.will(script)
            assert (await it.ask("hello", model="alone")).status == 502
            assert it.a.log.requests == before + 1, script


async def test_retries_do_not_multiply_the_deadline_and_a_long_retry_after_is_not_waited_for(tmp_path: Path) -> None:
    async with world(
        tmp_path, router={"retries": {"first": "1m", "longest": "1m"}}, deadlines=attrs.evolve(FAST, total=0.3)
    ) as it:
        it.a.default = parse("status 500")
        began = trio.current_time()
        reply = await it.ask("hello", model="alone")
        assert reply.status in (502, 504)
        assert trio.current_time() - began < 1.0
        it.running.forget_trouble()
        it.a.default = parse("status 503 retry-after 100")
        before = it.a.log.requests
        began = trio.current_time()
        assert (await it.ask("hello", model="alone")).status == 503
        assert it.a.log.requests == before + 1
    assert trio.current_time() - began < 10.0


# --- breakers ----------------------------------------------------------------------------------------------------------


async def test_a_provider_that_dies_is_not_felt_and_gets_its_traffic_back(tmp_path: Path) -> None:
    breaker = {"open": "100ms", "longest": "200ms"}
    async with world(tmp_path, router={"breaker": breaker}) as it, trio.open_nursery() as nursery:
        routes: list[str] = []
        statuses: set[int] = set()
        stop = trio.Event()

        async def client() -> None:
            async with await it.running.connect() as stream:
                while not stop.is_set():
                    reply = await chat(stream, "hello", key=KEY, stream=True)
                    statuses.add(reply.status)
                    routes.append(reply.headers["x-claw-route"][0])
                    assert reply.text()

        async def until(condition: Callable[[], bool]) -> None:
            with trio.fail_after(15):
                while not condition():
                    await trio.sleep(0.005)

        for _ in range(4):
            nursery.start_soon(client)
        await until(lambda: len(routes) > 20)
        assert set(routes) == {"a"}
        it.a.default = parse("status 500")
        before = it.a.log.requests
        await until(lambda: routes[-30:] == ["b"] * 30)
        assert it.a.log.requests - before < 5 + 4 + 4, "after the breaker opened only probes go there"
        it.a.default = parse("say hello")
        await until(lambda: routes[-10:] == ["a"] * 10)
        stop.set()
        assert statuses == {200}


@pytest.mark.slow
async def test_under_load_with_the_defaults(tmp_path: Path) -> None:
    """A provider dies and comes back under 100 requests a second: nobody notices, and it has its traffic back within 15 s."""
    seen: list[tuple[float, float, str, int]] = []

    async with world(tmp_path, router={}) as it, trio.open_nursery() as nursery:
        it.a.latency = it.b.latency = 0.02

        async def one() -> None:
            began = trio.current_time()
            async with await it.running.connect() as stream:
                reply = await chat(stream, "hello", key=KEY, model="test-model")
            seen.append((began, trio.current_time() - began, reply.headers.get("x-claw-route", "-")[0], reply.status))

        async def load(scope: trio.CancelScope) -> None:
            with scope:
                while True:
                    nursery.start_soon(one)
                    await trio.sleep(0.01)

        scope = trio.CancelScope()
        nursery.start_soon(load, scope)
        await trio.sleep(1.0)
        died = trio.current_time()
        it.a.default = parse("status 500")
        await trio.sleep(2.0)
        back = trio.current_time()
        it.a.default = parse("say hello")
        with trio.fail_after(15):
            while [route for _, _, route, _ in seen[-20:]] != ["a"] * 20:
                await trio.sleep(0.05)
        scope.cancel()

    assert {status for *_, status in seen} == {200}
    usual = sorted(seconds for began, seconds, *_ in seen if began < died - 0.1)
    without = sorted(seconds for began, seconds, *_ in seen if died + 0.5 < began < back)
    assert len(without) > 50
    assert without[int(0.95 * len(without))] < 2 * usual[int(0.95 * len(usual))] + 0.05


async def test_state_outlives_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "clawproxy.toml"
    async with world(tmp_path, path=file, router={"breaker": {"open": "30s", "longest": "30s"}}) as it:
        it.a.will_fail(500, times=5)
        for _ in range(5):
            assert (await it.ask("hello")).headers["x-claw-route"].startswith("b/m")
        it.b.will_fail(429, retry_after="100")
        assert (await it.ask("hello")).status == 429
        asked = it.a.log.requests, it.b.log.requests
        file.write_text(f"""
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
state_dir = "{tmp_path}/state"
[providers.a]
base_url = "{it.a.base_url}"
api_keys = ["{KEYS[0]}"]
[providers.b]
base_url = "{it.b.base_url}"
api_key = "{KEYS[0]}"
[models.test-model]
routes = [{{ provider = "a", model = "m" }}, {{ provider = "b", model = "m" }}]
[keys.test]
secret = "{KEY}"
""")
        with trio.fail_after(5):
            assert await it.running.server.reloader.reload("test"), it.running.server.gateway.reload_problems
        refused = await it.ask("hello")
        assert (refused.status, refused.json()["error"]["code"]) == (503, "provider_error.breaker_open")
        assert (it.a.log.requests, it.b.log.requests) == asked


# --- when nothing answers ----------------------------------------------------------------------------------------------


async def test_an_older_answer_is_the_last_resort(tmp_path: Path) -> None:
    async with world(tmp_path, cache={"ttl": "1ms", "stale_if_error": "1m"}, router={"breaker": {"enabled": False}}) as it:
        first = await it.ask("hello", model="alone")
        assert (first.status, first.headers["x-claw-cache"]) == (200, "miss")
        await trio.sleep(0.005)
        it.a.default = parse("status 500")
        again = await it.ask("hello", model="alone")
        assert again.status == 200
        assert again.json()["choices"] == first.json()["choices"]
        assert again.headers["x-claw-route"] == "cache/alone"
        assert "degraded" in again.headers["x-claw-notice"]
        assert again.headers["age"].isdecimal()
        frames = await claw(it.running, "hello", model="alone")
        assert frames[-1]["type"] == "llm_response_end"
        never = await it.ask("never asked before", model="alone")
        assert (never.status, never.json()["error"]["message"]) == (502, "Back at noon.")
        for control in ("no-cache", "max-age=1", "no-store"):
            assert (await it.ask("hello", model="alone", headers={"cache-control": control})).status == 502, control
        it.running.forget_trouble()
        it.a.default = parse("status 400")
        assert (await it.ask("hello", model="alone")).status == 400, "what is wrong with a request stays wrong"


async def test_the_operators_sentence_changes_nothing_but_the_words(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.a.default = parse("status 503 retry-after 7")
        reply = await it.ask("hello", model="alone")
        assert (reply.status, reply.headers["retry-after"]) == (503, "7")
        assert (reply.json()["error"]["message"], reply.json()["error"]["code"]) == ("Back at noon.", "provider_error.overloaded")
        [*_, end] = await claw(it.running, "hello", model="alone")
        assert (end["error"], end["message"]) == ("provider_error.overloaded", "Back at noon.")
