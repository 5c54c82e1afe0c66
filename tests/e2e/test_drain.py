"""Draining over real sockets: what was let in is answered."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import attrs
import pytest
import trio

from clawproxy.clocks import Deadlines
from clawproxy.testing import sweep
from clawproxy.upstream.pool import PoolStatistics
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import chat
from tests.e2e.test_sweep_sockets import LEFT, Counting, ordinary


@pytest.mark.parametrize(("drain", "status"), [(5.0, b"200"), (0.2, b"503")], ids=["in-time", "too-late"])
async def test_a_body_that_is_still_arriving_is_waited_for(tmp_path: Path, drain: float, status: bytes) -> None:
    async with gateway(tmp_path, deadlines=attrs.evolve(Deadlines(), drain=drain)) as running:
        body = json.dumps({"model": "test-model", "messages": [{"role": "user", "content": "script: say yes"}]}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with trio.fail_after(8):
            async with await running.connect() as connection:
                await connection.send_all(head.encode() + body[:10])
                await trio.sleep(0.1)
                running.server.drain()
                await trio.sleep(0.4)
                if status == b"200":
                    await connection.send_all(body[10:])
                answer = b""
                while data := await connection.receive_some():
                    answer += data
        if status == b"200":
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert b"yes" in answer
        else:
            assert answer == b"" or answer.startswith(b"HTTP/1.1 503 "), "nothing was begun: a cut or a refusal, no other word"


async def test_a_drain_ends_no_request_that_has_begun(tmp_path: Path) -> None:
    """Idle connections end when the service drains, at whatever point it begins; what came is answered, or not begun."""
    counting = Counting()
    async with ordinary(tmp_path, counting) as running:
        replies: list[int] = []
        asked = 0
        front = running.server.front

        async def run(_: trio.CancelScope) -> None:
            nonlocal asked
            with trio.fail_after(5):
                async with await running.connect() as connection:
                    with contextlib.suppress(*LEFT):
                        for _turn in range(3):
                            asked += 1
                            reply = await chat(connection, "script: pause 1ms; say yes", key=KEY)
                            replies.append(reply.status)
                            if reply.status != 200 or reply.headers.get("connection") == "close":
                                break

        async def check(point: int) -> None:
            front.draining = False
            with trio.fail_after(3):
                await running.at_rest()
            assert set(counting.labels) == {"complete"}, f"point {point}: {counting.labels}"
            assert counting.labels["complete"] == replies.count(200), f"point {point}: an answer was made and not delivered"

        assert await sweep(run, check, act=lambda _: front.drain(), all_tasks=True) > 30
        assert replies.count(200) > asked / 2


async def test_a_service_that_is_cancelled_leaves_no_socket(tmp_path: Path) -> None:
    """Neither drained nor told to hurry: what is idle is closed all the same, and the garbage collector finds nothing open."""
    running: Running | None = None

    async def fail() -> None:
        nonlocal running
        async with gateway(tmp_path) as running:
            async with await running.connect() as connection:
                assert (await chat(connection, "script: say yes", key=KEY)).status == 200
            assert idle(running) == 1
            raise LookupError

    def idle(of: Running) -> int:
        figures: PoolStatistics = of.server.gateway.current.upstream.statistics()["scripted"]  # type: ignore[attr-defined]
        return figures.idle

    with pytest.raises(ExceptionGroup):
        await fail()
    assert running is not None
    assert idle(running) == 0
