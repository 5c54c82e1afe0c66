"""What each profile makes of one rich request, as its provider got it over a socket; and what hosts answer with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define
from trio_websocket import open_websocket_url

from clawproxy.config import ProviderConfig, SecretRef
from clawproxy.dialects.profiles import PROFILES
from clawproxy.scripted import Entry, ScriptedProvider
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import Reply, fetch

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "I look.", "reasoning_content": "so", "tool_calls": [CALL]},
    {"role": "tool", "content": "42", "tool_call_id": "c1"},
]
ASKED: dict[str, Any] = {
    "messages": MESSAGES,
    "max_tokens": 50,
    "seed": 7,
    "top_k": 3,
    "frequency_penalty": 0.5,
    "user": "u",
    "store": False,
    "prompt_cache_key": "k",
    "tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}],
    "stream": True,
}


@define
class Want:
    """How a request differs from the one above."""

    path: str = "/v1/chat/completions"
    header: str = "authorization"
    limit: str = "max_tokens"
    usage: bool = True
    role: str = "developer"
    reasoning: str | None = "reasoning_content"
    seed: str = "seed"
    strict: bool = True
    left_out: tuple[str, ...] = ()


WANTED: dict[str, Want] = {
    "default": Want(),
    "openai": Want(reasoning=None),
    "azure": Want("/v1/openai/v1/chat/completions", "api-key", reasoning=None),
    "azure_entra": Want("/v1/openai/v1/chat/completions", reasoning=None),
    "xroute": Want(),
    "vllm": Want(role="system", reasoning="reasoning", strict=False),
    "openrouter": Want(reasoning="reasoning"),
    "groq": Want(reasoning="reasoning", left_out=("store", "prompt_cache_key")),
    "mistral": Want(
        usage=False, role="system", reasoning=None, seed="random_seed", left_out=("user", "store", "prompt_cache_key")
    ),
    "deepseek": Want(role="system", strict=False),
    "bedrock": Want(reasoning=None),
    "ollama_compat": Want(role="system", reasoning="reasoning", strict=False),
    "openclaw": Want(),
}
NEWER = ("openai", "azure", "azure_entra", "groq", "bedrock")
"""They want `max_completion_tokens` from clients that said neither."""
TOP_K = ("vllm", "openrouter", "mistral")


@define
class Host:
    running: Running
    provider: ScriptedProvider

    @property
    def last(self) -> Entry:
        return self.provider.log.last

    async def ask(self, model: str, **fields: Any) -> Reply:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        async with await self.running.connect() as connection:
            with trio.fail_after(5):
                return await fetch(connection, "POST", "/v1/chat/completions", headers=headers, body=body)

    async def over_websocket(self, model: str, **fields: Any) -> dict[str, Any]:
        """The last frame."""
        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        async with open_websocket_url(self.running.websocket, extra_headers=headers) as ws:
            await ws.get_message()
            await ws.send_message(json.dumps({"type": "llm_request", "id": "r", "model": model, **fields}))
            while True:
                frame: dict[str, Any] = json.loads(await ws.get_message())
                if frame["type"] in ("llm_response_end", "error"):
                    return frame


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """A gateway with a provider for each profile, all of them the same scripted one."""
    key = SecretRef("", PROVIDER_KEY)
    async with ScriptedProvider.running() as provider:
        providers = {
            name: ProviderConfig(profile=name, base_url=provider.base_url, api_key=key) for name in PROFILES if name != "default"
        }
        providers["default"] = ProviderConfig(base_url=provider.base_url, api_key=key)
        providers["azure-classic"] = ProviderConfig(dialect="azure", base_url=provider.url, api_key=key, api_version="2024-10-21")
        async with gateway(tmp_path, providers=providers, models={}) as running:
            yield Host(running, provider)


def test_each_profile_is_tried() -> None:
    assert WANTED.keys() == PROFILES.keys()


def header_of_the_key(entry: Entry) -> list[str]:
    return [name.lower() for name, _ in entry.headers if name.lower() in ("authorization", "api-key", "x-api-key")]


@pytest.mark.parametrize("name", WANTED)
async def test_a_request_of_the_same_dialect(name: str, host: Host) -> None:
    want = WANTED[name]
    reply = await host.ask(f"{name}/m", **ASKED)
    assert reply.status == 200
    entry, body = host.last, dict(host.last.body)
    assert (entry.target, header_of_the_key(entry)) == (want.path, [want.header])
    function = {**FUNCTION, "strict": True} if want.strict else FUNCTION
    expected = {
        **{name: value for name, value in ASKED.items() if name not in (*want.left_out, "seed")},
        "model": "m",
        want.seed: 7,
        "tools": [{"type": "function", "function": function}],
    }
    spoken = {**MESSAGES[2]}
    del spoken["reasoning_content"]
    if want.reasoning is not None:
        spoken[want.reasoning] = "so"
    expected["messages"] = [{**MESSAGES[0], "role": want.role}, MESSAGES[1], spoken, MESSAGES[3]]
    if want.usage:
        expected["stream_options"] = {"include_usage": True}
    assert body == expected
    told = "parameter_dropped" in reply.headers.get("x-claw-notice", "")
    assert told == bool(want.left_out or not want.strict), "the client is told what was left out"


@pytest.mark.parametrize("name", WANTED)
async def test_the_name_of_the_limit(name: str, host: Host) -> None:
    """A client's own word stands where the host takes it."""
    await host.ask(f"{name}/m", max_completion_tokens=9)
    older = name in ("mistral", "deepseek", "ollama_compat")
    assert {key: value for key, value in host.last.body.items() if key.startswith("max")} == {
        "max_tokens" if older else "max_completion_tokens": 9
    }
    end = await host.over_websocket(f"{name}/m", prompt="hi", parameters={"max_tokens": 9})
    assert end["type"] == "llm_response_end"
    limit = "max_completion_tokens" if name in NEWER else "max_tokens"
    assert {key: value for key, value in host.last.body.items() if key.startswith("max")} == {limit: 9}


