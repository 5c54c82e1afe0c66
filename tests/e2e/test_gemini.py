"""google-genai over a running gateway: with a provider of the same format behind it, and with one of another."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from google import genai
from google.genai import errors, types

from clawproxy.config import ModelConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.scripted import ScriptedProvider, fingerprint
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import Reply, fetch

BOTH = pytest.mark.parametrize("model", ["google", "other"])
"""The model's provider speaks Gemini, or Chat Completions."""
SCHEMA = {"type": "object", "properties": {}}
TOOL = types.FunctionDeclaration(name="weather", description="d", parameters_json_schema=SCHEMA)


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[Running, ScriptedProvider]]:
    key = SecretRef("", PROVIDER_KEY)
    async with ScriptedProvider.running() as provider:
        providers = {
            "google": ProviderConfig(dialect="gemini", base_url=f"{provider.url}/v1beta", api_key=key),
            "other": ProviderConfig(base_url=f"{provider.url}/v1", api_key=key),
        }
        models = {
            "google": ModelConfig((RouteConfig("google", "gemini-3/x"),)),
            "other": ModelConfig((RouteConfig("other", "scripted-1"),)),
            "a/b:c": ModelConfig((RouteConfig("google", "gemini-3/x"),)),
        }
        async with gateway(tmp_path, providers=providers, models=models) as running:
            yield running, provider


async def sdk(running: Running, use: Callable[[genai.Client], Any], key: str = KEY, version: str = "v1beta") -> Any:
    """What `use` does with the real client, in a thread: its own sockets, its own reader."""

    def work() -> Any:
        options = types.HttpOptions(base_url=running.url, api_version=version, timeout=20_000)
        with genai.Client(api_key=key, http_options=options) as client:
            return use(client)

    return await trio.to_thread.run_sync(work)


def generate(prompt: Any, model: str, **config: Any) -> Callable[[genai.Client], types.GenerateContentResponse]:
    asked = types.GenerateContentConfig(**config) if config else None
    return lambda client: client.models.generate_content(model=model, contents=prompt, config=asked)


def streamed(prompt: Any, model: str, **config: Any) -> Callable[[genai.Client], list[types.GenerateContentResponse]]:
    asked = types.GenerateContentConfig(**config) if config else None
    return lambda client: list(client.models.generate_content_stream(model=model, contents=prompt, config=asked))


@BOTH
async def test_an_answer_in_one_piece(tmp_path: Path, model: str) -> None:
    async with serving(tmp_path) as (running, provider):
        provider.will("reasoning because of this; say hello there")
        answer = await sdk(running, generate("two words", model, system_instruction="be brief", max_output_tokens=50))
        assert answer.text == "hello there"
        [candidate] = answer.candidates
        assert candidate.finish_reason is types.FinishReason.STOP
        usage = answer.usage_metadata
        assert (usage.prompt_token_count, usage.thoughts_token_count) == (4, 3)
        assert usage.candidates_token_count == 2
        [entry] = provider.log.entries
        assert entry.credential == fingerprint(PROVIDER_KEY if model == "google" else f"Bearer {PROVIDER_KEY}")
        if model == "google":
            assert entry.target == "/v1beta/models/gemini-3%2Fx:generateContent"
            assert entry.body == {
                "contents": [{"role": "user", "parts": [{"text": "two words"}]}],
                "systemInstruction": {"parts": [{"text": "be brief"}]},
                "generationConfig": {"maxOutputTokens": 50},
            }


@BOTH
@pytest.mark.parametrize("version", ["v1", "v1beta"])
async def test_a_stream(tmp_path: Path, model: str, version: str) -> None:
    async with serving(tmp_path) as (running, provider):
        provider.will("reasoning hm; say a b caf\u00e9 \u2028 d")
        chunks = await sdk(running, streamed("x", model), version=version)
        assert "".join([chunk.text or "" for chunk in chunks]) == "a b caf\u00e9 \u2028 d"
        assert len(chunks) > 4, "each of the provider's tokens is a chunk"
        finishes = [c.finish_reason for chunk in chunks for c in chunk.candidates or [] if c.finish_reason]
        assert finishes == [types.FinishReason.STOP]
        [usage] = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        assert (usage.prompt_token_count, usage.thoughts_token_count) == (1, 1)
        thoughts = [part for chunk in chunks for part in chunk.parts or [] if part.thought]
        assert len(thoughts) == (1 if model == "google" else 0), "nobody asked another provider's answer for thoughts"


