"""Embeddings take the whole exchange: policy, routes, meter, ledger, audit; and the official SDK reads what comes back."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
import trio

from clawproxy.config import ModelConfig, PipelineConfig, ProviderConfig, RouteConfig
from clawproxy.dialects.openai_chat.provider import OpenAIChatProvider
from clawproxy.dialects.profiles import Profile
from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.scripted.openai_embeddings import encoded, vector
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, fetch

T = TypeVar("T")
SECRET = "AKIA" + "IOSFODNN7EXAMPLE"


async def embed(running: Running, **fields: Any) -> Reply:
    body = json.dumps({"model": "test-model", **fields}).encode()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    async with await running.connect() as connection:
        with trio.fail_after(5):
            return await fetch(connection, "POST", "/v1/embeddings", headers=headers, body=body)


async def with_sdk(running: Running, work: Callable[[openai.OpenAI], T], base: str = "/v1") -> T:
    def run() -> T:
        with openai.OpenAI(api_key=KEY, base_url=running.url + base, max_retries=0, timeout=10) as client:
            return work(client)

    return await trio.to_thread.run_sync(run)


@pytest.mark.parametrize("base", ["/v1", "/openai/v1"])
async def test_the_sdk_gets_its_vectors(tmp_path: Path, base: str) -> None:
    async with gateway(tmp_path) as running:
        # The SDK asks for base64 where its user says nothing, and unpacks it.
        made = await with_sdk(
            running, lambda client: client.embeddings.create(model="test-model", input=["one two", "three"], dimensions=5), base
        )
        assert [each.embedding for each in made.data] == [vector("one two", 5), vector("three", 5)]
        assert (made.usage.prompt_tokens, made.usage.total_tokens, made.model) == (3, 3, "scripted-1")
        assert running.provider.log.last.body == {
            "model": "scripted-1", "input": ["one two", "three"], "dimensions": 5, "encoding_format": "base64",
        }  # fmt: skip
        asked = functools.partial(openai.resources.Embeddings.create, model="test-model", input=[[1, 2], [3]])
        plain = await with_sdk(running, lambda client: asked(client.embeddings, encoding_format="float", user="u"), base)
        assert [each.embedding for each in plain.data] == [vector([1, 2]), vector([3])]
        assert running.provider.log.last.target == "/v1/embeddings"
        with pytest.raises(openai.BadRequestError) as caught:
            await with_sdk(running, lambda client: client.embeddings.create(model="test-model", input=""), base)
        assert "empty string" in caught.value.message


async def test_it_is_in_the_books(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        reply = await embed(running, input=["one two three", "four"], user="somebody")
        assert reply.status == 200
        assert reply.headers["x-claw-route"]
        await running.at_rest()
        store = running.server.gateway.app.store
        await store.flush()
        [row] = await store.rows()
        assert row.closed is not None
        assert (row.opened.model, row.opened.provider_model, row.opened.reserved_output) == ("test-model", "scripted-1", 0)
        assert row.opened.reserved_input >= len("one two threefour")
        assert (row.closed.outcome, row.closed.input_tokens, row.closed.output_tokens) == ("complete", 4, 0)
        assert row.closed.source == "measured"
    lines = [line for path in (tmp_path / "state/audit").glob("*.jsonl") for line in path.read_text().splitlines()]
    [audit] = [row for row in map(json.loads, lines) if "surface" in row]
    assert (audit["surface"], audit["operation"], audit["model"], audit["outcome"]) == (
        "openai_embeddings", "embeddings", "test-model", "complete",
    )  # fmt: skip
    assert audit["usage"]["input_tokens"] == 4


async def test_usage_that_is_missing_is_estimated_never_free(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        running.provider.will("usage missing")
        reply = await embed(running, input="x" * 4000)
        assert reply.status == 200
        await running.at_rest()
        store = running.server.gateway.app.store
        await store.flush()
        [row] = await store.rows()
        assert row.closed is not None
        assert (row.closed.source, row.closed.output_tokens) == ("estimated", 0)
        assert row.closed.input_tokens is not None
        assert 900 < row.closed.input_tokens < 1100


async def test_policies_see_the_inputs(tmp_path: Path) -> None:
    models = {"test-model": ModelConfig((RouteConfig("scripted", "s", context_tokens=40),))}
    async with gateway(tmp_path, models=models, plugins={}) as running:
        reply = await embed(running, input=[f"the key is {SECRET}", *["word " * 30] * 5])
        assert reply.status == 200, "each input has a window of its own: none is dropped, and none counts for another"
        assert "redacted" in reply.headers["x-claw-notice"]
        sent = running.provider.log.last.body["input"]
        assert len(sent) == 6
        assert SECRET not in sent[0]
        assert [each["index"] for each in reply.json()["data"]] == list(range(6))


class Held:
    """A plugin that takes the whole answer and gives it back: the provider's bytes no longer stand."""

    @hookimpl
    def tap_response(self) -> Transform:
        return Transform(list, streams="hold_back")