@pytest.mark.parametrize("name", WANTED)
async def test_top_k_of_another_dialect(name: str, host: Host) -> None:
    end = await host.over_websocket(f"{name}/m", prompt="hi", parameters={"top_k": 5, "presence_penalty": 0.25})
    if name in TOP_K:
        assert end["type"] == "llm_response_end"
        assert (host.last.body["top_k"], host.last.body["presence_penalty"]) == (5, 0.25)
    else:
        assert (end["error"], end["param"]) == ("unsupported_parameter", "top_k")
        assert not host.provider.log.requests


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("groq", {"logprobs": True}),
        ("groq", {"logit_bias": {"1": 2}}),
        ("mistral", {"logit_bias": {"1": 2}}),
        ("ollama_compat", {"logit_bias": {"1": 2}}),
        ("deepseek", {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}}),
    ],
)
async def test_what_a_host_would_not_honour_is_refused_by_name(name: str, fields: dict[str, Any], host: Host) -> None:
    reply = await host.ask(f"{name}/m", **fields)
    [param] = fields
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (400, "unsupported_parameter", param)
    assert not host.provider.log.requests
    void: tuple[Any, ...] = (None, False if param == "logprobs" else {})
    for nothing in void:
        if param != "response_format" or nothing is None:
            assert (await host.ask(f"{name}/m", **{param: nothing})).status == 200, "this asks for nothing"
    assert param not in host.last.body or host.last.body[param] is None


async def test_json_objects_are_for_all(host: Host) -> None:
    assert (await host.ask("deepseek/m", response_format={"type": "json_object"})).status == 200
    assert host.last.body["response_format"] == {"type": "json_object"}


async def test_azures_older_paths(host: Host) -> None:
    reply = await host.ask("azure-classic/my deployment", stream=True)
    assert reply.status == 404, "without [models] only what can be a name passes"
    reply = await host.ask("azure-classic/my+gpt/4o", stream=True)
    assert reply.status == 200
    assert host.last.target == "/openai/deployments/my%2Bgpt%2F4o/chat/completions?api-version=2024-10-21"
    assert header_of_the_key(host.last) == ["api-key"]
    assert host.last.credential_ok is None


