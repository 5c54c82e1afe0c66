"""Sanitizing over real sockets: placeholders there and back, what providers, caches, logs and audit rows see of it, and the
classifier."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import clawproxy_cache
from clawproxy.config import KeyConfig, PipelineConfig, SecretRef
from clawproxy.errors import ConfigError
from clawproxy.secrets import Secret
from clawproxy_audit.content import Box
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat

MAIL = "erika.mustermann@example.org"
CONTENT_KEY = "an audit key of more than sixteen characters"
PROMPT = f'write\nscript: chunk 5; say "To {MAIL}, hello. It is {MAIL}."'
PERSONAL = {"personal": {"find": ["mail"], "input": "restore", "output": "mask"}}
ORDER = ("audit", "auth", "sanitize", "truncate", "cache", "router", "meter")
OTHER = "sk-other-0123456789abcdefghijklmn"


async def ask(running: Running, prompt: str, key: str = KEY, **changes: Any) -> Reply:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            return await chat(connection, prompt, key=key, **changes)


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    lines = [line for file in (tmp_path / "state" / "audit").glob("*.jsonl") for line in file.read_bytes().splitlines()]
    return [row for row in map(json.loads, lines) if "request_id" in row]


@pytest.mark.parametrize("stream", [False, True])
async def test_placeholders_go_up_and_originals_come_back(tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sections: dict[str, dict[str, Any]] = {"sanitize": PERSONAL, "audit": {"content": "redacted", "content_key": CONTENT_KEY}}
    async with gateway(tmp_path, sections=sections) as running:
        reply = await ask(running, PROMPT, stream=stream)
        assert reply.status == 200
        text = reply.text() if stream else reply.json()["choices"][0]["message"]["content"]
        assert text == f"To {MAIL}, hello. It is {MAIL}."
        sent = str([entry.body_bytes for entry in running.provider.log.entries])
    assert "[MAIL-" in sent
    assert "erika" not in sent
    [row] = rows(tmp_path)
    assert row["scanned"]["prompt"] == ["secrets", "personal", "invisible", "injection"]
    assert row["scanned"]["answer"] == ["secrets", "personal"]
    assert row["scanned"]["prompt_bytes"] >= len(PROMPT)
    assert row["scanned"]["answer_bytes"] > 40
    assert row["scanned"]["found"] == {"mail": 2}
    content = Box(Secret(CONTENT_KEY)).open(row["request_id"], row["content"])
    assert content["answer"].count("[MAIL-") == 2
    assert "erika" not in str(content) + str(row)
    assert "erika" not in caplog.text
    for file in (tmp_path / "state").rglob("*"):
        assert not file.is_file() or b"erika" not in file.read_bytes()


async def test_a_cache_keeps_placeholders_and_each_reader_gets_their_own(tmp_path: Path) -> None:
    async with gateway(
        tmp_path,
        pipeline=PipelineConfig(order=ORDER),
        plugins={"cache": clawproxy_cache},
        sections={"sanitize": PERSONAL, "cache": {"scope": "global"}},
        keys={"test": KeyConfig(SecretRef("", KEY)), "other": KeyConfig(SecretRef("", OTHER))},
    ) as running:
        replies = [await ask(running, PROMPT, key) for key in (KEY, KEY, OTHER)]
        assert [reply.headers["x-claw-cache"] for reply in replies] == ["miss", "hit", "miss"]
        for reply in replies:
            assert reply.json()["choices"][0]["message"]["content"] == f"To {MAIL}, hello. It is {MAIL}."
        elsewhere = await ask(running, PROMPT.replace(MAIL, "other@example.org"))
        assert elsewhere.headers["x-claw-cache"] == "miss"
        assert b"erika" not in elsewhere.body


# --- the classifier ----------------------------------------------------------------------------------------------------------


class Asked:
    """What the classifier was asked, and what it answers next."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[bytes] = []
        self.answer: bytes | None = b'{"flagged": false}'


@asynccontextmanager
async def classifier() -> AsyncIterator[Asked]:
    asked = Asked()

    async def serve(stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some()
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += await stream.receive_some()
        asked.heads.append(head)
        asked.bodies.append(json.loads(body))
        if asked.answer is None:
            await trio.sleep_forever()
        assert asked.answer is not None
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(asked.answer), asked.answer)
        )
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        asked.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/check"
        yield asked
        nursery.cancel_scope.cancel()


async def classified(tmp_path: Path, asked: Asked, **changes: Any) -> tuple[Reply, list[dict[str, Any]]]:
    settings = {"url": asked.url, "deadline": "300ms", "token": "a-token-of-the-operator", **changes}
    (tmp_path / "state").mkdir(exist_ok=True)
    async with gateway(tmp_path, sections={"sanitize": {"classifier": settings}}) as running:
        reply = await ask(running, f"hello AKIA{'Q7XKZ4WJ2VNB5RTM'}")
    return reply, rows(tmp_path)


async def test_the_classifier_sees_what_providers_would(tmp_path: Path) -> None:
    async with classifier() as asked:
        reply, [row] = await classified(tmp_path, asked)
    assert reply.status == 200
    [body] = asked.bodies
    assert body["texts"] == ["hello [redacted:aws_access_key]"]
    assert (body["key"], body["model"], body["request_id"]) == ("test", "test-model", row["request_id"])
    assert b"authorization: bearer a-token-of-the-operator" in asked.heads[0].lower()
    assert row["scanned"]["prompt"][-1] == "classifier"


@pytest.mark.parametrize(
    ("answer", "changes", "status", "found"),
    [
        (b'{"flagged": true, "labels": ["jailbreak", "<b>", 7]}', {}, 400, {"classifier:jailbreak": 1}),
        (b'{"flagged": true}', {"action": "flag"}, 200, {"classifier:classifier": 1}),
        (b'{"flagged": "yes"}', {}, 400, {}),
        (b"oops", {}, 400, {}),
        (b"[]", {"on_error": "allow"}, 200, {}),
        (None, {}, 400, {}),
        (None, {"on_error": "allow"}, 200, {}),
    ],
)
async def test_what_the_classifier_says_and_its_silence(
    tmp_path: Path, answer: bytes | None, changes: dict[str, str], status: int, found: dict[str, int]
) -> None:
    async with classifier() as asked:
        asked.answer = answer
        reply, [row] = await classified(tmp_path, asked, **changes)
    assert reply.status == status
    if status == 400:
        assert row["outcome"] == "refused.sanitize"
    assert row["scanned"]["found"] == {"aws_access_key": 1, **found}


async def test_a_classifier_that_can_not_be_used_stops_the_load(tmp_path: Path) -> None:
    for settings, said in (
        ({"url": "http://far.example/x"}, "classifier.url: must begin with https://"),
        ({"url": "https://c.example/x", "deadline": "5s"}, "classifier.deadline: must be less than pipeline.hook_budget"),
        ({"url": "https://c.example/x", "token": "env:NOT_THERE"}, "classifier.token: "),
    ):
        with pytest.raises((ConfigError, BaseExceptionGroup)) as caught:
            async with gateway(tmp_path, sections={"sanitize": {"classifier": settings}}):
                pass
        assert said in "".join(str(each) for each in leaves(caught.value))


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]
