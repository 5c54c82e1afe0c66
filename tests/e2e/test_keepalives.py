"""Keep-alives on HTTP while a client waits, whatever for, over real sockets."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import ModelConfig, ProviderConfig, RouteConfig
from clawproxy.scripted import parse
from clawproxy.transport.pulse import Pulse
from tests.e2e.harness import CALM, KEY, Running, gateway
from tests.e2e.http_client import Reply, chat, fetch

pytestmark = pytest.mark.timed

FAST = Deadlines(first_token=0.3, stall=0.3, queue=0.3, total=3.0, keepalive_sse=0.05)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ticker looks every 20 ms."""
    begin = Pulse.__init__
    monkeypatch.setattr(Pulse, "__init__", lambda pulse, _step: begin(pulse, 0.02))


def comments(reply: Reply) -> int:
    return reply.body.count(b": keep-alive\n\n")


async def beside_another(running: Running, stream: bool) -> Reply:
    """The answer to a request while another holds the only place."""
    async with await running.connect() as first, await running.connect() as second, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: chat(first, "script: stall", key=KEY))
        while not running.server.gateway.in_flight:
            await trio.sleep(0.005)
        await trio.sleep(0.03)
        reply = await chat(second, "script: say hi", key=KEY, stream=stream)
        nursery.cancel_scope.cancel()
    return reply


@pytest.mark.parametrize("stream", [True, False])
async def test_in_the_queue(tmp_path: Path, stream: bool) -> None:
    """The first one commits the 200, so that what follows is an error event; an answer without `stream` keeps its status."""
    deadlines = attrs.evolve(FAST, first_token=5.0, total=10.0)
    async with gateway(tmp_path, deadlines=deadlines, limits=attrs.evolve(CALM, in_flight=1)) as running:
        with trio.fail_after(5):
            reply = await beside_another(running, stream)
    if not stream:
        assert reply.status == 503
        assert reply.body.startswith(b"{")
        return
    assert reply.status == 200
    assert comments(reply) >= 2
    assert json.loads(list(reply.events())[-1])["error"]["code"] == "timeout.queue"
    assert "[DONE]" not in list(reply.events())


async def test_from_one_attempt_to_the_next(tmp_path: Path) -> None:
    """A committed 200 closes no way: until there is content another route may answer."""
    async with gateway(tmp_path / "one") as other:
        base_url = other.config.providers["scripted"].base_url
        other.provider.by_model["m-1"] = parse("stall")
        other.provider.by_model["m-2"] = parse("pause 150ms; say late")
        providers = {name: ProviderConfig(base_url=base_url) for name in ("one", "two")}
        models = {"test-model": ModelConfig((RouteConfig("one", "m-1"), RouteConfig("two", "m-2")))}
        async with gateway(tmp_path / "two", deadlines=FAST, providers=providers, models=models) as running:
            with trio.fail_after(5):
                async with await running.connect() as connection:
                    reply = await chat(connection, "hello", key=KEY, stream=True)
    assert (reply.status, reply.text()) == (200, "late")
    assert comments(reply) >= 5
    assert list(reply.events())[-1] == "[DONE]"


@pytest.mark.parametrize("target", ["/v1beta/models/test-model:streamGenerateContent?alt=sse", "/api/chat"])
async def test_none_where_the_format_has_no_place_for_one(tmp_path: Path, target: str) -> None:
    async with gateway(tmp_path, deadlines=FAST) as running:
        running.provider.by_model["scripted-1"] = parse("stall")
        gemini = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
        ollama = {"model": "test-model", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        body = json.dumps(gemini if "v1beta" in target else ollama).encode()
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        with trio.fail_after(5):
            async with await running.connect() as connection:
                reply = await fetch(connection, "POST", target, headers=headers, body=body)
    assert reply.status == 504
    assert reply.body.startswith(b"{")


async def test_anthropics_is_a_ping(tmp_path: Path) -> None:
    async with gateway(tmp_path, deadlines=FAST) as running:
        running.provider.by_model["scripted-1"] = parse("pause 200ms; say hi")
        asked = {"model": "test-model", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"x-api-key": KEY, "content-type": "application/json"}
        with trio.fail_after(5):
            async with await running.connect() as connection:
                reply = await fetch(connection, "POST", "/v1/messages", headers=headers, body=json.dumps(asked).encode())
    assert reply.status == 200
    assert reply.body.startswith(b"event: ping\n")
    assert reply.body.count(b"event: ping\n") >= 2
    assert b"message_stop" in reply.body
