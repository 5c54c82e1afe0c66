"""J-01 to J-10 and S-09 over a raw socket: JSON that is none, or too much of it, is refused with a status and costs nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy.config import LimitsConfig, ModelConfig, RouteConfig, Size
from tests.e2e.harness import CALM, KEY, Running, gateway
from tests.e2e.websocket_client import Frames, masked, open_raw
from tests.threats.kit import SAID, closed, document, longest_step, post, say

PATHS = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1beta/models/test-model:generateContent",
    "/api/chat",
    "/v2/chat",
)
MESSAGES = json.dumps([SAID])


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with gateway(tmp_path) as running:
        yield running


async def refused(running: Running, bodies: list[bytes], statuses: tuple[int, ...], codes: tuple[str, ...] = ()) -> None:
    """Each body, on each door: this status, and nothing else. `codes`: what OpenAI's clients are told, where it is one of few."""
    async with closed(running):
        for body in bodies:
            for path in PATHS:
                answer = await say(running.address, post(body, path))
                assert answer.status in statuses, (path, body[:80], answer.data[:300])
                if codes and path == PATHS[0]:
                    assert answer.code in codes, body[:80]


async def test_j01_deep_nesting(running: Running) -> None:
    deep = b'{"model":"test-model","messages":[{"role":"user","content":' + b"[" * 65 + b"]" * 65 + b"}]}"
    await refused(running, [b"[" * 100_000, b'{"a":' * 100_000, deep], (400,), ("json_too_deep",))


async def test_j02_a_number_of_five_thousand_digits(running: Running) -> None:
    for name in (b"max_tokens", b"seed", b"n", b"zzz"):
        await refused(running, [b'{"' + name + b'":' + b"9" * 5000 + b"}"], (400,), ("invalid_json",))


@pytest.mark.parametrize("value", ["-1", "0", "1e18", "1.5", "true", '"5"', "1e400", "1000000000000000000", "[]"])
async def test_j03_max_tokens_is_a_count(running: Running, value: str) -> None:
    async with closed(running):
        for path in ("/v1/chat/completions", "/v1/messages"):
            if value == "0" and path == "/v1/messages":
                continue  # Anthropic's own word for "read the prompt and say nothing"
            for name in ("max_tokens", "max_completion_tokens") if "chat" in path else ("max_tokens",):
                answer = await say(
                    running.address, post(f'{{"model":"test-model","messages":{MESSAGES},"{name}":{value}}}'.encode(), path)
                )
                assert answer.status == 400, (path, value)


async def test_j04_of_two_values_the_one_that_was_judged_is_the_one_that_is_sent(running: Running) -> None:
    inside = f'"messages":[{{"role":"user","content":"not this"}}],"messages":{MESSAGES}'
    body = f'{{"model":"cheap","model":"test-model","stream":true,"stream":false,"temperature":1.5,"temperature":0.5,{inside}}}'
    async with closed(running, calls=1):
        answer = await say(running.address, post(body.encode()))
        assert answer.status == 200
        entry = running.provider.log.last
    assert (entry.model, entry.stream, entry.body["temperature"]) == ("scripted-1", False, 0.5)
    assert b"not this" not in entry.body_bytes
    assert entry.body_bytes.count(b'"model"') == entry.body_bytes.count(b'"messages"') == 1
    other = await say(running.address, post(f'{{"model":"test-model","model":"costly","messages":{MESSAGES}}}'.encode()))
    assert (other.status, other.code) == (404, "model_not_found")


async def test_j05_half_a_surrogate_pair(running: Running) -> None:
    bodies = [
        b'{"model":"test-model","messages":[{"role":"user","content":"' + text + b'"}]}'
        for text in (b"\\ud800", b"\\udc00x", b"\xed\xa0\x80", b"\\ud800\\ud800")
    ]
    await refused(running, bodies, (400,), ("invalid_json",))


def wrapped(value: str) -> bytes:
    return f'{{"model":"test-model","messages":{MESSAGES},"temperature":{value}}}'.encode()


async def test_j06_what_some_parsers_take_for_json(running: Running) -> None:
    good = json.dumps(document())
    bodies = [wrapped(value) for value in ("NaN", "Infinity", "-Infinity", "1,", "/* */ 1", "01", "+1", ".5", "0x1", "'a'")]
    bodies += [
        b"\xef\xbb\xbf" + good.encode(),
        good.encode("utf-16"),
        good.encode("utf-16-be"),
        good.encode("utf-32-le"),
        b"",
        b"{} {}",
    ]
    await refused(running, bodies, (400,), ("invalid_json",))


async def test_j07_bytes_that_are_no_utf8_and_nul_in_keys(running: Running) -> None:
    head = b'{"model":"test-model","messages":[{"role":"user","content":"'
    await refused(
        running, [head + text + b'"}]}' for text in (b"\xff", b"\xc0\xaf", b"\xf5\x80\x80\x80")], (400,), ("invalid_json",)
    )
    async with closed(running):
        answer = await say(running.address, post(b'{"model":"test-model","a\\u0000b":1,"messages":' + MESSAGES.encode() + b"}"))
        assert answer.status in (400, 200)
        assert answer.status == 400 or b"\0" not in running.provider.log.last.body_bytes


