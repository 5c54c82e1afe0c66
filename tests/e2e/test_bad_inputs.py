"""Generated bad inputs against a running gateway: it survives, answers no 500, writes no traceback, and holds nothing afterwards.

The number is bounded: ten thousand in `make test`, more with `--bad-inputs=N`, other ones with SEED=N.
"""

from __future__ import annotations

import base64
import copy
import json
import logging
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.config import ModelConfig, RouteConfig
from tests.e2e.harness import KEY, Running, descriptors, gateway
from tests.e2e.http_client import chat, chat_body
from tests.matrix.expected import BASE
from tests.policy.prompts import EMBEDDINGS, REQUESTS
from tests.policy.test_answers_canary import MODELS

AT_ONCE = 32


def head(rng: random.Random) -> bytes:
    lines = [b"POST /v1/chat/completions HTTP/1.1", b"Host: gw.test", b"Authorization: Bearer " + KEY.encode()]
    lines += [b"Content-Type: application/json", b"Content-Length: 2"]
    text = bytearray(b"\r\n".join(lines) + b"\r\n\r\n{}")
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text))
        kind = rng.randrange(4)
        if kind == 0:
            text[place] = rng.randrange(256)
        elif kind == 1:
            del text[place : place + rng.randint(1, 10)]
        elif kind == 2:
            text[place:place] = rng.choice([b"\n", b"\r", b"\x00", b"\x1b", b" ", b"\t", b"\xff", b": ", b"\r\n ", b"chunked"])
        else:
            text[place:place] = rng.choice(lines) + b"\r\n"
    return bytes(text)


def body(rng: random.Random) -> bytes:
    text = bytearray(chat_body("hello", temperature=1, max_tokens=5, stop=["a"], stream=bool(rng.randrange(2))))
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text))
        swap = rng.choice(
            [b"", b"null", b"[]", b"{", b"}", b'"', b"1e999", b"-1", b"\xff", b"\\ud800", b"[" * 100, b"true", b"9" * 400]
        )
        text[place : place + rng.randint(0, 6)] = swap
    return post(bytes(text))


def value(rng: random.Random) -> bytes:
    fields = ["model", "messages", "temperature", "max_tokens", "stop", "tools", "tool_choice", "stream", "n", "metadata", "user"]
    values: list[object] = [
        None,
        True,
        -1,
        1.5,
        "",
        "x" * 300,
        [],
        {},
        [1],
        [[]],
        {"a": {"b": []}},
        ["a", 1],
        10**18,
        "\u2028",
        {"type": "function"},
    ]
    document: dict[str, object] = {"model": "test-model", "messages": [{"role": "user", "content": "hi"}]}
    for _ in range(rng.randint(1, 3)):
        document[rng.choice(fields)] = rng.choice(values)
    return post(json.dumps(document).encode())


VALUES: list[object] = [
    *(None, True, -1, 0, 1.5, 10**18, -(2**70), "", "x" * 300, "\u2028", "a\r\nb: c", "a\0b", "../../admin?x#y", "\x7f\x1b[2J"),
    *([], {}, [1], [[]], [None], {"a": {"b": []}}, ["a", 1], {"type": "text"}, {"type": "function"}, {"type": ["x"]}, {"": ""}),
    *([{}] * 200, {str(number): number for number in range(200)}, {"type": "tool_use", "id": "a", "name": "b", "input": []}),
]
"""What is put where it does not belong."""


def native(rng: random.Random) -> bytes:
    """A request of any format, wrong in some places."""
    client, (path, made) = rng.choice([*REQUESTS.items(), *REQUESTS.items(), *EMBEDDINGS.items()])
    document: Any = spoilt(made, rng)
    name = rng.choice(list(MODELS)) if rng.randrange(4) else "via-" + client.split()[0]
    if "{model}" not in path and isinstance(document, dict) and rng.randrange(20):
        document.setdefault("model", name)
    if isinstance(document, dict) and rng.randrange(3) == 0:
        document["stream"] = True
    if path.endswith("/messages") and rng.randrange(5) == 0:
        path += "/count_tokens"
    if path.endswith(":generateContent"):
        method = rng.choice(["generateContent", "streamGenerateContent", "streamGenerateContent?alt=sse", "countTokens", "zzz"])
        path = path.replace("generateContent", method)
    model = rng.choice([name] * 20 + ["..%2fadmin", "a%0d%0ab", "%00", "x" * 3000, "a:b", "%ff"])
    text = json.dumps(document).replace("{model}", name).encode()
    if rng.randrange(8) == 0:
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice([b"\\ud800", b"\xff", b"[" * 5000, b'"', b"1e999", b"\x00", b"9" * 5000]) + text[place:]
    return post(text, path.replace("{model}", model))


