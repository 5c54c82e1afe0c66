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

from clawproxy.config.schema import Size
from clawproxy.scripted import ScriptedProvider
from tests.e2e.harness import CALM, Running, gateway
from tests.e2e.http_client import fetch
from tests.e2e.process import served, settings
from tests.threats.kit import SAID, closed, document, post, say

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
    many = {str(number): 1 for number in range(200_000)}
    bodies = [
        json.dumps(many).encode(),
        b"[" + b"1," * 999_999 + b"1]",
        json.dumps({"model": "test-model", "messages": [{"role": "user", "content": "x"}] * 100_001}).encode(),
    ]
    async with closed(running):
        for body in bodies:
            answer = await say(running.address, post(body), seconds=20)
            assert answer.status in (400, 413)


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


async def test_j10_two_megabytes_of_text_are_fine(running: Running) -> None:
    text = "word " * 400_000
    async with closed(running, calls=1):
        said = [{"role": "user", "content": text}, SAID]
        running.provider.will("say fine")
        answer = await say(running.address, post(document(messages=said)), seconds=20)
        assert answer.status in (200, 400)
        if answer.status == 400:  # a model's window is another matter
            assert answer.code == "context_length_exceeded"
            running.provider.queue.clear()
            await say(running.address, post(document()))


def picture(size: int) -> dict[str, Any]:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * (size * 3 // 4)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return document(messages=[{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}])


async def test_s09_a_picture_above_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with gateway(tmp_path, limits=attrs.evolve(CALM, body=Size(1024 * 1024))) as running:
        body = json.dumps(picture(20_000_000)).encode()
        async with closed(running):
            answer = await say(running.address, post(body))
        assert (answer.status, answer.code) == (413, "body_too_large")


async def test_s09_a_picture_of_20_megabytes_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """The gateway is a process of its own here, and says itself how late its loop was."""
    secrets = {"TEST_CLIENT_KEY": "sk-client-0918273645abcdef", "TEST_PROVIDER_KEY": "sk-provider-5a6b7c8d9e0f"}
    async with (
        ScriptedProvider.running("say a cat") as provider,
        served(tmp_path, settings(tmp_path, provider.base_url), **secrets) as it,
    ):
        body = json.dumps({**picture(20_000_000), "model": "gpt-4-turbo"}).encode()
        headers = {"Authorization": f"Bearer {secrets['TEST_CLIENT_KEY']}"}
        answer = await say(it.address, post(body, headers=headers), seconds=30)
        assert answer.status == 200
        host, _, port = it.ready["admin"].removeprefix("http://").rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            text = (await fetch(stream, "GET", "/metrics", headers={"host": "localhost"})).body.decode()
        [lag] = [float(line.split()[1]) for line in text.splitlines() if line.startswith("clawproxy_loop_lag")]
        print(f"loop lag {lag * 1000:.0f} ms")
        assert lag < 0.5