async def test_vectors_survive_a_transform(tmp_path: Path) -> None:
    order = ("audit", "auth", "sanitize", "truncate", "router", "meter", "held")
    async with gateway(tmp_path, plugins={"held": Held()}, pipeline=PipelineConfig(order=order)) as running:
        for form, value in (("base64", encoded(vector("a b"))), ("float", vector("a b"))):
            reply = await embed(running, input="a b", encoding_format=form)
            assert reply.json() == {
                "object": "list",
                "data": [{"object": "embedding", "index": 0, "embedding": value}],
                "model": "test-model",
                "usage": {"prompt_tokens": 2, "total_tokens": 2},
            }


async def test_a_failing_provider_is_replaced(tmp_path: Path) -> None:
    models = {"test-model": ModelConfig((RouteConfig("scripted", "first"), RouteConfig("scripted", "second")))}
    async with gateway(tmp_path, models=models) as running:
        running.provider.will_fail(503)
        reply = await embed(running, input="a")
        assert (reply.status, reply.json()["model"]) == (200, "second")
        running.provider.will_fail(429, retry_after="7")
        reply = await embed(running, input="a")
        assert (reply.status, reply.headers["retry-after"]) == (429, "7"), "the other route has the same credential"
        running.forget_trouble()
        running.provider.will("say x; cut")
        reply = await embed(running, input="a")
        assert (reply.status, reply.json()["error"]["code"]) == (502, "provider_error.cut")


async def test_a_provider_without_embeddings_is_named(tmp_path: Path) -> None:
    """Its format has none, or its host: nothing is sent, and nothing is billed."""
    providers = {
        "vectorless": ProviderConfig(dialect="plain", base_url="http://127.0.0.1:9/v1"),
        "host": ProviderConfig(profile="groq", base_url="http://127.0.0.1:9/v1"),
    }

    class Plain(OpenAIChatProvider):
        name = "plain"

    class Adds:
        @hookimpl
        def register(self, registry: Any) -> None:
            registry.add_provider_dialect("plain", Plain(Profile("plain", embeddings=False)))

    order = ("audit", "auth", "sanitize", "truncate", "router", "meter", "adds")
    async with gateway(
        tmp_path, providers=providers, models={}, plugins={"adds": Adds()}, pipeline=PipelineConfig(order=order)
    ) as running:
        for name in providers:
            reply = await embed(running, model=f"{name}/m", input="a")
            error = reply.json()["error"]
            assert (reply.status, error["code"], error["param"]) == (400, "unsupported_parameter", "model")
            assert f"`{name}`" in error["message"]
            assert "has no embeddings" in error["message"]
        await running.at_rest()
        store = running.server.gateway.app.store
        await store.flush()
        assert [(row.closed.sent, row.closed.input_tokens) for row in await store.rows() if row.closed] == [(False, 0)] * 2
