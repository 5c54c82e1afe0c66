"""A gateway that asks its provider over WebSockets: its clocks, its cancellation, its books, with the client on HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import ModelConfig, RouteConfig
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, fetch

NAME = "openai_responses"


@asynccontextmanager
async def asking_over_sockets(tmp_path: Path, sections: dict[str, Any] | None = None, **clocks: Any) -> AsyncIterator[Running]:
    models = {"test-model": ModelConfig((RouteConfig(NAME, "scripted-1"),))}
    deadlines = attrs.evolve(Deadlines(), **clocks)
    changes: dict[str, Any] = {"models": models, "dialects": {NAME: "/v1"}, "websocket": True, "deadlines": deadlines}
    async with gateway(tmp_path, sections=sections, **changes) as running:
        yield running


def body_of(script: str) -> bytes:
    return json.dumps({"model": "test-model", "stream": True, "input": f"script: {script}"}).encode()


async def ask(running: Running, script: str) -> Reply:
    async with await running.connect() as stream:
        with trio.fail_after(10):
            headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
            return await fetch(stream, "POST", "/v1/responses", headers=headers, body=body_of(script))


async def test_answers_share_a_socket_and_each_has_its_row(tmp_path: Path) -> None:
    async with asking_over_sockets(tmp_path) as running:
        for _ in range(3):
            reply = await ask(running, "say Hello there.; usage 11 7")
            assert reply.status == 200
            assert b"event: response.completed" in reply.body
        await running.at_rest()
        assert (running.provider.log.sockets, running.provider.log.requests) == (1, 3)
        store = running.server.gateway.app.store
        await store.flush()
        rows = await store.rows()
        assert [(row.closed.input_tokens, row.closed.output_tokens) for row in rows if row.closed] == [(11, 7)] * 3


@pytest.mark.timed
@pytest.mark.parametrize("script", ["stall", "say One; stall", "tokens 100000 every 1ms"])
async def test_a_client_that_leaves_closes_the_providers_socket(tmp_path: Path, script: str) -> None:
    """Within 20 ms, the best of five: a busy machine can only add to it."""
    async with asking_over_sockets(tmp_path) as running:
        log, late = running.provider.log, []
        for number in range(1, 6):
            body = body_of(script)
            head = ["POST /v1/responses HTTP/1.1", "host: g", f"authorization: Bearer {KEY}"]
            head += ["content-type: application/json", f"content-length: {len(body)}"]
            async with await running.connect() as stream:
                await stream.send_all("\r\n".join([*head, "", ""]).encode() + body)
                with trio.fail_after(2):
                    while log.requests < number:
                        await trio.sleep(0.001)
                    if script != "stall":
                        await stream.receive_some(1000)
                left = time.time()
            with trio.fail_after(2):
                await log.wait_for(lambda log: not log.in_progress)
            assert log.last.state == "closed_by_peer"
            assert log.last.closed_at is not None
            late.append(log.last.closed_at - left)
        assert min(late) < 0.02, late
        with trio.fail_after(2):
            await running.at_rest()
        assert not log.malformed


async def test_a_slow_upgrade_is_the_connect_clocks(tmp_path: Path) -> None:
    again = {"router": {"retries": {"first": "1ms"}}}
    async with asking_over_sockets(tmp_path, again, connect=0.05) as running:
        running.provider.upgrade = "hang"
        reply = await ask(running, "say Hello.")
        assert reply.status == 200, "nothing had been asked: the router tries again, and it is HTTP's turn"
        await running.at_rest()
        assert [entry.method for entry in running.provider.log.entries] == ["POST"]
        store = running.server.gateway.app.store
        await store.flush()
        outcomes = [(row.closed.outcome, row.closed.sent) for row in await store.rows() if row.closed]
        assert outcomes == [("timeout.connect", False), ("complete", True)]


@pytest.mark.parametrize(
    ("script", "clock"), [("stall", "first_token"), ("begin; stall", "first_token"), ("say One; stall", "stall")]
)
async def test_the_clocks_of_an_attempt_run_over_sockets(tmp_path: Path, script: str, clock: str) -> None:
    async with asking_over_sockets(tmp_path, first_token=0.05, stall=0.05) as running:
        reply = await ask(running, script)
        assert f"timeout.{clock}".encode() in reply.body
        await running.at_rest()
        assert running.provider.log.counts["closed_by_peer"] == 1


async def test_a_cut_in_the_answer_is_told_and_not_asked_again(tmp_path: Path) -> None:
    async with asking_over_sockets(tmp_path) as running:
        reply = await ask(running, "say* One; pause 10ms; reset")
        assert b"provider_error.cut" in reply.body
        assert b"response.completed" not in reply.body
        reply = await ask(running, "begin; cut")
        assert reply.status == 502
        assert running.provider.log.requests == 2
        await running.at_rest()