async def test_j08_too_many_values(running: Running) -> None:
    bodies = [  # made in no time: while this test works, the gateway beside it is late
        b"{" + b",".join([b'"%d":1' % number for number in range(200_000)]) + b"}",
        b"[" + b"1," * 999_999 + b"1]",
        b'{"model":"test-model","messages":[' + b'{"role":"user","content":"x"},' * 100_000 + b'{"role":"user","content":"x"}]}',
    ]
    async with closed(running):
        for body in bodies:
            with longest_step() as step:
                answer = await say(running.address, post(body), seconds=20)
            assert answer.status in (400, 413)
            assert step.seconds < 0.1


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/json; charset=utf-16", "multipart/form-data; boundary=" + "b" * 10_000, "application/jsonx"],
)
async def test_j09_other_kinds_of_content(running: Running, kind: str) -> None:
    async with closed(running):
        answer = await say(running.address, post(document(), headers={"Content-Type": kind}))
        assert answer.status == 415
        answer = await say(
            running.address, post(document(), headers={"Content-Type": "multipart/form-data; boundary=" + "b" * 100_000})
        )
        assert answer.status == 431


async def test_j10_two_megabytes_of_text_are_fine(tmp_path: Path) -> None:
    models = {"test-model": ModelConfig((RouteConfig("scripted", "scripted-1"),))}
    async with gateway(tmp_path, models=models) as running, closed(running, calls=1):
        running.provider.will("say fine")
        said = [{"role": "user", "content": "word " * 400_000}]
        assert (await say(running.address, post(document(messages=said)), seconds=20)).status == 200


def picture(size: int) -> dict[str, Any]:
    """`size`: of its base64."""
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n\0".ljust(size * 3 // 4, b"\0")).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return document(messages=[{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}])


async def test_s09_media_have_a_limit_of_their_own(tmp_path: Path) -> None:
    """S-09: above it 413, in any format, though the body itself is within its limit; a text of that length is none of it."""
    limits = attrs.evolve(CALM, media=Size(1_000_000), frame=Size(4_000_000))
    models = {name: ModelConfig((RouteConfig("scripted", "scripted-1"),)) for name in ("test-model", "wide")}
    async with gateway(tmp_path, limits=limits, models=models) as running:
        for size, status in ((1_000_000, 200), (1_000_004, 413)):
            data = picture(size)["messages"][0]["content"][1]["image_url"]["url"].partition(",")[2]
            assert len(data) == size
            of = {"type": "base64", "media_type": "image/png", "data": data}
            said = [{"role": "user", "content": [{"type": "image", "source": of}]}]
            responses = [{"role": "user", "content": [{"type": "input_image", "image_url": f"data:image/png;base64,{data}"}]}]
            for body, path in (
                (picture(size), "/v1/chat/completions"),
                ({"model": "test-model", "max_tokens": 5, "messages": said}, "/v1/messages"),
                ({"model": "test-model", "input": responses}, "/v1/responses"),
            ):
                async with closed(running, calls=status == 200):
                    answer = await say(running.address, post(body, path))
                assert answer.status == status, (path, answer.body)
                if status == 413 and path == "/v1/chat/completions":
                    assert answer.code == "body_too_large"
                    assert "limits.media" in answer.json()["error"]["message"]
            async with await running.connect() as stream:
                frames = Frames(stream, await open_raw(stream, KEY))
                parts = [{"type": "image", "data": data, "media_type": "image/png"}]
                asked = {
                    "type": "llm_request",
                    "id": "a",
                    "model": "test-model",
                    "messages": [{"role": "user", "content": parts}],
                }
                await stream.send_all(masked(json.dumps(asked).encode()))
                with trio.fail_after(10):
                    while (frame := await frames.next())["type"] not in ("error", "llm_response_end"):
                        pass
                assert (frame.get("code") == 413) == (status == 413), frame
        async with closed(running, calls=1):
            running.provider.will("say fine")
            long = document(model="wide", messages=[{"role": "user", "content": "x" * 1_500_000}])
            assert (await say(running.address, post(long))).status == 200


async def test_s09_a_body_above_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    body = json.dumps(picture(20_000_000)).encode()
    async with gateway(tmp_path, limits=attrs.evolve(CALM, body=Size(1024 * 1024))) as running:
        async with closed(running):
            answer = await say(running.address, post(body))
        assert (answer.status, answer.code) == (413, "body_too_large")


async def test_s09_at_the_limit_others_wait_less_than_100_ms(tmp_path: Path) -> None:
    """A picture of 20 MiB in base64, through the whole gateway to the provider."""
    size = LimitsConfig().media
    assert size == 20 * 1024 * 1024
    data = post(picture(size))
    async with gateway(tmp_path) as running:
        took = []
        for _ in range(3):
            async with closed(running, calls=1):
                with longest_step() as step:
                    answer = await say(running.address, data, seconds=30)
            assert answer.status == 200
            took.append(step.seconds)
            if step.seconds < 0.1:
                break
        print(f"the longest step took {[round(each * 1000) for each in took]} ms")
        assert 0.001 < min(took) < 0.1
