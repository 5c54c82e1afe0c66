"""The contract of OpenClaw's ClawRouter client: what it finds, what it is told, and what it says of itself."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy.config import (
    Config,
    KeyConfig,
    ModelConfig,
    PipelineConfig,
    Price,
    PriceConfig,
    ProviderConfig,
    RouteConfig,
    SecretRef,
)
from clawproxy.context import App
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import Credentials, Principal
from clawproxy.transport.catalog import catalog
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat, fetch

OTHER = "sk-other-0123456789abcdefghijklmnop"
PRICE = PriceConfig(Price(150_000), Price(600_000), cached_input=Price(75_000))
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
PAGES = ("/v1/catalog", "/v1/usage", "/v1/me", "/v1/key/inspect")


def models() -> dict[str, Any]:
    return {
        "models": {
            "openai/mock-1": ModelConfig((RouteConfig("scripted", "scripted-1", 100_000, 4096),), price=PRICE),
            "test-model": ModelConfig((RouteConfig("scripted", "scripted-1", 100_000),)),
        },
        "keys": {
            "test": KeyConfig(SecretRef("", KEY), user="ada", team="red", roles=("dev",)),
            "other": KeyConfig(SecretRef("", OTHER), models=("test-*",)),
        },
    }


async def get(running: Running, path: str, key: str | None = KEY, **headers: str) -> Reply:
    fields = {"authorization": f"Bearer {key}"} if key else {}
    with trio.fail_after(5):
        async with await running.connect() as connection:
            return await fetch(connection, "GET", path, headers={**fields, **headers})


async def ask(running: Running, model: str, key: str = KEY, prompt: str = "hello", **headers: str) -> Reply:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            return await chat(connection, prompt, key=key, model=model, headers=headers)


# --- what there is -----------------------------------------------------------------------------------------------------------


async def test_the_catalog_is_what_the_client_reads(tmp_path: Path) -> None:
    async with gateway(tmp_path, **models()) as running:
        reply = await get(running, "/v1/catalog")
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        assert reply.headers["cache-control"] == "private, no-store"
        [provider] = reply.json()["providers"]
        assert provider["id"] == "scripted"
        assert provider["openaiCompatible"] is True
        assert provider["nativeBaseUrl"] == "/v1/native/scripted", "rows of another form are thrown away by the client"
        first, second = provider["models"]
        assert (first["id"], first["upstream"]) == ("openai/mock-1", "openai/mock-1"), "it asks for this name, so we know it"
        assert {"llm.chat", "llm.stream"} <= set(first["capabilities"])
        assert first["pricing"] == {
            "inputMicrosPerMillion": 150_000,
            "outputMicrosPerMillion": 600_000,
            "cachedInputMicrosPerMillion": 75_000,
            "maxInputTokens": 100_000,
            "defaultMaxOutputTokens": 4096,
        }
        assert second["id"] == "test-model"
        assert second["pricing"] == {"maxInputTokens": 100_000}, "no price is not a price of zero"
        assert (await ask(running, first["id"])).status == 200


async def test_a_key_sees_its_own_models_only(tmp_path: Path) -> None:
    async with gateway(tmp_path, **models()) as running:
        [provider] = (await get(running, "/v1/catalog", OTHER)).json()["providers"]
        assert [model["id"] for model in provider["models"]] == ["test-model"]
        assert (await get(running, "/v1/key/inspect", OTHER)).json() == {
            "verified": True, "enabled": True, "kid": "other", "tenantId": "default", "expires": None, "providers": ["scripted"],
        }  # fmt: skip


async def test_who_am_i(tmp_path: Path) -> None:
    async with gateway(tmp_path, **models()) as running:
        me = (await get(running, "/v1/me")).json()
        assert (me["authenticated"], me["auth"], me["role"]) == (True, "proxy_key", "user")
        assert (me["key"], me["subject"], me["tenantId"], me["groups"], me["models"]) == ("test", "ada", "red", ["dev"], ["*"])


@pytest.mark.parametrize("path", PAGES)
async def test_pages_are_for_keys(tmp_path: Path, path: str) -> None:
    async with gateway(tmp_path, **models()) as running:
        for key in (None, "wrong"):
            reply = await get(running, path, key)
            assert (reply.status, reply.json()["error"]["code"]) == (401, "invalid_api_key")
            assert UUID7.fullmatch(reply.headers["x-request-id"])
        assert (await get(running, path, KEY, **{"x-api-key": "another"})).status == 400
        reply = await get(running, path, KEY, **{"x-request-id": "run-1:model:3"})
        assert reply.status == 200
        assert UUID7.fullmatch(reply.headers["x-request-id"]), "the gateway's own, which its log knows"


async def test_health_needs_no_key_and_tells_nothing(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        reply = await get(running, "/v1/health", None)
        assert (reply.status, reply.json()) == (200, {"ok": True, "service": "clawproxy", "status": "ok"})
        async with await running.connect() as connection, await running.connect() as second:
            assert (await fetch(second, "GET", "/v1/health")).status == 200
            running.server.gateway.draining = True
            reply = await fetch(connection, "GET", "/v1/health")
            assert (reply.status, reply.json()["ok"], reply.json()["status"]) == (503, False, "shutting_down")
            reply = await fetch(second, "GET", "/v1/catalog", headers={"authorization": f"Bearer {KEY}"})
            assert reply.status == 503


# --- native routes -----------------------------------------------------------------------------------------------------------

NATIVE = frozenset(
    {"/v1/chat/completions", "/v1/native/anthropic/v1/messages", "/v1/native/google/v1beta/models/m:streamGenerateContent"}
)
CLAUDE = Config(
    providers={"claude": ProviderConfig("anthropic"), "vertex": ProviderConfig("gemini"), "or": ProviderConfig("openai_chat")},
    models={name: ModelConfig((RouteConfig(name, name),)) for name in ("claude", "vertex", "or")},
)


def test_native_routes_are_named_where_they_are_served() -> None:
    document = catalog(CLAUDE, [(name, name) for name in CLAUDE.models], NATIVE.__contains__)
    claude, vertex, other = document["providers"]
    assert (claude["openaiCompatible"], claude["nativeBaseUrl"]) == (False, "/v1/native/anthropic")
    assert claude["routes"] == [{"path": "/v1/messages", "requestFormat": "anthropic.messages", "methods": ["POST"]}]
    assert vertex["nativeBaseUrl"] == "/v1/native/google"
    assert vertex["routes"][0]["path"] == "/v1beta/models/${model}:streamGenerateContent"
    assert vertex["routes"][0]["requestFormat"] == "google.generate_content"
    assert (other["openaiCompatible"], other["nativeBaseUrl"], other["routes"]) == (True, "/v1/native/or", [])
    assert claude["models"][0]["capabilities"] == ["llm.chat", "llm.messages", "llm.stream"]


def test_without_native_routes_everything_is_asked_in_openais_format() -> None:
    document = catalog(CLAUDE, [(name, name) for name in CLAUDE.models], {"/v1/chat/completions"}.__contains__)
    for provider in document["providers"]:
        assert provider["openaiCompatible"] is True
        assert provider["routes"] == []
        assert provider["nativeBaseUrl"].startswith("/v1/native/")


def test_limits_are_those_of_every_route() -> None:
    routes = (RouteConfig("or", "a", 200_000, 8192), RouteConfig("claude", "b", 100_000), RouteConfig("vertex", "c"))
    config = attrs.evolve(CLAUDE, models={"or": ModelConfig(routes, price=PRICE)})
    pricing = catalog(config, [("or", "or")], NATIVE.__contains__)["providers"][0]["models"][0]["pricing"]
    assert (pricing["maxInputTokens"], pricing["defaultMaxOutputTokens"]) == (100_000, 8192)


# --- what was used -----------------------------------------------------------------------------------------------------------


class Issuer:
    """Users of one issuer: their tokens share its key."""

    @hookimpl
    async def authenticate(self, credentials: Credentials, app: App) -> Principal | None:
        await trio.lowlevel.checkpoint()
        token = credentials.token or ""
        return Principal("corp", user=token.removeprefix("token-of-")) if token.startswith("token-of-") else None


async def test_a_user_is_not_told_what_others_of_the_same_issuer_use(tmp_path: Path) -> None:
    order = PipelineConfig(("issuer", *PipelineConfig().order))
    async with gateway(tmp_path, **models(), plugins={"issuer": Issuer()}, pipeline=order) as running:
        for user, times in (("ann", 1), ("bob", 2)):
            for _ in range(times):
                assert (await ask(running, "test-model", f"token-of-{user}")).status == 200
        for user, times in (("ann", 1), ("bob", 2), ("eve", 0)):
            summary = (await get(running, "/v1/usage", f"token-of-{user}")).json()["usage"]["summary"]
            assert summary["requestCount"] == times


async def test_usage_is_counted_by_key_and_priced(tmp_path: Path) -> None:
    async with gateway(tmp_path, **models()) as running:
        nothing = (await get(running, "/v1/usage")).json()
        assert nothing["budget"]["configured"] is False
        assert nothing["usage"]["summary"]["requestCount"] == 0
        tokens = 0
        for _ in range(2):
            usage = (await ask(running, "openai/mock-1")).json()["usage"]
            tokens += usage["total_tokens"]
        assert (await ask(running, "test-model", OTHER)).status == 200
        summary = (await get(running, "/v1/usage")).json()["usage"]["summary"]
        assert (summary["requestCount"], summary["totalTokens"]) == (2, tokens)
        nano = 2 * (usage["prompt_tokens"] * 150 + usage["completion_tokens"] * 600)
        [row, _] = await running.server.gateway.app.store.usage("key", since=time.time() - 60)  # other, test
        assert row.cost_nano is None, "no price, no cost"
        assert summary["actualCostMicros"] == (nano + 500) // 1000
        assert (await ask(running, "openai/mock-1", prompt="x\nscript: status 429")).status == 429
        after = (await get(running, "/v1/usage")).json()["usage"]["summary"]
        assert after == {**summary, "requestCount": 3}, "who is turned away pays nothing, which is known"
        other = (await get(running, "/v1/usage", OTHER)).json()
        assert other["usage"]["summary"]["requestCount"] == 1
        assert "actualCostMicros" not in other["usage"]["summary"], "not known is not zero"
        assert other["budget"]["windowKey"] == f"key:other/{datetime.now(UTC):%Y-%m}"


async def test_a_price_reaches_the_ledger_and_the_audit(tmp_path: Path) -> None:
    async with gateway(tmp_path, **models()) as running:
        usage = (await ask(running, "openai/mock-1")).json()["usage"]
        nano = usage["prompt_tokens"] * 150 + usage["completion_tokens"] * 600
        [row] = await running.server.gateway.app.store.rows()
        assert row.closed is not None
        assert row.closed.cost_nano == nano > 0
    [line] = [json.loads(line) for file in (tmp_path / "state/audit").glob("*.jsonl") for line in file.read_text().splitlines()
              if "request_id" in line]  # fmt: skip
    assert line["cost_nano"] == nano


# --- what the client says of itself ------------------------------------------------------------------------------------------


async def test_attribution_is_written_down_and_goes_no_further(tmp_path: Path) -> None:
    said = {
        "x-clawrouter-client": "openclaw",
        "x-clawrouter-agent-id": "main",
        "x-clawrouter-session-id": "agent:main:7 x",
        "x-clawrouter-project-id": "p" * 257,
        "x-request-id": "run-1:model:3",
    }
    async with gateway(tmp_path, **models()) as running:
        assert (await ask(running, "test-model", **said)).status == 200, "a label that is too long fails nothing"
        [entry] = running.provider.log.entries
        assert not [name for name, value in entry.headers if "clawrouter" in name.lower() or value in said.values()]
    [line] = [json.loads(line) for file in (tmp_path / "state/audit").glob("*.jsonl") for line in file.read_text().splitlines()
              if "request_id" in line]  # fmt: skip
    assert line["attribution"] == {
        "client": "openclaw", "agent_id": "main", "session_id": "agent:main:7 x", "project_id": None,
    }  # fmt: skip
    assert line["client_request_id"] == "run-1:model:3"