async def test_thoughts_of_another_provider_where_they_are_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as (running, provider):
        provider.will("reasoning hm; say a", "reasoning hm; say a")
        asked = {"thinking_config": types.ThinkingConfig(include_thoughts=True, thinking_level=types.ThinkingLevel.HIGH)}
        chunks = await sdk(running, streamed("x", "other", **asked))
        assert [part.text for chunk in chunks for part in chunk.parts or [] if part.thought] == ["hm"]
        answer = await sdk(running, generate("x", "other", **asked))
        assert [(part.text, part.thought) for part in answer.parts] == [("hm", True), ("a", None)]
        assert [entry.body["reasoning_effort"] for entry in provider.log.entries] == ["high", "high"]


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_tools_by_hand(tmp_path: Path, model: str, stream: bool) -> None:
    """The answers have no id: two calls of one tool are answered in their order."""
    config: dict[str, Any] = {"tools": [types.Tool(function_declarations=[TOOL])]}
    script = 'tool weather {"city": "Rome"}; tool weather {"city": "Oslo"}'
    async with serving(tmp_path) as (running, provider):
        provider.will(script, "say done")
        if stream:
            chunks = await sdk(running, streamed("x", model, **config))
            parts = [part for chunk in chunks for part in chunk.parts or []]
        else:
            parts = (await sdk(running, generate("x", model, **config))).parts
        calls = [part.function_call for part in parts]
        assert [(call.name, call.args) for call in calls] == [("weather", {"city": "Rome"}), ("weather", {"city": "Oslo"})]
        answers = [types.Part.from_function_response(name="weather", response={"result": sort}) for sort in ("sun", "snow")]
        turns = [
            types.UserContent("x"),
            types.Content(role="model", parts=[*parts]),
            types.Content(role="user", parts=answers),
        ]
        assert (await sdk(running, generate(turns, model, **config))).text == "done"
        body = provider.log.entries[-1].body
        if model == "google":
            signed, plain = body["contents"][1]["parts"]
            assert signed["functionCall"] == {"name": "weather", "args": {"city": "Rome"}}, "no id of the gateway's making"
            assert signed["thoughtSignature"] == "c2NyaXB0ZWQgc2lnbmF0dXJl"
            assert "thoughtSignature" not in plain
            assert body["contents"][2]["parts"] == [
                {"functionResponse": {"name": "weather", "response": {"result": "sun"}}},
                {"functionResponse": {"name": "weather", "response": {"result": "snow"}}},
            ]
        else:
            _, model_turn, *results = body["messages"]
            idents = [call["id"] for call in model_turn["tool_calls"]]
            assert len(set(idents)) == 2
            assert [(each["tool_call_id"], each["content"]) for each in results] == [
                (idents[0], '{"result":"sun"}'),
                (idents[1], '{"result":"snow"}'),
            ]
            assert body["tools"][0]["function"]["parameters"] == SCHEMA


@BOTH
async def test_tools_called_by_the_sdk_itself(tmp_path: Path, model: str) -> None:
    cities: list[str] = []

    def weather(city: str) -> str:
        """The weather of a city."""
        cities.append(city)
        return "sun"

    async with serving(tmp_path) as (running, provider):
        provider.will('tool weather {"city": "Rome"}', "say it is sunny")
        answer = await sdk(running, generate("x", model, tools=[weather]))
        assert (answer.text, cities) == ("it is sunny", ["Rome"])
        assert len(provider.log.entries) == 2
        said = json.dumps(provider.log.entries[1].body)
        assert "sun" in said


