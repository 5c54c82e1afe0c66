"""Nothing of content in the log, at any level, or in metrics or what is kept: K-07 for what is said; `test_canaries` has keys.

Each place that content may stand in has a canary of its own: prompts, history, tools and their arguments, names of files, URLs,
metadata, headers; answers, reasoning, refusals, providers' errors; and what a plugin that fails had in its hands.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.scripted import ScriptedProvider
from tests.e2e.process import Served, served
from tests.matrix import asking
from tests.matrix.asking import Ask
from tests.matrix.expected import PROVIDERS
from tests.threats.kit import get, leaks, post, say
from tests.threats.surroundings import ONCE, ORDER, every_dialect, installed, over_websocket

KEY, PROVIDER_KEY = "sk-client-0918273645abcdef", "sk-provider-5a6b7c8d9e0f1122"
ENVIRON = {"TEST_CLIENT_KEY": KEY, "TEST_PROVIDER_KEY": PROVIDER_KEY}
LEVELS = ("debug", "error")
"""The most and the least: a level leaves lines out and adds none (tests/ops/test_ops_logs.py)."""

PLUGIN = '''
import logging
from clawproxy import hookimpl

held = []


class Clumsy:
    """Fails with the prompt in its hands; and with the answer."""

    def hold(self, hook, text):
        if f"fail in {hook}" in text:
            try:
                raise KeyError(text)
            except KeyError:
                raise RuntimeError("could not use " + text)

    @hookimpl
    async def prepare_request(self, exchange, request):
        exchange.state["clumsy"] = repr(request)
        exchange.notice("clumsy", "A notice of a plugin's own.", said=repr(request))
        self.hold("prepare", exchange.state["clumsy"])

    @hookimpl
    def open_attempt(self, exchange, request, route, attempt):
        self.hold("open", exchange.state["clumsy"])

    @hookimpl
    def tap_response(self, exchange, route, attempt):
        from clawproxy import Observe

        def see(batch):
            if "fail in see" in exchange.state["clumsy"]:
                raise ValueError(repr(batch.events))

        return Observe(see)

    @hookimpl
    def attempt_finished(self, exchange, attempt):
        self.hold("finished", exchange.state["clumsy"])

    @hookimpl
    async def exchange_closed(self, exchange, outcome):
        self.hold("closed", exchange.state.get("clumsy", ""))


plugin = Clumsy()
'''


class Canaries:
    """Made when they are asked for, so that a place can't be forgotten in the search."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def __getitem__(self, place: str) -> str:
        return self.known.setdefault(place, f"Z{secrets.token_hex(12)}")


def settings(folder: Path, url: str, level: str) -> str:
    return f"""
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
state_dir = "{folder}/state"
[log]
level = "{level}"
{ORDER}{ONCE}
[plugins.truncate]
http = "truncate"
[policies.no]
when = {{ content = "refuse-me" }}
refuse = "No."
{every_dialect(url, "env:TEST_PROVIDER_KEY")}
[models.small]
routes = [{{ provider = "openai_chat", model = "scripted-1", context_tokens = 200 }}]
[keys.bench]
secret = "env:TEST_CLIENT_KEY"
may_assert = false
"""


@asynccontextmanager
async def world(folder: Path, level: str) -> AsyncIterator[tuple[Served, ScriptedProvider]]:
    environ = {**ENVIRON, "PYTHONPATH": f"{installed(folder, PLUGIN)}:{os.environ.get('PYTHONPATH', '')}"}
    async with (
        ScriptedProvider.running() as provider,
        served(folder, settings(folder, provider.url, level), **environ) as it,
    ):
        yield it, provider


def bodies(held: Canaries) -> list[Mapping[str, Any]]:
    """Every place of an OpenAI request that a client may write into."""
    said: list[Mapping[str, Any]] = [
        {"role": "system", "content": held["system"]},
        {"role": "user", "content": [
            {"type": "text", "text": held["text part"]},
            {"type": "image_url", "image_url": {"url": f"https://pictures.test/{held['picture URL']}"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + held["picture"]}},
            {"type": "file", "file": {"filename": held["file name"] + ".pdf", "file_data": "data:application/pdf;base64,QUJD"}},
        ]},
        {"role": "assistant", "content": held["assistant"], "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": json.dumps({"q": held["old arguments"]})}}
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": held["tool result"]},
    ]  # fmt: skip
    whole = {
        "messages": said,
        "tools": [{"type": "function", "function": {
            "name": "look", "description": held["tool description"],
            "parameters": {"type": "object", "properties": {held["tool parameter"]: {"type": "string"}}},
        }}],
        "metadata": {"note": held["metadata"]},
        "stop": [held["stop"]],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"title": held["schema"]}}},
    }  # fmt: skip
    plain = [{"role": "user", "content": held["prompt"]}]
    return [
        whole,
        {"messages": plain, "stream": True},
        {"messages": [{"role": "user", "content": f"refuse-me {held['refused prompt']}"}]},
        {"messages": [{"role": held["role"], "content": "x"}]},
        {"messages": plain, "temperature": held["temperature"]},
        {"messages": plain, held["parameter"][:20]: 1},
        {"messages": [{"role": "user", "content": [{"type": held["part type"], "text": "x"}]}]},
        {"messages": plain, "tool_choice": {"type": "function", "function": {"name": held["tool choice"]}}},
        {"messages": plain, "metadata": {"user_id": held["metadata user"]}, "user": "somebody"},
        {"messages": [{"role": "user", "content": f"{held['long prompt']} " * 200}, *plain], "model": "small"},
        *({"messages": [{"role": "user", "content": f"fail in {hook} {held['failing plugin']}"}]} for hook in (
            "prepare", "open", "see", "finished", "closed"
        )),
    ]  # fmt: skip


