"""The shape of the work (DESIGN, laws 2 and 8): what a request costs grows with what reads bring, not with its answer."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from clawproxy.scripted.script import parse
from clawproxy.testing import claw
from clawproxy.transport import wire as clients
from clawproxy.upstream import wire as providers
from tests.e2e.harness import KEY, gateway
from tests.e2e.http_client import fetch
from tests.e2e.websocket_client import Frames, masked, open_raw

HOOKS = ("_authenticate", "_prepare", "_choose", "_open", "_tap", "_attempt_finished", "_closed")


def counted(pipeline: Any, counts: Counter[str]) -> None:
    """Count every hook of every plugin of a compiled pipeline from now on."""

    def wrapped(place: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counts[place] += 1
            return hook(*args)

        return call

    for kind in HOOKS:
        hooks = tuple([(name, wrapped(f"{name}{kind}", hook)) for name, hook in getattr(pipeline, kind)])
        setattr(pipeline, kind, hooks)


async def test_hooks_are_called_as_often_for_10_tokens_as_for_10_000() -> None:
    seen: list[Counter[str]] = []
    async with claw() as running:
        counts: Counter[str] = Counter()
        counted(running.gateway.current.pipeline, counts)
        for tokens in (10, 10_000):
            counts.clear()
            running.upstream.will_say(*["token "] * tokens)
            answer = await running.ask()
            assert answer.text == "token " * tokens
            seen.append(Counter(counts))
    assert seen[0] == seen[1]
    assert {name.partition("_")[0] for name in seen[0]} >= {"audit", "meter", "router", "sanitize", "truncate"}
    assert set(seen[0].values()) == {1}


class Steps(trio.abc.Instrument):
    """How often the task of a connection was run."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task.name.endswith("Server._connection")


def body(stream: bool) -> bytes:
    return json.dumps({"model": "test-model", "stream": stream, "messages": [{"role": "user", "content": "go"}]}).encode()


HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


@pytest.mark.parametrize("script", ["burst; tokens 500", "tokens 60 every 2ms"])
async def test_one_write_and_one_step_for_each_read_of_the_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    reads, writes = 0, 0
    receive, write = providers.Wire.receive_nowait, clients.Wire.write

    def receive_nowait(self: providers.Wire) -> bytes | None:
        nonlocal reads
        data = receive(self)
        reads += bool(data)
        return data

    async def write_counted(self: clients.Wire, data: bytes, limit: float) -> None:
        nonlocal writes
        writes += 1
        await write(self, data, limit)

    async with gateway(tmp_path) as running, await running.connect() as client:
        running.provider.by_model["scripted-1"] = parse(script)
        await fetch(client, "POST", "/v1/chat/completions", headers=HEADERS, body=body(True))  # connects, and warms up
        monkeypatch.setattr(providers.Wire, "receive_nowait", receive_nowait)
        monkeypatch.setattr(clients.Wire, "write", write_counted)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        reply = await fetch(client, "POST", "/v1/chat/completions", headers=HEADERS, body=body(True))
        trio.lowlevel.remove_instrument(steps)
    assert reply.text().count(" ") > 50
    assert reads >= 1
    assert writes <= reads
    assert steps.count <= reads + 3  # the request, the last look at a connection that goes back to the pool, and no other


async def test_a_whole_answer_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = clients.Wire.write

    async def write_counted(self: clients.Wire, data: bytes, limit: float) -> None:
        sizes.append(len(data))
        await write(self, data, limit)

    async with gateway(tmp_path) as running, await running.connect() as client:
        running.provider.by_model["scripted-1"] = parse("tokens 500")
        monkeypatch.setattr(clients.Wire, "write", write_counted)
        reply = await fetch(client, "POST", "/v1/chat/completions", headers=HEADERS, body=body(False))
    assert reply.status == 200
    assert len(sizes) == 1


async def test_no_request_waits_for_the_collector(tmp_path: Path) -> None:
    """What a request is made of goes with its last reference. As a circle it would stay until the collector comes by, and each
    request would be made of memory that no cache has seen for long (a third of what metering cost)."""
    async with gateway(tmp_path) as running:
        running.provider.by_model["scripted-1"] = parse("tokens 5")

        async def ask() -> None:
            for stream in (False, True):
                async with await running.connect() as client:
                    await fetch(client, "POST", "/v1/chat/completions", headers=HEADERS, body=body(stream))
            async with await running.connect() as stream_:
                frames = Frames(stream_, await open_raw(stream_, KEY))
                for number in range(2):
                    asked = {"type": "llm_request", "id": f"r{number}", "model": "test-model", "prompt": "go"}
                    await stream_.send_all(masked(json.dumps(asked).encode()))
                    while (await frames.next())["type"] != "llm_response_end":
                        pass

        await ask()  # connects, and makes what is made once
        gc.collect()
        gc.disable()
        try:
            gc.set_debug(gc.DEBUG_SAVEALL)
            await ask()
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            left = Counter(type(each).__name__ for each in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left.keys() & {"Exchange", "Attempt", "ChatRequest", "Metered", "Lifetime", "ClawClient"}, left