@BOTH
async def test_json_by_a_schema(tmp_path: Path, model: str) -> None:
    schema = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER", "nullable": True}}, "required": ["n"]}
    async with serving(tmp_path) as (running, provider):
        provider.will('say "{\\"n\\": 5}"')
        answer = await sdk(running, generate("x", model, response_mime_type="application/json", response_schema=schema))
        assert answer.parsed == {"n": 5}
        body = provider.log.entries[0].body
        if model == "google":
            assert body["generationConfig"]["responseSchema"]["type"] == "OBJECT", "the client's own kind of schema"
        else:
            sent = body["response_format"]["json_schema"]["schema"]
            assert sent == {"type": "object", "properties": {"n": {"type": ["integer", "null"]}}, "required": ["n"]}


ERRORS = [
    ("status 400", 400, "INVALID_ARGUMENT"),
    ("status 404", 502, "UNAVAILABLE"),
    ("status 429 retry-after 7", 429, "RESOURCE_EXHAUSTED"),
    ("status 503", 503, "UNAVAILABLE"),
]


@BOTH
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("script", "code", "status"), ERRORS)
async def test_the_providers_errors(tmp_path: Path, model: str, stream: bool, script: str, code: int, status: str) -> None:
    async with serving(tmp_path) as (running, provider):
        provider.will(script)
        with pytest.raises(errors.APIError) as caught:
            await sdk(running, (streamed if stream else generate)("x", model))
        raised = caught.value
        assert (raised.code, raised.status) == (code, status)
        assert isinstance(raised, errors.ClientError if code < 500 else errors.ServerError)
        details = raised.details["error"]["details"]
        assert any(detail["@type"].endswith("RequestInfo") and detail["requestId"] for detail in details)
        if code == 429:
            assert {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"} in details


@BOTH
@pytest.mark.parametrize("fault", ["error boom", "cut"])
async def test_an_answer_that_breaks_off(tmp_path: Path, model: str, fault: str) -> None:
    async with serving(tmp_path) as (running, provider):
        provider.will(f"say a b c; {fault}")
        heard: list[str] = []

        def use(client: genai.Client) -> None:
            heard.extend(chunk.text or "" for chunk in client.models.generate_content_stream(model=model, contents="x"))

        with pytest.raises(errors.ServerError) as caught:
            await sdk(running, use)
        assert "".join(heard).startswith("a b")  # a policy may hold the last word back
        assert (caught.value.code, caught.value.status) == (502, "UNAVAILABLE")


async def test_tokens_counted_and_contents_embedded(tmp_path: Path) -> None:
    async with serving(tmp_path) as (running, provider):
        counted = await sdk(running, lambda client: client.models.count_tokens(model="google", contents="one two three"))
        assert counted.total_tokens == 3
        vectors = await sdk(running, lambda client: client.models.embed_content(model="google", contents=["a", "b"]))
        assert [each.values for each in vectors.embeddings] == [[0.5, -0.25, 1.0], [1.5, -0.25, 1.0]]
        targets = [entry.target.rpartition(":")[2] for entry in provider.log.entries]
        assert targets == ["countTokens", "batchEmbedContents"]
        one = await post(running, "google:embedContent", {"content": {"parts": [{"text": "a"}]}})
        assert one.json() == {"embedding": {"values": [0.5, -0.25, 1.0]}}


@pytest.mark.parametrize("version", ["v1", "v1beta"])
async def test_the_models(tmp_path: Path, version: str) -> None:
    async with serving(tmp_path) as (running, _):
        listed = await sdk(running, lambda client: list(client.models.list()), version=version)
        assert [model.name for model in listed] == ["models/google", "models/other", "models/a/b:c"]
        one = await sdk(running, lambda client: client.models.get(model="a/b:c"), version=version)
        assert (one.name, one.display_name) == ("models/a/b:c", "a/b:c")
        for use in (lambda client: client.models.get(model="gone"), generate("x", "gone")):
            with pytest.raises(errors.ClientError) as caught:
                await sdk(running, use, version=version)
            assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


async def test_who_may_not_come_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as (running, provider):
        with pytest.raises(errors.ClientError) as caught:
            await sdk(running, generate("x", "google"), key="wrong")
        assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")
        body = {"contents": [{"parts": [{"text": "x"}]}]}
        reply = await post(running, f"google:generateContent?key={KEY}", body, headers={})
        assert (reply.status, reply.json()["error"]["status"]) == (401, "UNAUTHENTICATED")
        assert "must not stand in the URL" in reply.json()["error"]["message"]
        assert KEY not in reply.body.decode()
        reply = await post(running, f"google:generateContent?key={KEY}", body)
        assert (reply.status, reply.json()["error"]["message"]) == (
            400,
            "Send the key in the `x-goog-api-key` header, not in the URL.",
        )
        assert not provider.log.entries


async def post(running: Running, target: str, body: Any, headers: dict[str, str] | None = None, prefix: str = "/v1beta") -> Reply:
    fields = {"x-goog-api-key": KEY} if headers is None else headers
    async with await running.connect() as connection:
        return await fetch(
            connection,
            "POST",
            f"{prefix}/models/{target}",
            headers={"content-type": "application/json", **fields},
            body=json.dumps(body).encode(),
        )


@pytest.mark.parametrize("prefix", ["/v1", "/v1beta", "/v1/native/gemini/v1beta", "/v1/native/google/v1beta"])
async def test_every_door(tmp_path: Path, prefix: str) -> None:
    async with serving(tmp_path) as (running, provider):
        provider.will("say a", "say b", "say c")
        body = {"contents": {"parts": {"text": "x"}}}
        reply = await post(running, "google:generateContent", body, prefix=prefix)
        assert reply.json()["candidates"][0]["content"]["parts"] == [{"text": "a"}]
        for name in ("a%2Fb%3Ac", "a/b:c"):
            reply = await post(running, f"{name}:streamGenerateContent?alt=sse", body, prefix=prefix)
            assert reply.headers["content-type"] == "text/event-stream"
            assert reply.body.count(b"\r\n\r\n") == reply.body.count(b"data: ") >= 2
            assert b"\n\n" not in reply.body


@BOTH
async def test_a_stream_as_an_array(tmp_path: Path, model: str) -> None:
    async with serving(tmp_path) as (running, provider):
        provider.will("say a b", "say a; error boom", "say a; cut")
        body = {"contents": [{"parts": [{"text": "x"}]}]}
        reply = await post(running, f"{model}:streamGenerateContent", body)
        assert reply.headers["content-type"] == "application/json; charset=UTF-8"
        documents = reply.json()
        texts = [part["text"] for each in documents for c in each.get("candidates", []) for part in c["content"]["parts"]]
        assert "".join(texts) == "a b"
        for _ in range(2):
            reply = await post(running, f"{model}:streamGenerateContent", body)
            assert reply.json()[-1]["error"]["code"] == 502


@BOTH
async def test_what_is_not_served_is_refused_in_googles_words(tmp_path: Path, model: str) -> None:
    async with serving(tmp_path) as (running, _):
        reply = await post(running, f"{model}:batchGenerateContent", {})
        assert (reply.status, reply.json()["error"]["status"]) == (405, "UNIMPLEMENTED")
        async with await running.connect() as connection:
            fields = {"x-goog-api-key": KEY, "content-type": "application/json"}
            reply = await fetch(connection, "POST", "/v1beta/cachedContents", headers=fields, body=b"{}")
        assert (reply.status, reply.json()["error"]["status"]) == (404, "NOT_FOUND")
        reply = await post(running, f"{model}:generateContent", {"contents": [{"role": "system", "parts": []}]})
        assert reply.status == 400
        violations = reply.json()["error"]["details"][1]["fieldViolations"]
        assert violations == [{"field": "contents[0].role", "description": "`contents[0].role` must be user or model."}]
