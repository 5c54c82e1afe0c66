"""Policies over real sockets, HTTP and WebSocket: what the client gets, what the provider saw, what is written down."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from clawproxy.config import (
    KeyConfig,
    ModelConfig,
    PolicyConfig,
    RestrictConfig,
    RouteConfig,
    SecretRef,
    SizeConfig,
    WhenConfig,
    Words,
)
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat, fetch
from tests.e2e.websocket_client import Frames, masked, open_raw

INTERN = "sk-intern-0123456789abcdefghijklmn"
MODELS = {
    "large": ModelConfig((RouteConfig("scripted", "large-us", region="us"), RouteConfig("scripted", "large-eu", region="eu"))),
    "small": ModelConfig((RouteConfig("scripted", "small-1"),)),
    "load": ModelConfig((RouteConfig("scripted", "a", region="us"), RouteConfig("scripted", "b", region="eu")), "load"),
}
KEYS = {
    "test": KeyConfig(SecretRef("", KEY), may_assert=True),
    "intern": KeyConfig(SecretRef("", INTERN), roles=("intern",), models=("large", "load"), user="ivy"),
}


def words(*said: str) -> Words:
    return Words(said)


POLICIES = {
    "shadowed": PolicyConfig(WhenConfig(role=words("intern")), refuse="Not yet.", shadow=True),
    "no-names": PolicyConfig(WhenConfig(content=words("(?i)nightingale")), refuse="Not that name."),
    "eu": PolicyConfig(WhenConfig(user=words("eva")), restrict=RestrictConfig(region=words("eu"))),
    "nowhere": PolicyConfig(WhenConfig(user=words("nil")), restrict=RestrictConfig(route=words("scripted/small-1"))),
    "interns": PolicyConfig(WhenConfig(role=words("intern"), model=words("large")), model="small", cap=50),
    "urgent": PolicyConfig(WhenConfig(metadata={"priority": words("high")}), choose="scripted/large-eu"),
    "long": PolicyConfig(WhenConfig(size=SizeConfig(bytes="> 1000")), choose="small"),
}


@asynccontextmanager
async def governed(tmp_path: Path, **changes: Any) -> AsyncIterator[Running]:
    async with gateway(tmp_path, **{"models": MODELS, "keys": KEYS, "policies": POLICIES, **changes}) as running:
        yield running


async def ask(running: Running, prompt: str = "hello", model: str = "large", key: str = KEY, **changes: Any) -> Reply:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            return await chat(connection, prompt, key=key, model=model, **changes)


async def ask_claw(running: Running, key: str = KEY, **changes: Any) -> list[dict[str, Any]]:
    """The frames of one request."""
    frame = {"type": "llm_request", "id": "r", "model": "large", "prompt": "hello", **changes}
    with trio.fail_after(5):
        async with await running.connect() as connection:
            frames = Frames(connection, await open_raw(connection, key))
            await connection.send_all(masked(json.dumps(frame).encode()))
            found: list[dict[str, Any]] = []
            while not found or found[-1]["type"] not in ("llm_response_end", "error"):
                found.append(await frames.next())
            return found


def upstream(running: Running) -> dict[str, Any]:
    return dict(running.provider.log.entries[-1].body)


async def rows(tmp_path: Path, count: int) -> list[dict[str, Any]]:
    with trio.fail_after(5):
        while True:
            for file in (tmp_path / "state" / "audit").glob("*.jsonl"):
                if len(lines := file.read_bytes().splitlines()) >= count:
                    return [json.loads(line) for line in lines]
            await trio.sleep(0.01)


async def test_refused_over_http_and_websocket(tmp_path: Path) -> None:
    async with governed(tmp_path) as running:
        reply = await ask(running, "About NIGHTINGALE")
        assert reply.status == 403
        error = reply.json()["error"]
        assert (error["code"], error["type"]) == ("refused.plugin", "permission_error")
        assert error["message"] == "Not that name."
        frames = await ask_claw(running, prompt="nightingale")
        assert {key: frames[-1][key] for key in ("type", "code", "error", "message", "policy")} == {
            "type": "error", "code": 403, "error": "refused.plugin", "message": "Not that name.", "policy": "no-names",
        }  # fmt: skip
        assert not running.provider.log.entries
        for row in await rows(tmp_path, 2):
            assert row["rules"] == [{"rule": "no-names", "action": "refuse", "shadow": False}]
            assert (row["outcome"], row["attempts"]) == ("refused.plugin", [])


async def test_rewritten_and_capped(tmp_path: Path) -> None:
    async with governed(tmp_path) as running:
        reply = await ask(running, key=INTERN, max_tokens=4000)
        assert reply.status == 200
        assert (upstream(running)["model"], upstream(running)["max_tokens"]) == ("small-1", 50)
        assert reply.headers["x-claw-route"].startswith("scripted/small-1")
        assert {"model_rewritten", "max_tokens_clamped"} <= set(reply.headers["x-claw-notice"].split(", "))
        await ask(running, key=INTERN)
        assert upstream(running)["max_tokens"] == 50, "where the client said nothing it holds too"
        await ask(running, key=INTERN, max_tokens=7)
        assert upstream(running)["max_tokens"] == 7

        frames = await ask_claw(running, INTERN)
        assert frames[-1]["type"] == "llm_response_end"
        assert upstream(running)["model"] == "small-1"
        await ask_claw(running, INTERN, max_tokens=4000)
        assert upstream(running)["max_tokens"] == 50
        codes = {frame["code"] for frame in frames if frame["type"] == "llm_notice"}
        assert "model_rewritten" in codes


async def test_a_policy_gives_what_asking_does_not(tmp_path: Path) -> None:
    """The plan that a rewritten request was given is not kept for those who ask for that model themselves."""
    async with governed(tmp_path) as running:
        for _ in range(2):
            assert (await ask(running, model="small")).status == 200
            assert (await ask(running, key=INTERN)).status == 200
            assert (await ask(running, model="small", key=INTERN)).status == 404
        assert (await ask(running, model="nonsense")).status == 404


async def test_restricted(tmp_path: Path) -> None:
    async with governed(tmp_path) as running:
        for model, place in (("large", "large-eu"), ("load", "b")):
            for _ in range(3):
                assert (await ask(running, model=model, user="eva")).status == 200
                assert upstream(running)["model"] == place
        assert (await ask_claw(running, metadata={"user_id": "eva"}))[-1]["type"] == "llm_response_end"
        assert upstream(running)["model"] == "large-eu"
        assert (await ask_claw(running, metadata={"user_id": "nil"}))[-1]["policy"] == "nowhere"
        assert (await ask(running, user="eve")).status == 200
        assert upstream(running)["model"] == "large-us"
        refused = await ask(running, user="nil")
        assert (refused.status, refused.json()["error"]["code"]) == (403, "refused.plugin")
        assert "no route" in refused.json()["error"]["message"]
        row = (await rows(tmp_path, 4))[3]
        assert row["considered"][0] | {"score": 0} == {"provider": "scripted", "model": "b", "why": "least_loaded", "score": 0}
        assert row["considered"][1:] == [{"provider": "scripted", "model": "a", "why": "policy", "score": None}]


async def test_who_may_not_assert_a_user_is_not_believed(tmp_path: Path) -> None:
    async with governed(tmp_path) as running:
        assert (await ask(running, model="load", key=INTERN, user="nil")).status == 200


async def test_chosen(tmp_path: Path) -> None:
    async with governed(tmp_path) as running:
        frames = await ask_claw(running, metadata={"priority": "high"})
        assert frames[-1]["type"] == "llm_response_end"
        assert upstream(running)["model"] == "large-eu"
        reply = await ask(running, "long " * 300)
        assert (reply.status, upstream(running)["model"], reply.json()["model"]) == (200, "small-1", reply.json()["model"])
        assert "x-claw-notice" not in reply.headers


async def test_a_shadow_changes_nothing_and_is_recorded(tmp_path: Path) -> None:
    async with governed(tmp_path) as running:
        assert (await ask(running, model="load", key=INTERN)).status == 200
        assert (await ask_claw(running, INTERN, model="load"))[-1]["type"] == "llm_response_end"
        for row in await rows(tmp_path, 2):
            assert row["rules"] == [{"rule": "shadowed", "action": "refuse", "shadow": True}]
            assert row["roles"] == ["intern"]
        async with await trio.open_tcp_stream("127.0.0.1", int(running.admin.rsplit(":", 1)[1])) as connection:
            metrics = await fetch(connection, "GET", "/metrics", headers={"host": "127.0.0.1"})
        assert b'clawproxy_policy_verdicts_total{action="refuse",policy="shadowed",shadow="true"} 2.0' in metrics.body


async def test_embeddings_go_by_policies_too(tmp_path: Path) -> None:
    async with governed(tmp_path) as running, await running.connect() as connection:
        body = json.dumps({"model": "large", "input": "nightingale"}).encode()
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        with trio.fail_after(5):
            assert (await fetch(connection, "POST", "/v1/embeddings", headers=headers, body=body)).status == 403


async def test_without_models_a_policy_names_the_providers(tmp_path: Path) -> None:
    policies = {
        "other": PolicyConfig(WhenConfig(model=words("scripted/old*")), model="scripted/new"),
        "only": PolicyConfig(WhenConfig(user=words("eva")), restrict=RestrictConfig(provider=words("else*"))),
    }
    async with governed(tmp_path, models={}, policies=policies, keys={"test": KEYS["test"]}) as running:
        assert (await ask(running, model="scripted/old-1")).status == 200
        assert upstream(running)["model"] == "new"
        assert (await ask(running, model="scripted/x", user="eva")).status == 403
        assert (await ask(running, model="no such", user="eva")).status == 404


async def test_without_policies_the_hook_is_not_there(tmp_path: Path) -> None:
    async with governed(tmp_path, policies={}) as running:
        hooks = running.server.gateway.current.pipeline._prepare
        assert "router" not in [name for name, _ in hooks]
    async with governed(tmp_path / "two") as running:
        assert "router" in [name for name, _ in running.server.gateway.current.pipeline._prepare]
