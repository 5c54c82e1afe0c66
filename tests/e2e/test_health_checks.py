"""`[providers.NAME.health]`: a provider is asked whether it is there, and its places rest before any client is let down."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
import trio

from clawproxy.config import Config, Duration, HealthConfig, ModelConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.dialects import provider_dialects
from clawproxy.scripted import ScriptedProvider
from clawproxy.secrets import Secret
from clawproxy.upstream.check import Check
from clawproxy.upstream.providers import Providers
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import chat, fetch

OFTEN = HealthConfig(Duration(0.02), timeout=Duration(0.2))
"""More often than a file may say."""


@attrs.define
class Page:
    """A provider of which only the page that lists its models is needed."""

    status: int = 200
    answers: str = "at once"
    seen: list[bytes] = attrs.field(factory=list)
    connections: int = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            head = bytearray()
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some(4096)
                if not data:
                    return
                head += data
            self.seen.append(bytes(head))
            if self.answers == "never":
                await stream.receive_some(1)
            elif self.answers == "at once":
                await stream.send_all(f"HTTP/1.1 {self.status} X\r\ncontent-length: 1000000\r\n\r\n{{".encode())
                await self.left(stream)

    async def left(self, stream: trio.SocketStream) -> None:
        """The rest of the answer is not waited for."""
        try:
            assert await stream.receive_some(1) == b""
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def served(page: Page) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, page.handle, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def check_of(url: str, dialect: str = "openai_chat", **changes: Any) -> Check:
    health = HealthConfig(Duration(10.0), **{"timeout": Duration(0.2)} | changes)
    provider = ProviderConfig(dialect, url, SecretRef("", PROVIDER_KEY), health=health)
    providers = Providers(Config(providers={"p": provider}), provider_dialects({}), lambda ref: Secret(ref.value))
    [check] = providers.checks(Random(1))
    return check


@pytest.mark.parametrize(
    ("page", "result"),
    [
        (Page(200), "ok"),
        (Page(401), "answered"),
        (Page(404), "answered"),
        (Page(429), "answered"),
        (Page(307), "answered"),
        (Page(500), "failed"),
        (Page(503), "failed"),
        (Page(answers="cut"), "unreachable"),
        (Page(answers="never"), "timeout"),
    ],
    ids=["200", "401", "404", "429", "307", "500", "503", "cut", "hangs"],
)
async def test_what_an_answer_says(page: Page, result: str) -> None:
    async with served(page) as url:
        check = check_of(url + "/v1")
        first, second = await check.once(), await check.once()
    bad = result in ("failed", "unreachable", "timeout")
    assert (first.result, first.down, first.failures) == (result, False, int(bad))
    assert (second.result, second.down, second.failures) == (result, bad, 2 * bad)
    assert first.status == (page.status if page.answers == "at once" else None)
    assert page.connections == 2, "each on a connection of its own"
    assert page.seen[0].startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert f"authorization: Bearer {PROVIDER_KEY}".encode() in page.seen[0]


async def test_nobody_there() -> None:
    check = check_of("http://127.0.0.1:1/v1", failures=1)
    checked = await check.once()
    assert (checked.result, checked.down) == ("unreachable", True)
    assert checked.lasts > 10.0 * 1.2 + 0.2


@pytest.mark.parametrize(
    ("dialect", "base", "path"),
    [
        ("openai_chat", "/v1", "/v1/models"),
        ("openai_responses", "/v1", "/v1/models"),
        ("anthropic", "", "/v1/models"),
        ("anthropic", "/v1", "/v1/models"),
        ("gemini", "/v1beta", "/v1beta/models"),
        ("cohere", "/v2", "/v2/models"),
        ("ollama", "", "/api/tags"),
        ("azure", "", "/openai/v1/models"),
    ],
)
async def test_where_each_dialect_lists_its_models(dialect: str, base: str, path: str) -> None:
    page = Page()
    async with served(page) as url:
        assert (await check_of(url + base, dialect).once()).result == "ok"
        assert (await check_of(url + base, dialect, path="/ping?deep=1").once()).result == "ok"
    assert page.seen[0].startswith(f"GET {path} HTTP/1.1\r\n".encode())
    assert page.seen[1].startswith(f"GET {base}/ping?deep=1 HTTP/1.1\r\n".encode())
    assert (b"anthropic-version" in page.seen[0]) == (dialect == "anthropic")


async def test_a_key_that_can_not_be_read_says_nothing_of_the_provider() -> None:
    def unreadable(_: SecretRef) -> Secret:
        raise LookupError

    provider = ProviderConfig(base_url="http://127.0.0.1:1/v1", api_key=SecretRef("env", "NONE"), health=OFTEN)
    [check] = Providers(Config(providers={"p": provider}), provider_dialects({}), unreadable).checks(Random(1))
    for _ in range(3):
        assert (await check.once()).result == "unknown"
    assert not (await check.once()).down


# --- in a gateway ------------------------------------------------------------------------------------------------------


@attrs.define
class World:
    running: Running
    page: Page
    backup: ScriptedProvider

    async def ask(self) -> tuple[int, str, str]:
        """Status, slug or "", route."""
        async with await self.running.connect() as stream:
            reply = await chat(stream, "hello", key=KEY)
        code = reply.json()["error"]["code"] if reply.status >= 400 else ""
        return reply.status, code, reply.headers.get("x-claw-route", "")

    async def admin(self, path: str) -> bytes:
        async with await trio.open_tcp_stream("127.0.0.1", int(self.running.admin.rsplit(":", 1)[1])) as stream:
            reply = await fetch(stream, "GET", path, headers={"host": "127.0.0.1"})
        assert reply.status == 200, "an unhealthy provider makes nobody unready"
        return reply.body

    async def until(self, down: bool) -> dict[str, Any]:
        with trio.fail_after(5):
            while True:
                states = json.loads(await self.admin("/readyz")).get("providers", {})
                if states.get("a", {}).get("down") is down:
                    return dict(states["a"])
                await trio.sleep(0.005)


@asynccontextmanager
async def world(tmp_path: Path, page: Page, *, only: bool = False, a: str = "") -> AsyncIterator[World]:
    """`a`: another address for the provider of that name."""
    async with served(page) as url, ScriptedProvider.running("say from b") as backup:
        key = SecretRef("", PROVIDER_KEY)
        providers = {
            "a": ProviderConfig(base_url=a or url + "/v1", api_key=key, health=OFTEN),
            "b": ProviderConfig(base_url=backup.base_url, api_key=key),
        }
        models = {"test-model": ModelConfig(tuple(RouteConfig(name, "m") for name in "ab"[: 1 if only else 2]))}
        async with gateway(tmp_path, providers=providers, models=models) as running:
            yield World(running, page, backup)


async def test_a_provider_that_is_down_rests_before_a_client_meets_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = Page(503)
    async with world(tmp_path, page) as it:
        state = await it.until(down=True)
        assert (state["result"], state["status"]) == ("failed", 503)
        assert state["failures"] >= 2
        assert await it.ask() == (200, "", "b/m")
        assert b"POST" not in b"".join(page.seen), "no request of a client was spent on it"
        metrics = (await it.admin("/metrics")).decode()
        assert 'clawproxy_provider_up{provider="a"} 0' in metrics
        assert 'clawproxy_provider_checks_total{provider="a",result="failed"}' in metrics
        assert 'clawproxy_breaker_state{model="m",provider="a"} 2.0' in metrics
        page.status = 200
        await it.until(down=False)
        health = it.running.server.gateway.app.shared["router.health"]
        assert all(breaker.state == "closed" for breaker in health.breakers.values()), "what a check opened, a check closes"
        assert 'clawproxy_provider_up{provider="a"} 1' in (await it.admin("/metrics")).decode()
    logged = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    states = [line["state"] for line in logged if line["event"] == "provider.checked"]
    assert states == ["failed", "down", "ok"], "only what is news is logged"
    assert [(line["state"], line["cause"]) for line in logged if line["event"] == "route.breaker"] == [
        ("open", "check"),
        ("closed", "check"),
    ]


async def test_where_it_is_the_only_route_clients_are_told_at_once(tmp_path: Path) -> None:
    async with world(tmp_path, Page(answers="cut"), only=True) as it:
        await it.until(down=True)
        assert (await it.ask())[:2] == (503, "provider_error.breaker_open")


async def test_a_list_of_models_does_not_close_what_requests_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The list is well, answers are not: the breaker is half-open at the most, and one request at a time finds out."""
    async with ScriptedProvider.running("status 500") as lists, world(tmp_path, Page(), a=lists.base_url) as it:
        await it.until(down=False)
        for _ in range(5):
            assert (await it.ask())[::2] == (200, "b/m")
        breakers = it.running.server.gateway.app.shared["router.health"].breakers
        with trio.fail_after(5):
            while breakers["a", "m"].state != "half_open":
                await trio.sleep(0.002)
        assert (await it.ask())[::2] == (200, "b/m"), "the probe failed, and went on"
    logged = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert "closed" not in [line["state"] for line in logged if line["event"] == "route.breaker"]


async def test_off_means_that_nothing_reaches_a_provider(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        await trio.sleep(0.05)
        assert running.provider.log.connections_opened == 0
        assert running.server.gateway.checks.last == {}
