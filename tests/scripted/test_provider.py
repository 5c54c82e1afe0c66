"""The provider as others use it: its log, the control endpoints, the official SDK, the standalone program, its independence."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

import clawproxy.scripted
from clawproxy.scripted import Pause, ProviderLog, ScriptedProvider, Stall, Step, ToolCall, fingerprint, parse, run_standalone
from clawproxy.scripted.__main__ import read_script
from clawproxy.scripted.grammar import GRAMMAR
from clawproxy.secrets import Secret
from tests.scripted.raw_client import Clients, Reply

KEY = "sk-test-very-secret"


# --- the log ---------------------------------------------------------------------------------------------------------------


async def test_an_entry_says_what_came(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    await client.ask("hello", headers="X-Request-ID: req-7\r\nX-Two: a\r\nx-two: b\r\n", temperature=0.5)
    await provider.log.wait_for(lambda log: log.in_progress == 0)
    entry = provider.log.last
    assert (entry.serial, entry.connection, entry.method, entry.target) == (1, 1, "POST", "/v1/chat/completions")
    assert (entry.model, entry.stream, entry.request_id, entry.status) == ("test-model", True, "req-7", 200)
    assert [pair for pair in entry.headers if pair[0].lower() == "x-two"] == [("X-Two", "a"), ("x-two", "b")]
    assert entry.body["temperature"] == 0.5
    assert json.loads(entry.body_bytes) == entry.body
    assert entry.first_byte_at is not None
    assert entry.closed_at is not None
    assert entry.received_at <= entry.first_byte_at <= entry.closed_at
    await client.ask(metadata={"request_id": "from-the-body"})
    assert provider.log.last.request_id == "from-the-body"


@pytest.mark.parametrize(
    "header", [f"Authorization: Bearer {KEY}", f"authorization: bearer {KEY}", f"X-Api-Key: {KEY}", f"api-key: {KEY}"]
)
async def test_credentials_are_compared_and_never_shown(nursery: trio.Nursery, connect: Clients, header: str) -> None:
    provider = ScriptedProvider(key=Secret(KEY))
    await nursery.start(provider.serve)
    client = await connect(provider)
    assert (await client.ask(headers=f"{header}\r\nCookie: id={KEY}\r\n")).status == 200
    right = provider.log.last
    assert (await client.ask(headers=f"{header}x\r\n")).status == 401
    assert (await client.ask()).status == 401
    assert right.credential_ok is True
    assert [entry.credential_ok for entry in provider.log.entries] == [True, False, False]
    assert right.credential == fingerprint(header.partition(": ")[2])
    assert right.header("Cookie") == fingerprint(f"id={KEY}")
    await provider.log.wait_for(lambda log: log.in_progress == 0)
    for shown in (repr(provider.log), repr(list(provider.log.entries)), json.dumps(provider.log.as_json())):
        assert KEY not in shown


async def test_the_log_is_bounded_by_entries_and_bytes(nursery: trio.Nursery, connect: Clients) -> None:
    provider = ScriptedProvider("say a", log=ProviderLog(max_entries=3, max_bytes=5000))
    await nursery.start(provider.serve)
    client = await connect(provider)
    for _ in range(5):
        await client.ask()
    assert [entry.serial for entry in provider.log.entries] == [3, 4, 5]
    await client.ask("x" * 4900)
    assert [entry.serial for entry in provider.log.entries] == [6]
    await client.ask("x" * 9000)  # one is kept, however large
    assert [entry.serial for entry in provider.log.entries] == [7]
    await provider.log.wait_for(lambda log: log.counts["finished"] == 7)
    assert provider.log.requests == 7
    for _ in range(4):
        await (await connect(provider)).ask()
    assert len(provider.log.connections) == 3
    assert provider.log.connections_opened == provider.log.open_connections == 5


async def test_clearing_keeps_what_is_open(provider: ScriptedProvider, connect: Clients) -> None:
    client, other = await connect(provider), await connect(provider)
    await client.ask()
    provider.will_say(Stall())
    await other.send()
    await provider.log.wait_for(lambda log: log.in_progress == 1)
    provider.log.clear()
    assert provider.log.stats() == {
        "requests": 1, "connections": 2, "open_connections": 2, "malformed": 0, "bytes_sent": 0,
        "in_progress": 1, "finished": 0, "closed_by_peer": 0, "cut_by_script": 0, "closed_by_provider": 0,
    }  # fmt: skip
    other.close()
    client.close()
    await provider.log.wait_for(lambda log: log.open_connections == 0 and log.counts["closed_by_peer"] == 1)


async def test_a_provider_that_stops_says_so(connect: Clients) -> None:
    async with ScriptedProvider.running("say a; stall") as provider:
        client = await connect(provider)
        await client.send()
        await client.read_until(b'"a"')
    assert provider.log.last.state == "closed_by_provider"
    assert provider.log.open_connections == 0
    assert provider.log.connections[0].closed_by == "provider"


async def test_a_bug_in_the_provider_does_not_end_it(
    provider: ScriptedProvider, connect: Clients, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(provider, "_choose", lambda asked: 1 / 0)
        client = await connect(provider)
        await client.send()
        assert await client.read_all() == b""
    assert "the scripted provider failed on connection 1" in caplog.text
    assert (await (await connect(provider)).ask()).status == 200


async def test_latency_comes_before_every_answer(
    nursery: trio.Nursery, connect: Clients, autojump_clock: trio.testing.MockClock
) -> None:
    provider = ScriptedProvider("say a", latency=5)
    await nursery.start(provider.serve)
    client = await connect(provider)
    started = trio.current_time()
    await client.ask()
    assert trio.current_time() - started == pytest.approx(5, abs=0.5)


# --- control over HTTP -----------------------------------------------------------------------------------------------------


async def _control(clients: Clients, provider: ScriptedProvider, method: str, target: str, body: Any = "") -> Reply:
    client = await clients(provider)
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    kind = "text/plain" if isinstance(body, str) else "application/json"
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
    await client.stream.send_all(head.encode() + data)
    reply = await client.reply()
    client.close()
    return reply


async def test_scripts_over_http(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    assert (await _control(connect, provider, "POST", "/_script", "say first")).json["queued"] == 1
    await _control(connect, provider, "POST", "/_script?as=default", "say default")
    await _control(connect, provider, "POST", "/_script?model=m2", "say model")
    told = {"next": ["say second", "say third"], "models": {"m3": "say m3"}}
    assert (await _control(connect, provider, "POST", "/_script", told)).json == {"queued": 3, "default": "say default"}
    models = ("m1", "m1", "m1", "m1", "m2", "m3")
    said = [(await client.ask(model=model)).text for model in models]
    assert said == ["first", "second", "third", "default", "model", "m3"]

    log = (await _control(connect, provider, "GET", "/_log?after=4")).json
    assert [entry["model"] for entry in log["requests"]] == ["m2", "m3"]
    stats = (await _control(connect, provider, "GET", "/_stats")).json
    assert (stats["requests"], stats["connections"], stats["open_connections"]) == (6, 1, 1)
    assert (await _control(connect, provider, "POST", "/_reset")).json["requests"] == 0
    assert "scripted provider" in (await client.ask(model="m2")).text


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "says"),
    [
        ("POST", "/_script", "say a; nope", 400, "step 2: `nope`"),
        ("POST", "/_script", {"next": ["say a"], "default": "nope"}, 400, "step 1: `nope`"),
        ("POST", "/_script", {"nxt": []}, 400, "any of the three"),
        ("POST", "/_script", {"next": "say a"}, 400, "is a list"),
        ("POST", "/_script", {"next": [5]}, 400, "a string"),
        ("POST", "/_script", [], 400, "any of the three"),
        ("GET", "/_log?after=x", "", 400, "serial"),
        ("GET", "/_nothing", "", 404, "GET /_log"),
    ],
)
async def test_a_wrong_instruction_changes_nothing(
    provider: ScriptedProvider, connect: Clients, method: str, target: str, body: Any, status: int, says: str
) -> None:
    reply = await _control(connect, provider, method, target, body)
    assert reply.status == status
    assert says in reply.json["error"]["message"]
    assert not provider.queue
    assert str(provider.default) == "reply"
    assert provider.log.stats()["connections"] == 0


# --- the official SDK ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sdk(provider: ScriptedProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.base_url, api_key=KEY, max_retries=0, timeout=10) as client:
        yield client


MESSAGES: Any = [{"role": "user", "content": "hello"}]


async def test_the_openai_sdk_reads_whole_answers(provider: ScriptedProvider, sdk: openai.OpenAI) -> None:
    provider.will("reasoning hm; say Hello you; usage 3 2 cached 1 reasoning 1")
    answer = await trio.to_thread.run_sync(lambda: sdk.chat.completions.create(model="m", messages=MESSAGES))
    assert answer.choices[0].message.content == "Hello you"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer._request_id == "req_scripted_1"


async def test_the_openai_sdk_streams_text_tools_and_usage(provider: ScriptedProvider, sdk: openai.OpenAI) -> None:
    provider.will_say("Zürich", Pause(0.005), " now", ToolCall("weather", '{"city":"Zürich"}'), ToolCall("time"))

    def read() -> list[Any]:
        options: Any = {"include_usage": True}
        stream = sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True, stream_options=options)
        with stream:
            return list(stream)

    chunks = await trio.to_thread.run_sync(read)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "Zürich now"
    arguments = {0: "", 1: ""}
    for choice in choices:
        for call in choice.delta.tool_calls or []:
            arguments[call.index] += call.function.arguments
    assert arguments == {0: '{"city":"Zürich"}', 1: "{}"}
    assert choices[-1].finish_reason == "tool_calls"
    assert chunks[-1].usage.prompt_tokens == 1
    assert provider.log.last.body["stream_options"] == {"include_usage": True}


async def test_the_openai_sdk_sees_the_faults(provider: ScriptedProvider, sdk: openai.OpenAI) -> None:
    def stream() -> str:
        with sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True) as chunks:
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    provider.will("status 429 retry-after 1", "say a; error code oops Broken", "say a; cut", "say ok")
    with pytest.raises(openai.RateLimitError) as limited:
        await trio.to_thread.run_sync(stream)
    assert limited.value.code == "rate_limit_exceeded"
    with pytest.raises(openai.APIError, match="Broken"):
        await trio.to_thread.run_sync(stream)
    with pytest.raises(openai.APIConnectionError):
        await trio.to_thread.run_sync(stream)
    assert await trio.to_thread.run_sync(stream) == "ok"
    models = await trio.to_thread.run_sync(lambda: [model.id for model in sdk.models.list()])
    assert models == ["scripted"]


# --- the program -----------------------------------------------------------------------------------------------------------


def test_a_script_comes_from_a_file_or_is_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.script").write_text("say from a file\nend\n")
    assert str(read_script(str(tmp_path / "a.script"))) == "say from a file; end"
    assert str(read_script("say text")) == "say text"
    assert str(read_script("say " + "x" * 10_000)).endswith("xxx")


async def test_run_standalone_reports_its_url(nursery: trio.Nursery) -> None:
    urls: list[str] = []
    nursery.start_soon(run_standalone, "127.0.0.1", 0, "say hi", urls.append)
    with trio.fail_after(5):
        while not urls:
            await trio.testing.wait_all_tasks_blocked()
    assert urls[0].startswith("http://127.0.0.1:")
    assert urls[0].endswith("/v1")
    nursery.cancel_scope.cancel()


async def test_the_program_prints_its_url_and_answers() -> None:
    root = Path(clawproxy.scripted.__file__).parents[2]
    command = [sys.executable, "-W", "error", "-m", "clawproxy.scripted", "--script", "say hi"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            line = await trio.to_thread.run_sync(process.stdout.readline)
            url = line.removeprefix("scripted provider listening on ").strip()
            client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
            with client:
                answer = await trio.to_thread.run_sync(lambda: client.chat.completions.create(model="m", messages=MESSAGES))
            assert answer.choices[0].message.content == "hi"
        finally:
            process.terminate()


def test_the_program_refuses_a_bad_script() -> None:
    root = Path(clawproxy.scripted.__file__).parents[2]
    command = [sys.executable, "-m", "clawproxy.scripted", "--script", "sya hi"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)}, timeout=30)
    assert done.returncode == 2
    assert "step 1: `sya` is not a step" in done.stderr


def test_the_program_says_why_it_cannot_listen() -> None:
    root = Path(clawproxy.scripted.__file__).parents[2]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "clawproxy.scripted", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)}, timeout=30)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


# --- independence ----------------------------------------------------------------------------------------------------------


def test_nothing_of_the_codec_under_test_is_used() -> None:
    """Of the gateway the provider knows `secrets` alone."""
    for module in pkgutil.iter_modules(clawproxy.scripted.__path__, "clawproxy.scripted."):
        source = Path(importlib.import_module(module.name).__file__ or "").read_text()
        for node in ast.walk(ast.parse(source)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.startswith("clawproxy"):
                    assert name.startswith("clawproxy.scripted") or name == "clawproxy.secrets", f"{module.name}: {name}"


# --- the page about it -----------------------------------------------------------------------------------------------------

PAGE = (Path(clawproxy.scripted.__file__).parents[2] / "docs" / "scripted.md").read_text(encoding="utf-8")


def test_the_page_has_every_step() -> None:
    steps = [row for row in PAGE.splitlines() if row.startswith("| `")]
    spans = {span.split(" ")[0] for row in steps for span in re.findall("`([^`]+)`", row.split(" | ")[0].replace("\\|", "/"))}
    assert set(GRAMMAR) <= spans
    for cls in Step.__subclasses__():
        assert f"`{cls.__name__}(" in PAGE


def test_the_page_s_scripts_can_be_played() -> None:
    table = PAGE.partition("| a provider that ...")[2].partition("\n\n")[0]
    scripts = [span for row in table.splitlines()[2:] for span in re.findall("`([^`]+)`", row)]
    assert len(scripts) >= 12
    for script in scripts:
        assert parse(script).steps