FILTERED = {"hate": {"filtered": False, "severity": "safe"}}
AZURE_STREAM = [
    {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [
        {"prompt_index": 0, "content_filter_results": FILTERED}]},
    {"id": "chatcmpl-az", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-11-20", "choices": [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "content_filter_results": {}, "finish_reason": None}]},
    {"id": "chatcmpl-az", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-11-20", "choices": [
        {"index": 0, "delta": {"content": "Hello"}, "content_filter_results": FILTERED, "finish_reason": None}]},
    {"id": "", "object": "", "created": 0, "model": "", "choices": [
        {"index": 0, "content_filter_offsets": {"check_offset": 1}, "content_filter_results": FILTERED, "finish_reason": None}]},
    {"id": "chatcmpl-az", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-11-20", "choices": [
        {"index": 0, "delta": {}, "content_filter_results": {}, "finish_reason": "stop"}]},
    {"id": "chatcmpl-az", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-11-20", "choices": [],
     "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}},
]  # fmt: skip


def as_script(chunks: list[dict[str, Any]], *, before: bytes = b"", header: str = "") -> str:
    data = before + b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    quoted = data.decode().replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"').replace(";", "\\;").replace("#", "\\#")
    return f'{header}raw "{quoted}"; end bare'


async def test_azures_chunks_reach_the_client(host: Host) -> None:
    for asked in (True, False):
        host.provider.will(as_script(AZURE_STREAM))
        options = {"stream_options": {"include_usage": True}} if asked else {}
        reply = await host.ask("azure/gpt-4o", stream=True, **options)
        events = [json.loads(event) for event in reply.events() if event != "[DONE]"]
        assert events == (AZURE_STREAM if asked else AZURE_STREAM[:-1])
        assert reply.text() == "Hello"
        assert list(reply.events())[-1] == "[DONE]"


async def test_azures_errors(host: Host) -> None:
    host.provider.will("status 429 header retry-after-ms: 2500")
    reply = await host.ask("azure/gpt-4o")
    assert (reply.status, reply.headers["retry-after-ms"], reply.headers["retry-after"]) == (429, "2500", "3")
    host.running.forget_trouble()
    words = {"error": {"message": "The response was filtered.", "code": "content_filter", "param": "prompt", "status": 400,
                       "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": FILTERED}}}  # fmt: skip
    host.provider.will(f"status 400 body {json.dumps(words)}")
    reply = await host.ask("azure/gpt-4o")
    assert (reply.status, reply.json()["error"]["code"]) == (400, "provider_error.rejected")
    assert "filtered" in reply.json()["error"]["message"]


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "gen-1", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice], **more}


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


async def test_openrouters_comments_header_and_reasoning(host: Host) -> None:
    chunks = [chunk({"reasoning": "so"}, provider="X"), chunk({"content": "Hi"}, provider="X"), chunk({}, "stop", provider="X")]
    script = as_script(chunks, before=b": OPENROUTER PROCESSING\n\n", header="header X-Generation-Id: gen-1; ")
    host.provider.will(script, script)
    reply = await host.ask("openrouter/a/b", stream=True)
    assert [json.loads(event) for event in reply.events() if event != "[DONE]"] == chunks
    assert host.last.body["model"] == "a/b"
    end = await host.over_websocket("openrouter/a/b", prompt="hi")
    assert (end["type"], end["finish_reason"]) == ("llm_response_end", "stop")


async def test_mistrals_usage_comes_unasked(host: Host) -> None:
    """In its last chunk, beside the finish reason: it is counted, and stands where this host has it."""
    host.provider.will(as_script([chunk({"content": "Hi"}), chunk({}, "stop", usage=USAGE)]))
    reply = await host.ask("mistral/m", stream=True)
    assert "stream_options" not in host.last.body
    assert json.loads(list(reply.events())[-2])["usage"] == USAGE
    end = await host.over_websocket("mistral/m", prompt="hi", parameters={"stream": False})
    assert end["usage"]["source"] == "measured"