def spoilt(value: Any, rng: random.Random) -> Any:
    """A copy that is wrong in one to three places."""
    made = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        at, steps = made, rng.randint(1, 8)
        while isinstance(at, dict | list) and at:
            key: Any = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
            steps -= 1
            if steps == 0 or not isinstance(at[key], dict | list) or not at[key]:
                kind = rng.randrange(4)
                if kind == 0:
                    del at[key]
                elif kind == 1 and isinstance(at, list):
                    at += [copy.deepcopy(at[key])] * rng.choice([1, 100])
                else:
                    at[key] = copy.deepcopy(rng.choice(VALUES))
                break
            at = at[key]
    return made


def responses_websocket(rng: random.Random) -> bytes:
    """Responses' WebSocket mode: creates that are wrong somewhere, on lanes that are."""
    frames = b""
    for _ in range(rng.randint(1, 4)):
        document = {
            "type": "response.create",
            "model": "via-openai_responses",
            **REQUESTS["openai_responses"][1],
            "stream_id": "a",
        }
        document = spoilt(document, rng)
        if rng.randrange(2) == 0 and isinstance(document, dict):
            name = rng.choice(["type", "stream_id", "generate", "previous_response_id", "model", "input", "background", "stream"])
            document[name] = copy.deepcopy(rng.choice([*VALUES, "response.steer", "response.cancel"]))
        frames += text_frame(json.dumps(document).encode())
    return opened("/v1/responses", rng) + frames


def claw_websocket(rng: random.Random) -> bytes:
    """What the Claw WebSocket got lately: prompts in pieces, additions, credit."""
    frames = text_frame(json.dumps({"type": "auth", "token": KEY, "credit": rng.choice([True, False, 1, None])}).encode())
    for _ in range(rng.randint(1, 6)):
        asked = {"type": "llm_request", "id": "r", "model": "test-model", "prompt": "hi", "prompt_stream": True}
        chunk = {"type": "llm_prompt_chunk", "id": "r", "content": "more", "final": bool(rng.randrange(2))}
        append = {"type": "llm_append", "id": "r", "content": rng.choice(["more", [{"type": "text", "text": "x"}]])}
        said: Any = rng.choice([asked, chunk, append, {"type": "credit", "id": "r", "n": 5}, {"type": "llm_cancel", "id": "r"}])
        frames += text_frame(json.dumps(spoilt(said, rng) if rng.randrange(3) else said).encode())
    return opened("/websocket", rng) + frames


def opened(path: str, rng: random.Random) -> bytes:
    key = base64.b64encode(rng.randbytes(16)).decode()
    head = f"GET {path} HTTP/1.1\r\nHost: gw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()


def text_frame(payload: bytes) -> bytes:
    size = len(payload)
    length = (
        bytes([0x80 | size]) if size < 126 else struct.pack(">BH", 0xFE, size) if size < 65536 else struct.pack(">BQ", 0xFF, size)
    )
    return b"\x81" + length + b"\0\0\0\0" + payload


def post(body: bytes, path: str = "/v1/chat/completions") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def garbage(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 300))


def websocket(rng: random.Random) -> bytes:
    key = base64.b64encode(rng.randbytes(16)).decode()
    head = "GET /websocket HTTP/1.1\r\nHost: gw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    if rng.randrange(3):
        head += f"Authorization: Bearer {KEY}\r\n"
    frames = b"".join(frame(rng) for _ in range(rng.randint(1, 5)))
    return head.encode() + b"\r\n" + frames


