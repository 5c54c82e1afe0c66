"""Clients as they are: well-behaved (trio-websocket), hurried, absent-minded, hostile."""

from __future__ import annotations

import json
import logging
import random
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawproxy.events import Outcome
from clawproxy.service import Call, Client
from clawproxy.transport.websocket import serve_websocket

from .kit import FakeService, allow_all, connect, frame, gateway, message, opening, parse_head, request, until


async def test_trio_websocket_as_a_client() -> None:
    async with (
        gateway(keepalive_ws=0.05) as gw,
        await trio.open_tcp_stream("127.0.0.1", gw.port) as tcp,  # ours: the library leaves it to the garbage collector
        trio.open_nursery() as nursery,
    ):
        ws = await trio_websocket.wrap_client_stream(nursery, tcp, "127.0.0.1", "/websocket", subprotocols=["claw.v1"])
        assert ws.subprotocol == "claw.v1"
        await ws.send_message(json.dumps({"type": "auth", "token": "good"}))
        assert json.loads(await ws.get_message())["type"] == "auth_ok"
        await trio.sleep(0.2)  # some pings and pongs
        await ws.send_message(json.dumps({"type": "llm_request", "id": "a", "model": "m", "prompt": "say a b"}))
        text = ""
        while (got := json.loads(await ws.get_message()))["type"] != "llm_response_end":
            text += got.get("content", "")
        assert text == "ab"
        await ws.send_message("not json")
        assert json.loads(await ws.get_message())["error"] == "bad_frame"
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            await ws.get_message()
        assert caught.value.reason is not None
        assert caught.value.reason.code == 4400


async def test_an_id_is_free_as_soon_as_its_last_frame_is_out() -> None:
    """Although the exchange is still closing its books."""

    class Slow(FakeService):
        async def handle(self, call: Call, client: Client) -> Outcome:
            outcome = await super().handle(call, client)
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            return outcome

    async with gateway(Slow()) as gw, connect(gw.port) as raw:
        for _ in range(3):
            await raw.send(request("r1", "say x"))
            assert (await raw.until("llm_response_end"))[-1]["outcome"] == "complete"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


PROMPTS = ["hang", "flood 500", "big 300000", "say a b c", "fail model_not_found"]


@pytest.mark.parametrize("seed", range(12))
async def test_a_client_gone_in_any_phase_leaves_nothing(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(seed)
    before = descriptors()
    async with gateway() as gw:

        async def client() -> None:
            data = opening("Authorization: Bearer good")
            data += b"".join(request(f"r{i}", rng.choice(PROMPTS)) for i in range(rng.randrange(1, 6)))
            data += message(type="llm_cancel", id="r0") + frame(9, b"x")
            stream = await trio.open_tcp_stream("127.0.0.1", gw.port)
            cut = rng.choice([rng.randrange(len(data)), len(data)])
            await stream.send_all(data[:cut])
            for _ in range(rng.randrange(12)):
                await trio.lowlevel.checkpoint()
            if rng.random() < 0.5:
                with trio.move_on_after(rng.random() * 0.02):
                    while await stream.receive_some(rng.choice([100, 65536])):
                        pass
            if rng.random() < 0.5:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(client)
    assert descriptors() <= before
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_server_stopping_takes_its_connections_along() -> None:
    before = descriptors()
    async with trio.open_nursery() as nursery, gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "hang"), request("b", "flood 100000"))
        await trio.sleep(0.05)
        gw.connections.close()
        nursery.cancel_scope.deadline = trio.current_time() + 5
        await until(lambda: not gw.service.running)
        assert {outcome.label for _, outcome, _ in gw.service.closed} == {"shutting_down"}
        frames = []
        while (got := await raw.frame())[0] == 1:
            frames.append(json.loads(got[1]))
        assert frames[-1]["error"] == "shutting_down"
        assert got == (8, struct.pack("!H", 1012) + b"shutting_down")
        await raw.send(frame(8, got[1]))
    assert descriptors() <= before


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8, 13, 21, 40])
async def test_a_cancelled_server_leaves_no_task_and_no_descriptor(after: int) -> None:
    """At any point of a connection's life: `after` scheduling points into it."""
    before = descriptors()
    service = FakeService()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def handler(stream: trio.SocketStream) -> None:
            head, leftover = parse_head(opening("Authorization: Bearer good"))
            await stream.receive_some(65536)
            leftover += request("a", "hang") + request("b", "flood 100000") + request("c", "say x")
            await serve_websocket(stream, head, leftover, service, "127.0.0.1", check_origin=allow_all)

        await nursery.start(trio.serve_listeners, handler, listeners)
        async with await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1]) as client:
            await client.send_all(b"x")
            await trio.sleep(0.002)
            for _ in range(after):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert service.running == 0
    assert descriptors() <= before


