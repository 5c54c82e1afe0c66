"""The response cache over real sockets: who gets which answer again, in what form, and what the books say of it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import clawproxy_cache
from clawproxy.config import KeyConfig, ModelConfig, PipelineConfig, Price, PriceConfig, RouteConfig, SecretRef
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat
from tests.e2e.websocket_client import Frames, masked, open_raw

MATE = "sk-mate-0123456789abcdefghijklmnop"
STRANGER = "sk-stranger-0123456789abcdefghijk"
LESSER = "sk-lesser-0123456789abcdefghijklm"
ORDER = ("audit", "auth", "sanitize", "truncate", "cache", "router", "meter")
SECRET = "AKIA" + "Q7XKZ4WJ2VNB5RTM"


@asynccontextmanager
async def caching(tmp_path: Path, *, sanitize: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Running]:
    """A gateway with the cache on, with these settings."""
    async with gateway(
        tmp_path,
        pipeline=PipelineConfig(order=ORDER),
        plugins={"cache": clawproxy_cache},
        sections={"cache": settings, "sanitize": sanitize or {}},
        models={
            "test-model": ModelConfig(
                (RouteConfig("scripted", "scripted-1", 100_000),), price=PriceConfig(Price(1_000_000), Price(2_000_000))
            ),
            "other-model": ModelConfig((RouteConfig("scripted", "scripted-1"),)),
        },
        keys={
            "test": KeyConfig(SecretRef("", KEY), team="red"),
            "mate": KeyConfig(SecretRef("", MATE), team="red"),
            "stranger": KeyConfig(SecretRef("", STRANGER)),
            "lesser": KeyConfig(SecretRef("", LESSER), models=("other-*",)),
        },
    ) as running:
        yield running


async def ask(running: Running, prompt: str = "hello", key: str = KEY, control: str | None = None, **changes: Any) -> Reply:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            headers = {"cache-control": control} if control else {}
            return await chat(connection, prompt, key=key, headers=headers, **changes)


async def claw(running: Running, prompt: str = "hello", key: str = KEY, **frame: Any) -> list[dict[str, Any]]:
    """One prompt on a WebSocket; all frames of its answer."""
    with trio.fail_after(5):
        async with await running.connect() as stream:
            frames = Frames(stream, await open_raw(stream, key))
            body = {"type": "llm_request", "id": "r", "model": "test-model", "prompt": prompt, **frame}
            await stream.send_all(masked(json.dumps(body).encode()))
            seen = []
            while True:
                got = await frames.next()
                if got.get("id") == "r":
                    seen.append(got)
                if got["type"] in ("llm_response_end", "error"):
                    return seen


def result(reply: Reply) -> str | None:
    return reply.headers.get("x-claw-cache")


def asked(running: Running) -> int:
    """How often the provider was."""
    return len(running.provider.log.entries)


# --- again ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_request_gets_the_same_bytes(tmp_path: Path, stream: bool) -> None:
    async with caching(tmp_path) as running:
        first = await ask(running, stream=stream, stream_options={"include_usage": True} if stream else None)
        second = await ask(running, stream=stream, stream_options={"include_usage": True} if stream else None)
        assert (result(first), result(second)) == ("miss", "hit")
        assert second.body == first.body
        assert second.headers["content-type"] == first.headers["content-type"]
        assert second.headers["x-claw-route"] == "cache/test-model"
        assert second.headers["age"] == "0"
        assert second.headers["x-claw-notice"] == "cached"
        assert "age" not in first.headers
        assert asked(running) == 1


async def test_it_is_off_unless_it_is_in_the_order(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        replies = [await ask(running), await ask(running)]
        assert [result(reply) for reply in replies] == [None, None]
        assert asked(running) == 2


@pytest.mark.parametrize("first_streams", [False, True])
async def test_streams_hit_for_whole_requests_and_the_other_way(tmp_path: Path, first_streams: bool) -> None:
    async with caching(tmp_path) as running:
        first = await ask(running, stream=first_streams)
        second = await ask(running, stream=not first_streams)
        assert result(second) == "hit"
        stream, whole = (first, second) if first_streams else (second, first)
        document = whole.json()
        assert stream.text() == document["choices"][0]["message"]["content"]
        assert stream.body.endswith(b"data: [DONE]\n\n")
        assert document["usage"]["total_tokens"] > 0
        assert document["choices"][0]["finish_reason"] == "stop"
        assert asked(running) == 1


async def test_a_websocket_gets_what_http_was_given_and_the_other_way(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        text = (await ask(running)).json()["choices"][0]["message"]["content"]
        frames = await claw(running)
        assert "".join(frame["content"] for frame in frames if frame["type"] == "llm_token") == text
        assert [frame["code"] for frame in frames if frame["type"] == "llm_notice"] == ["cached"]
        end = frames[-1]
        assert (end["outcome"], end["usage"]["source"], end["cost"]["usd"]) == ("complete", "cache", 0)
        assert end["usage"]["output_tokens"] > 0, "what the answer took when it was given: agents count their context by it"
        await claw(running, "other")
        assert result(await ask(running, "other", stream=True)) == "hit"
        assert asked(running) == 2


async def test_a_tool_call_is_played_again(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    prompt = 'weather?\nscript: tool look {"city": "Paris"}'
    async with caching(tmp_path) as running:
        first = await ask(running, prompt, tools=tools, stream=True)
        whole = await ask(running, prompt, tools=tools)
        assert result(whole) == "hit"
        [call] = whole.json()["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
        assert whole.json()["choices"][0]["finish_reason"] == "tool_calls"
        assert (await ask(running, prompt, tools=tools, stream=True)).body == first.body
        assert asked(running) == 1


# --- another -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.5},
        {"seed": 7},
        {"max_tokens": 50},
        {"stop": ["x"]},
        {"model": "other-model"},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"1": 2}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "hello "}]},
        {"messages": [{"role": "user", "name": "ada", "content": "hello"}]},
    ],
    ids=lambda changes: "-".join(changes),
)
async def test_any_difference_is_another_request(tmp_path: Path, changes: dict[str, Any]) -> None:
    async with caching(tmp_path) as running:
        assert result(await ask(running)) == "miss"
        assert result(await ask(running, **changes)) == "miss"
        assert result(await ask(running, **changes)) == "hit"
        assert asked(running) == 2


@pytest.mark.parametrize(
    "changes",
    [{"user": "ada"}, {"metadata": {"trace": "7"}}, {"prompt_cache_key": "k"}, {"safety_identifier": "s"}, {"stream": True}],
    ids=lambda changes: "-".join(changes),
)
async def test_who_asks_and_how_it_is_sent_make_no_difference(tmp_path: Path, changes: dict[str, Any]) -> None:
    async with caching(tmp_path) as running:
        assert result(await ask(running)) == "miss"
        assert result(await ask(running, **changes)) == "hit"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("key", {MATE: "miss", STRANGER: "miss"}),
        ("team", {MATE: "hit", STRANGER: "miss"}),
        ("global", {MATE: "hit", STRANGER: "hit"}),
    ],
)
async def test_who_shares_an_answer(tmp_path: Path, scope: str, expected: dict[str, str]) -> None:
    async with caching(tmp_path, scope=scope) as running:
        assert result(await ask(running)) == "miss"
        for key, said in expected.items():
            assert result(await ask(running, key=key)) == said
        refused = await ask(running, key=LESSER)
        assert (refused.status, refused.json()["error"]["code"]) == (404, "model_not_found"), "a hit is no way around a key"


# --- what the client says -------------------------------------------------------------------------------------------------------


async def test_no_store_leaves_nothing_and_takes_nothing(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        assert result(await ask(running, control="no-store")) == "bypass"
        assert result(await ask(running)) == "miss"
        assert result(await ask(running, control="no-store")) == "bypass"
        assert asked(running) == 3


async def test_no_cache_asks_anew_and_keeps_the_new_answer(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        running.provider.will("say one", "say two")
        texts = [(await ask(running, control=control)).json()["choices"][0]["message"]["content"]
                 for control in (None, None, "max-age=0, No-Cache", None)]  # fmt: skip
        assert texts == ["one", "one", "two", "two"]


async def test_max_age_is_the_oldest_a_client_takes(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        assert result(await ask(running)) == "miss"
        assert result(await ask(running, control="max-age=60")) == "hit"
        assert result(await ask(running, control="max-age=0")) == "miss"
        assert result(await ask(running, control="max-age=nonsense")) == "miss"
        assert asked(running) == 3


async def test_a_websockets_wish_is_in_its_metadata(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        for _ in range(2):
            await claw(running, metadata={"cache_control": "no-store"})
        assert asked(running) == 2
        for _ in range(2):
            await claw(running)
        assert asked(running) == 3


async def test_what_is_kept_at_the_provider_is_not_cached(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        for _ in range(2):
            assert result(await ask(running, store=True)) == "bypass"
        assert asked(running) == 2


async def test_answers_that_events_do_not_say_whole_are_played_in_their_own_form_only(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        assert result(await ask(running, logprobs=True)) == "miss"
        assert result(await ask(running, logprobs=True, stream=True)) == "miss"
        assert result(await ask(running, logprobs=True, stream=True)) == "hit"
        fresh = await ask(running, logprobs=True)
        assert result(fresh) == "miss", "the newest answer is the one that is kept"
        assert (await ask(running, logprobs=True)).body == fresh.body


# --- what is kept ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "stream"),
    [
        ("say Hello; cut", True),
        ("say Hello; error type overloaded_error Overloaded", True),
        ("say Hello; finish length", True),
        ("say Hello; finish content_filter", False),
        ("status 500", False),
        ("say Hello; bad json", True),
        ("finish stop", True),
    ],
)
async def test_only_whole_good_answers_are_kept(tmp_path: Path, script: str, stream: bool) -> None:
    async with caching(tmp_path) as running:
        for _ in range(2):
            assert result(await ask(running, f"x\nscript: {script}", stream=stream)) in ("miss", None)
        assert not running.server.gateway.app.shared["cache"]


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                with trio.move_on_after(0.05):
                    await chat(connection, "x\nscript: say Hello; stall", key=KEY, stream=True)
            await running.at_rest()
        assert len(running.server.gateway.app.shared["cache"]) == 0


async def test_an_answer_is_forgotten_in_time(tmp_path: Path) -> None:
    async with caching(tmp_path, ttl="20ms") as running:
        assert result(await ask(running)) == "miss"
        await trio.sleep(0.03)
        assert result(await ask(running)) == "miss"
        assert asked(running) == 2


async def test_memory_is_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    async with caching(tmp_path, max_bytes="4KiB", max_answer="2KiB") as running:
        answers = None
        for number in range(12):
            assert result(await ask(running, f"question {number}")) == "miss"
            answers = running.server.gateway.app.shared["cache"]
            assert answers.size <= 4096
        assert answers is not None
        assert 0 < len(answers) < 12
        assert result(await ask(running, "question 11")) == "hit"
        assert result(await ask(running, "question 0")) == "miss"
        kept = len(answers)
        assert result(await ask(running, "x\nscript: say " + "word " * 1000)) == "miss"
        assert len(answers) == kept, "one that is too large is not kept"


async def test_only_some_models_are_cached(tmp_path: Path) -> None:
    async with caching(tmp_path, models=["test-*"]) as running:
        assert [result(await ask(running, model="other-model")) for _ in range(2)] == [None, None]
        assert [result(await ask(running)) for _ in range(2)] == ["miss", "hit"]


async def test_deterministic_only(tmp_path: Path) -> None:
    async with caching(tmp_path, deterministic_only=True) as running:
        assert [result(await ask(running)) for _ in range(2)] == ["bypass", "bypass"]
        assert [result(await ask(running, temperature=1)) for _ in range(2)] == ["bypass", "bypass"]
        assert [result(await ask(running, temperature=0)) for _ in range(2)] == ["miss", "hit"]


# --- policies and books ------------------------------------------------------------------------------------------------------


async def test_policies_see_an_answer_each_time_it_is_played(tmp_path: Path) -> None:
    """What is kept is what the provider said; who reads it gets it as the sanitizer leaves it."""
    prompt = f'x\nscript: say "the key is "; say* {SECRET[:9]}; say* {SECRET[9:]}; say " indeed"'
    async with caching(tmp_path, sanitize={"output": "redact"}) as running:
        replies = [await ask(running, prompt, stream=stream) for stream in (False, False, True)]
        assert [result(reply) for reply in replies] == ["miss", "hit", "hit"]
        for reply in replies:
            assert SECRET.encode() not in reply.body
            assert b"indeed" in reply.body


async def test_the_books_count_a_request_and_no_tokens(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        usage = (await ask(running)).json()["usage"]
        again = await ask(running)
        assert again.json()["usage"] == usage
        store = running.server.gateway.app.store
        [total] = await store.usage(since=time.time() - 60)
        assert (total.requests, total.attempts) == (2, 2)
        assert (total.input_tokens, total.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
        paid = usage["prompt_tokens"] * 1000 + usage["completion_tokens"] * 2000
        assert total.cost_nano == paid
        [row] = [row for row in await store.rows() if row.opened.provider == "cache"]
        assert row.closed is not None
        assert (row.closed.outcome, row.closed.source, row.closed.sent, row.closed.cost_nano) == ("complete", "cache", False, 0)
        assert row.opened.reserved_input == 0, "an orphan of a crash would be counted with it"
        exposed = running.server.metrics.expose().decode()
        assert 'clawproxy_cache_total{result="hit"} 1' in exposed
        assert f'clawproxy_tokens_total{{direction="output"}} {usage["completion_tokens"]}' in exposed
    lines = [json.loads(line) for file in (tmp_path / "state/audit").glob("*.jsonl") for line in file.read_text().splitlines()]
    rows = [line for line in lines if line.get("request_id") == again.headers["x-request-id"]]
    assert [(row["route"]["provider"], row["usage"]["source"], row["cost_nano"]) for row in rows] == [("cache", "cache", 0)]


async def test_identical_requests_at_once_each_go_to_the_provider(tmp_path: Path) -> None:
    async with caching(tmp_path) as running:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, running, "x\nscript: pause 30ms; say done")
        assert asked(running) == 3
        assert len(running.server.gateway.app.shared["cache"]) == 1