def frame(rng: random.Random) -> bytes:
    documents: list[object] = [
        {},
        [],
        "x",
        {"type": "llm_request"},
        {"type": "llm_request", "model": "test-model", "prompt": rng.choice([1, None, [], "hi", [{"type": "image"}]])},
        {
            "type": "llm_request",
            "model": "../../admin",
            "prompt": "x",
            "parameters": {rng.choice(["stream", "zzz"]): rng.choice([1, None])},
        },
        {"type": "llm_cancel", "id": rng.choice([1, None, "no such"])},
        {"type": "auth", "token": rng.choice([1, None, "wrong", "x" * 9000])},
        {"type": rng.choice([1, None, "zzz", "ping", "resume", "credit"])},
    ]
    payload = rng.choice([json.dumps(rng.choice(documents)).encode(), rng.randbytes(20), b"\xc3\x28", b""])
    first = rng.choice([0x81, 0x81, 0x81, 0x82, 0x01, 0x80, 0x89, 0x8A, 0x88, 0xC1, 0x83])
    size = len(payload)
    mask = rng.choice([0x80, 0x80, 0x80, 0])
    length = bytes([mask | size]) if size < 126 else bytes([mask | 126]) + struct.pack(">H", size)
    return bytes([first]) + length + (b"\0\0\0\0" if mask else b"") + payload


KINDS: list[Callable[[random.Random], bytes]] = [head, body, value, garbage, websocket]
NEW = [native, native, native, responses_websocket, claw_websocket]
KINDS += NEW


@pytest.mark.slow
async def test_the_gateway_survives(tmp_path: Path, pytestconfig: pytest.Config, caplog: pytest.LogCaptureFixture) -> None:
    count = int(pytestconfig.getoption("--bad-inputs"))
    seed = int(os.environ.get("SEED", "20261121"))
    print(f"seed {seed}, {count} inputs")
    caplog.set_level(logging.DEBUG)
    statuses: dict[bytes, int] = {}
    models = {**MODELS, "test-model": ModelConfig((RouteConfig("openai_chat", "scripted-1"),))}
    async with gateway(tmp_path, models=models, dialects=BASE) as running:
        limiter = trio.CapacityLimiter(AT_ONCE)
        before = descriptors()

        async def one(number: int) -> None:
            rng = random.Random(seed + number)
            async with limiter:
                kind = rng.choice(KINDS)
                await send(running, kind(rng), number, statuses, stays=5.0 if kind is native else 0.02 if kind in NEW else 0.0)

        for start in range(0, count, 500):
            async with trio.open_nursery() as nursery:
                for number in range(start, min(count, start + 500)):
                    nursery.start_soon(one, number)
            async with await running.connect() as connection:
                reply = await chat(connection, "still there?", key=KEY)
            assert reply.status == 200, f"after {start + 500} inputs"
        with trio.fail_after(10):
            await running.at_rest()
            while descriptors() > before + 4 + 2 * idle(running):  # both ends of a connection to the provider are here
                await trio.sleep(0.01)
    print({status.decode(): number for status, number in sorted(statuses.items())})
    assert not [status for status in statuses if status.startswith(b"5") and status not in (b"501", b"505", b"502", b"503")]
    assert statuses.get(b"400", 0) > count / 10
    crashes = [record for record in caplog.records if record.exc_info or "crashed" in record.getMessage()]
    assert not crashes, crashes[0].getMessage()


def idle(running: Running) -> int:
    return sum(pool.idle for pool in running.server.gateway.current.upstream.statistics().values())  # type: ignore[attr-defined]


async def send(running: Running, data: bytes, number: int, statuses: dict[bytes, int], *, stays: float) -> None:
    """`stays`: seconds that the client listens on before it says that it has done, which counts as leaving."""
    with trio.move_on_after(5) as scope:
        async with await running.connect() as stream:
            received = b""
            try:
                await stream.send_all(data)
                with trio.move_on_after(stays) as listening:
                    while chunk := await stream.receive_some(65536):
                        received = (received + chunk)[:65536]
                if listening.cancelled_caught or not stays:
                    await stream.send_eof()
                while listening.cancelled_caught and (chunk := await stream.receive_some(65536)):
                    received = (received + chunk)[:65536]
            except trio.BrokenResourceError:
                pass
        if received.startswith(b"HTTP/1.1 "):
            status = received[9:12]
            statuses[status] = statuses.get(status, 0) + 1
    assert not scope.cancelled_caught, f"input {number} hung: {data[:200]!r}"