async def test_a_fresh_credential_that_hangs_is_cut_by_the_auth_clock() -> None:
    async with gateway(auth=0.15) as gw, connect(gw.port) as raw:
        await raw.send(request("a", "hang"))
        await raw.until("llm_token")
        await trio.sleep(0.2)  # long authenticated: the clock does not run
        gw.service.gate = trio.Event()
        await raw.send(message(type="auth", token="good"))
        assert (await raw.json())["error"] == "timeout.auth"
        assert await raw.closed() == 4408


# --- fuzz: the process survives, nothing is logged as a defect ---------------------------------------------------------------

TYPES = ["auth", "llm_request", "llm_cancel", "ping", "resume", "credit", "llm_append", "llm_prompt_chunk", "connect", 7, None]
FIELDS = ("id", "token", "model", "prompt", "messages", "parameters", "metadata", "t", "session_id", "content", "final", "n",
          "credit", "prompt_stream")  # fmt: skip
VALUE: st.SearchStrategy[Any] = st.sampled_from(
    ["good", "bad", "a", "b", "", "hang", "say x", 1, True, None, [], {}, "\ud83d\ude00", "x" * 200]
)
MESSAGES = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)},
    optional=dict.fromkeys(FIELDS, VALUE),
).map(lambda fields: frame(1, json.dumps(fields).encode()))
FRAMES = st.builds(
    frame,
    st.integers(0, 15),
    st.binary(max_size=140),
    fin=st.booleans(),
    mask=st.sampled_from([b"\0\0\0\0", b"\x01\x02\x03\x04", None]),
    rsv=st.sampled_from([0, 0, 0, 0x10, 0x40]),
)
STREAMS = st.lists(MESSAGES | MESSAGES | MESSAGES | FRAMES | st.binary(max_size=20), max_size=12)


@pytest.mark.parametrize("authenticated", [True, False])
def test_no_bytes_disturb_the_process(authenticated: bool) -> None:
    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(record.getMessage())

    errors: list[str] = []
    handler = Count(logging.ERROR)
    logging.getLogger().addHandler(handler)

    async def once(chunks: list[bytes]) -> None:
        async with gateway() as gw:
            stream = await trio.open_tcp_stream("127.0.0.1", gw.port)
            head = opening("Authorization: Bearer good") if authenticated else opening()
            try:
                await stream.send_all(head + b"".join(chunks[:2]))
                for chunk in chunks[2:]:
                    await stream.send_all(chunk)
                    await trio.lowlevel.checkpoint()
                await stream.send_eof()
                while await stream.receive_some(65536):
                    pass
            except trio.BrokenResourceError:
                pass
            await trio.aclose_forcefully(stream)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STREAMS)
    def fuzz(chunks: list[bytes]) -> None:
        trio.run(once, chunks)

    try:
        fuzz()
    finally:
        logging.getLogger().removeHandler(handler)
    assert errors == []


async def test_a_defect_in_a_plugin_is_one_error_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "boom"))
        error: dict[str, Any] = await raw.json()
        assert (error["error"], error["message"]) == ("internal", "The gateway failed. The log has the request id.")
        assert error["request_id"] in caplog.text
