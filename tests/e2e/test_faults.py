"""What a provider does, and what the client sees, on HTTP and on the WebSocket, over real sockets (FAULTS: one test a row).

Each case says what the provider is scripted to do, and the status, slug, clock and ledger row that must come of it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio_websocket import open_websocket_url

from clawproxy.clocks import Deadlines
from clawproxy.config import ModelConfig, ProviderConfig, RouteConfig
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat

FAST = Deadlines(first_token=0.3, stall=0.3, total=2.0, connect=0.3, queue=0.3, write=0.5)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with gateway(tmp_path, deadlines=FAST) as running:
        yield running


async def over_websocket(running: Running, prompt: str, **parameters: Any) -> list[dict[str, Any]]:
    async with open_websocket_url(running.websocket, extra_headers=[(b"authorization", f"Bearer {KEY}".encode())]) as ws:
        assert json.loads(await ws.get_message())["type"] == "auth_ok"
        await ws.send_message(
            json.dumps({"type": "llm_request", "id": "r", "model": "test-model", "prompt": prompt, "parameters": parameters})
        )
        frames: list[dict[str, Any]] = []
        while not frames or frames[-1]["type"] not in {"llm_response_end", "error"}:
            frames.append(json.loads(await ws.get_message()))
        return frames


async def last_row(running: Running) -> Any:
    with trio.fail_after(3):
        await running.at_rest()
    await running.server.gateway.app.store.flush()
    rows = await running.server.gateway.app.store.rows()
    return max(rows, key=lambda row: row.opened.opened)


def error_of(reply: Reply) -> dict[str, Any]:
    """The error document, or the error event at the end of a stream."""
    if reply.status >= 400:
        return dict(reply.json()["error"])
    events = list(reply.events())
    assert "[DONE]" not in events, "an answer that failed has no [DONE]"
    assert reply.whole, "the body ends cleanly after the error event"
    return dict(json.loads(events[-1])["error"])


BEFORE = [
    # script, status, slug, the attempt's outcome
    ("stall", 504, "timeout.first_token"),
    ("head; stall", 504, "timeout.first_token"),
    ("status 500", 502, "provider_error.server"),
    ("status 503", 503, "provider_error.overloaded"),
    ("status 529", 503, "provider_error.overloaded"),
    ("status 401", 502, "provider_error.auth"),
    ("status 403", 502, "provider_error.auth"),
    ("status 429 retry-after 3", 429, "provider_error.rate_limited"),
    ("status 404", 502, "provider_error.not_found"),
    ("redirect http://127.0.0.1:1/elsewhere", 502, "provider_error.redirect"),
    ("cut", 502, "provider_error.cut"),
    ("reset", 502, "provider_error.cut"),
    ("error code overloaded The engine is overloaded", 503, "provider_error.overloaded"),
]


CASES = [(*row, stream) for row in BEFORE for stream in (True, False) if stream or not row[0].startswith("error")]


@pytest.mark.parametrize(("script", "status", "slug", "stream"), CASES, ids=str)
async def test_before_the_first_content(running: Running, script: str, status: int, slug: str, stream: bool) -> None:
    prompt = f"script: {script}"
    with trio.fail_after(5):
        async with await running.connect() as connection:
            reply = await chat(connection, prompt, key=KEY, stream=stream)
        assert reply.status == status
        assert error_of(reply)["code"] in {slug, slug.rpartition(".")[2], "rate_limit_exceeded"}
        assert reply.headers["x-request-id"]
        row = await last_row(running)
        assert row.closed.outcome == slug
        assert row.closed.sent
        [*_, end] = await over_websocket(running, prompt, stream=stream)
    assert (end["type"], end["code"], end["error"]) == ("error", status, slug)
    if slug.startswith("timeout."):
        clock = slug.removeprefix("timeout.")
        assert (end["clock"], end["limit_ms"], end["setting"]) == (clock, 300, f"deadlines.{clock}")
    if "retry-after" in script:
        assert reply.headers["retry-after"] == "3"
        assert 2000 < end["retry_after_ms"] <= 3000, "what is left of it: the provider was not asked a second time"


AFTER = [
    ("say one; stall", "timeout.stall"),
    ("say one; cut", "provider_error.cut"),
    ("say one; reset", "provider_error.cut"),
    ("say one; bad json", "provider_error.malformed"),
    ("say one; error code server_error It broke", "provider_error.server"),
]


@pytest.mark.parametrize(("script", "slug"), AFTER, ids=[row[0] for row in AFTER])
async def test_in_the_middle_of_the_answer(running: Running, script: str, slug: str) -> None:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            reply = await chat(connection, f"script: {script}", key=KEY, stream=True)
        assert reply.status == 200
        assert reply.text() == "one"
        assert error_of(reply)["code"] == slug
        row = await last_row(running)
        assert row.closed.outcome == slug
        assert row.closed.source == "estimated"
        assert row.closed.output_tokens >= 1
        frames = await over_websocket(running, f"script: {script}")
    assert [frame["type"] for frame in frames] == ["llm_response_start", "llm_token", "error"]
    assert frames[-1]["error"] == slug


async def test_a_whole_answer_is_complete_whatever_the_socket_does_next(running: Running) -> None:
    with trio.fail_after(5):
        done = r'raw "data: [DONE]\n\n"'
        for script in (f"say all of it; {done}; reset", f"say all of it; {done}; stall", f"say all of it; {done}; cut"):
            async with await running.connect() as connection:
                reply = await chat(connection, f"script: {script}", key=KEY, stream=True)
            assert reply.text().strip() == "all of it"
            assert list(reply.events())[-1] == "[DONE]"
            assert (await last_row(running)).closed.outcome == "complete"


async def test_another_route_takes_over_unseen(tmp_path: Path) -> None:
    async with gateway(tmp_path, deadlines=FAST) as other:
        working = other.config.providers["scripted"]
        providers = {
            "refuses": ProviderConfig(base_url="http://127.0.0.1:1/v1"),
            "hangs": working,
            "works": working,
        }
        models = {"test-model": ModelConfig(tuple(RouteConfig(name, f"on-{name}") for name in providers))}
        other.provider.by_model["on-hangs"] = _script("stall")
        async with gateway(
            tmp_path / "second", deadlines=attrs.evolve(FAST, total=5.0), providers=providers, models=models
        ) as running:
            with trio.fail_after(5):
                async with await running.connect() as connection:
                    reply = await chat(connection, "hello", key=KEY, stream=True)
            assert reply.status == 200
            assert reply.text()
            assert "works" in reply.headers["x-claw-route"]
            with trio.fail_after(3):
                await running.at_rest()
            rows = await running.server.gateway.app.store.rows()
            outcomes = {row.opened.provider: row.closed.outcome for row in rows if row.closed}
            assert outcomes == {
                "refuses": "provider_error.unreachable",
                "hangs": "timeout.first_token",
                "works": "complete",
            }
            assert next(row for row in rows if row.opened.provider == "refuses").closed.sent is False  # type: ignore[union-attr]


def _script(text: str) -> Any:
    from clawproxy.scripted import parse

    return parse(text)


async def test_chunks_without_events_pass_through(running: Running) -> None:
    """A role or a filter chunk says nothing to us, and something to its client: same dialect, same bytes."""
    chunk = '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"prompt_filter_results":[{"x":1}]}'
    script = f"raw {json.dumps(f'data: {chunk}' + chr(10) * 2)}; say one"
    with trio.fail_after(5):
        async with await running.connect() as connection:
            reply = await chat(connection, f"script: {script}", key=KEY, stream=True)
    assert reply.text() == "one"
    assert json.loads(next(reply.events())) == json.loads(chunk)