def scripts(held: Canaries) -> list[str]:
    """What providers say."""
    return [
        f"say {held['answer']}",
        f"reasoning {held['reasoning']}; say x",
        f'tool look {{"q": "{held["arguments"]}"}}',
        f'status 400 body {{"error": {{"message": "{held["error message"]}", "code": "{held["error code"]}"}}}}',
        f"status 500 body {held['error body']}",
        f"say one; error code {held['event code']} {held['event message']}",
        f'raw "data: {held["broken event"]}\\n\\n"',
        f"say {held['cut answer']}; cut",
        f"header x-request-id: {held['provider header']}; say one",
        f'raw head "HTTP/1.1 200 {held["reason phrase"]}\\r\\nx\\r\\n\\r\\n"',
    ]


async def use(it: Served, provider: ScriptedProvider, held: Canaries) -> None:
    """Every surface, well and badly."""
    auth = {"Authorization": f"Bearer {KEY}"}
    headers = {**auth, "User-Agent": held["user agent"], "X-Custom": held["header"], "Referer": f"http://a/{held['referer']}"}
    for body in bodies(held):
        await say(it.address, post({"model": "via-openai_chat", **body}, headers=headers))
    for dialect in PROVIDERS:
        for script in scripts(held):
            question = asking.HTTP[dialect](Ask(held[f"prompt, {dialect}"], stream=True, tools=True), f"via-{dialect}")
            provider.will(script)
            before = provider.log.requests
            await say(it.address, post(question.body, question.path, headers={**auth, **question.headers}))
            assert provider.log.requests > before, "the provider was asked"
            provider.queue.clear()
    embeddings = {"model": "via-openai_chat", "input": [held["embedding"]]}
    await say(it.address, post(embeddings, "/v1/embeddings", headers=auth))
    await say(it.address, post(b'{"model": "via-openai_chat", "messages": "' + held["broken JSON"].encode(), headers=auth))
    form = {**auth, "Content-Type": "multipart/form-data; boundary=x"}
    await say(it.address, post(b"--x\r\n" + held["multipart"].encode(), headers=form))
    await say(it.address, get(f"/v1/models?q={held['query']}", f"Authorization: Bearer {KEY}\r\n"))
    asked = {"type": "llm_request", "id": "a", "model": "via-openai_chat"}
    await over_websocket(it.address, "/websocket", KEY, {**asked, "prompt": held["socket prompt"]})
    await over_websocket(it.address, "/websocket", KEY, {**asked, "prompt": 5, "note": held["socket unknown"]})
    await over_websocket(
        it.address,
        "/websocket",
        KEY,
        {"type": held["socket type"], "text": held["socket text"]},
        b"{" + held["socket JSON"].encode(),
    )
    await over_websocket(
        it.address, "/v1/responses", KEY, {"type": "response.create", "model": "via-openai_responses", "input": held["responses"]}
    )


@pytest.mark.slow
async def test_k07_nothing_that_was_said_is_in_any_log(tmp_path: Path) -> None:
    """K-07: at debug all of it; at the other levels what makes them say most."""
    held, found, events = Canaries(), [], set()
    for level in LEVELS:
        folder = tmp_path / level
        with trio.fail_after(120):
            async with world(folder, level) as (it, provider):
                if level == "debug":
                    await use(it, provider, held)
                else:
                    for body in bodies(held)[-6:]:
                        data = post({"model": "via-openai_chat", **body}, headers={"Authorization": f"Bearer {KEY}"})
                        await say(it.address, data)
                host, _, port = it.ready["admin"].removeprefix("http://").rpartition(":")
                scraped = await say((host, int(port)), get("/metrics").replace(b"gw.test", b"localhost"))
                await it.stop()
                log = it.stderr.read_bytes() + it.stdout.read_bytes()
        found += [f"{level}: {each}" for each in leaks(log + scraped.data, held.known)]
        for path in sorted((folder / "state").rglob("*")):
            if path.is_file():
                kept = path.read_bytes().replace(bytes(64), b"")  # of a database most is empty
                found += [f"{level}, {path.name}: {each}" for each in leaks(kept, held.known)]
        if level == "debug":
            lines = [json.loads(line) for line in log.splitlines() if line.startswith(b"{")]
            events = {line["event"] for line in lines} | {line.get("outcome", "") for line in lines}
    assert not found, "\n".join(found)
    used = {"complete", "provider_error.cut", "provider_error.server", "plugin.hook_failed", "refused.plugin"}
    assert used <= events
    assert len(held.known) > 50


def test_the_search_sees_a_prompt_that_is_logged() -> None:
    held = Canaries()
    assert leaks(json.dumps({"message": f"said {held['x']}!"}).encode(), held.known)
    assert not leaks(b'{"message":"said nothing"}', held.known)
