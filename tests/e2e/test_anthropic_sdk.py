"""Anthropic's own SDK against a running gateway, in front of a provider that speaks its format, and of one that does not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import pytest
import trio
from anthropic.types import Message, ThinkingBlock, ToolUseBlock

from clawproxy.config import ModelConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.scripted import ScriptedProvider, fingerprint
from tests.e2e.harness import KEY, PROVIDER_KEY, gateway
from tests.e2e.http_client import fetch

T = TypeVar("T")
BOTH = pytest.mark.parametrize("dialect", ["anthropic", "openai_chat"])
PROMPT = [{"role": "user", "content": "hello"}]
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {"where": {"type": "string"}}}}


def event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


class Setup:
    def __init__(self, client: anthropic.Anthropic, provider: ScriptedProvider, url: str) -> None:
        self.client = client
        self.provider = provider
        self.url = url

    async def ask(self, call: Callable[[anthropic.Anthropic], T]) -> T:
        """The SDK blocks, so it has a thread."""
        with trio.fail_after(10):
            return await trio.to_thread.run_sync(call, self.client)

    async def create(self, script: str = "say hello there", **changes: Any) -> Message:
        self.provider.will(script)
        asked: dict[str, Any] = {"model": "test-model", "max_tokens": 100, "messages": PROMPT, **changes}
        message = await self.ask(lambda client: client.messages.create(**asked))
        assert isinstance(message, Message)
        return message

    async def stream(self, script: str, **changes: Any) -> tuple[Message, list[Any]]:
        """The message the SDK put together, and its events."""
        self.provider.will(script)
        asked: dict[str, Any] = {"model": "test-model", "max_tokens": 100, "messages": PROMPT, **changes}

        def read(client: anthropic.Anthropic) -> tuple[Message, list[Any]]:
            with client.messages.stream(**asked) as stream:
                events = list(stream)
                return stream.get_final_message(), events

        return await self.ask(read)

    @property
    def sent(self) -> Any:
        """What the provider was asked last."""
        return self.provider.log.entries[-1].body


@asynccontextmanager
async def setup(tmp_path: Path, dialect: str, **options: Any) -> AsyncIterator[Setup]:
    async with ScriptedProvider.running() as provider:
        providers = {"p": ProviderConfig(dialect=dialect, base_url=provider.base_url, api_key=SecretRef("", PROVIDER_KEY))}
        models = {"test-model": ModelConfig((RouteConfig("p", "upstream-1"),))}
        async with gateway(tmp_path, providers=providers, models=models) as running:
            with anthropic.Anthropic(base_url=running.url, **{"api_key": KEY, "max_retries": 0, **options}) as client:
                yield Setup(client, provider, running.url)


@BOTH
async def test_a_message(tmp_path: Path, dialect: str) -> None:
    async with setup(tmp_path, dialect) as claw:
        message = await claw.create("say hello there; usage 12 9 cached 3", system="Be brief.")
        assert [block.text for block in message.content if block.type == "text"] == ["hello there"]
        assert (message.stop_reason, message.role) == ("end_turn", "assistant")
        usage = message.usage
        assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (9, 3, 9)
        assert message._request_id == claw.provider.log.entries[-1].header("x-request-id")
        assert claw.sent["model"] == "upstream-1"


@BOTH
async def test_a_stream(tmp_path: Path, dialect: str) -> None:
    async with setup(tmp_path, dialect) as claw:
        message, events = await claw.stream("reasoning well now; say hello there; usage 12 9 cached 3 reasoning 2")
        assert [(block.type, getattr(block, "text", None)) for block in message.content] == [
            ("thinking", None),
            ("text", "hello there"),
        ]
        [thought] = [block for block in message.content if isinstance(block, ThinkingBlock)]
        assert (thought.thinking, bool(thought.signature)) == ("well now", dialect == "anthropic")
        assert message.stop_reason == "end_turn"
        usage = message.usage
        assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (9, 3, 9)
        assert usage.output_tokens_details is not None
        assert usage.output_tokens_details.thinking_tokens == 2
        assert [event.text for event in events if event.type == "text"] == ["hello", " there"]
        assert events[0].type == "message_start"
        assert events[-1].type == "message_stop"


@BOTH
@pytest.mark.parametrize("streams", [True, False])
async def test_tools_there_and_back(tmp_path: Path, dialect: str, streams: bool) -> None:
    script = 'say Let me see.; tool look {"where": "up"}; tool look {"where": "down"}'
    async with setup(tmp_path, dialect) as claw:
        asked: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": False}}
        message = (await claw.stream(script, **asked))[0] if streams else await claw.create(script, **asked)
        calls = [block for block in message.content if isinstance(block, ToolUseBlock)]
        assert [(call.name, call.input) for call in calls] == [("look", {"where": "up"}), ("look", {"where": "down"})]
        assert message.stop_reason == "tool_use"
        results = [
            {"type": "tool_result", "tool_use_id": calls[0].id, "content": "sky"},
            {"type": "tool_result", "tool_use_id": calls[1].id, "content": [{"type": "text", "text": "no"}], "is_error": True},
            {"type": "text", "text": "Well?"},
        ]
        history = [*PROMPT, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        await claw.create(messages=history, tools=[TOOL])
        sent = claw.sent["messages"]
        if dialect == "anthropic":
            assert [message["role"] for message in sent] == ["user", "assistant", "user"]
            assert [block["type"] for block in sent[1]["content"]] == ["text", "tool_use", "tool_use"]
            assert sent[1]["content"][1]["input"] == {"where": "up"}
            assert [block["type"] for block in sent[2]["content"]] == ["tool_result", "tool_result", "text"]
            assert sent[2]["content"][1]["is_error"] is True
        else:
            assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool", "user"]
            assert [json.loads(call["function"]["arguments"]) for call in sent[1]["tool_calls"]] == [
                {"where": "up"},
                {"where": "down"},
            ]
            assert (sent[2]["content"], sent[2]["tool_call_id"]) == ("sky", sent[1]["tool_calls"][0]["id"])


async def test_thinking_goes_back_unchanged_to_who_signed_it(tmp_path: Path) -> None:
    async with setup(tmp_path, "anthropic") as claw:
        message, _ = await claw.stream("reasoning well now; say hello", thinking={"type": "enabled", "budget_tokens": 2048})
        assert claw.sent["thinking"] == {"type": "enabled", "budget_tokens": 2048}
        await claw.create(messages=[*PROMPT, {"role": "assistant", "content": message.content}, *PROMPT])
        [thought, text] = claw.sent["messages"][1]["content"]
        assert thought == {"type": "thinking", "thinking": "well now", "signature": message.content[0].signature}  # type: ignore[union-attr]
        assert text["text"] == "hello"


async def test_anothers_thinking_never_reaches_anthropic(tmp_path: Path) -> None:
    async with setup(tmp_path, "openai_chat") as claw:
        message, _ = await claw.stream("reasoning well now; say hello")
    async with setup(tmp_path, "anthropic") as claw:
        await claw.create(messages=[*PROMPT, {"role": "assistant", "content": message.content}, *PROMPT])
        assert claw.sent["messages"][1] == {"role": "assistant", "content": "hello"}


async def test_what_only_this_format_knows_goes_there_and_back(tmp_path: Path) -> None:
    """Unknown fields, betas, versions, unknown events and blocks: byte for byte."""
    start = {"id": "msg_9", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "new": 1}
    events = "".join(
        [
            event("message_start", message={**start, "usage": {"input_tokens": 3, "output_tokens": 1, "new_figure": 7}}),
            event("content_block_start", index=0, content_block={"type": "server_tool_use", "id": "s", "name": "w", "input": {}}),
            event("content_block_stop", index=0),
            event("ping"),
            event("new_event", what=[]),
            event("content_block_start", index=1, content_block={"type": "text", "text": "", "new": None}),
            event("content_block_delta", index=1, delta={"type": "text_delta", "text": "hi"}),
            event("content_block_stop", index=1),
            event("message_delta", delta={"stop_reason": "pause_turn", "new": {}}, usage={"output_tokens": 5}),
            event("message_stop"),
        ]
    )
    asked = {
        "model": "test-model",
        "max_tokens": 10,
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}],
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}],
        "context_management": {"edits": []},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "high", "task_budget": {"type": "tokens", "total": 9}},
        "service_tier": "auto",
        "brand_new": {"deep": [1, 2.5, None]},
        "metadata": {"user_id": "u"},
    }
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {KEY}",
        "anthropic-version": "2026-10-21",
        "anthropic-beta": "one-2025-01-01,two-2026-02-02",
    }
    async with setup(tmp_path, "anthropic") as claw:
        claw.provider.will(f"raw {json.dumps(events)}; end bare")
        host, _, port = claw.url.removeprefix("http://").partition(":")
        with trio.fail_after(5):
            async with await trio.open_tcp_stream(host, int(port)) as connection:
                body = json.dumps(asked).encode()
                reply = await fetch(connection, "POST", "/v1/messages?beta=true", headers=headers, body=body)
        assert reply.body.decode() == events
        entry = claw.provider.log.entries[-1]
        assert entry.body == {**asked, "model": "upstream-1"} | {"messages": asked["messages"]}
        assert entry.header("anthropic-version") == "2026-10-21"
        assert entry.header("anthropic-beta") == "one-2025-01-01,two-2026-02-02"
        assert entry.target == "/v1/messages"
        assert entry.credential == fingerprint(PROVIDER_KEY)
        assert reply.headers["request-id"] == reply.headers["x-request-id"]


async def test_counting_tokens(tmp_path: Path) -> None:
    async with setup(tmp_path, "anthropic") as claw:
        claw.provider.will("say x; usage 42 1")
        counted = await claw.ask(
            lambda client: client.messages.count_tokens(model="test-model", messages=PROMPT, tools=[TOOL])  # type: ignore[arg-type, list-item]
        )
        assert counted.input_tokens == 42
        entry = claw.provider.log.entries[-1]
        assert entry.target == "/v1/messages/count_tokens"
        assert set(entry.body) == {"model", "messages", "tools"}


async def test_a_provider_of_another_format_counts_no_tokens(tmp_path: Path) -> None:
    async with setup(tmp_path, "openai_chat") as claw:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await claw.ask(lambda client: client.messages.count_tokens(model="test-model", messages=PROMPT))  # type: ignore[arg-type]
        assert caught.value.error_code == "unsupported_parameter"
        assert not claw.provider.log.requests


@BOTH
@pytest.mark.parametrize(
    ("script", "kind", "word"),
    [
        ("status 429 retry-after 7", anthropic.RateLimitError, "rate_limit_error"),
        ("status 500", anthropic.InternalServerError, "api_error"),
        ("status 529", anthropic.ServiceUnavailableError, "overloaded_error"),
        ("status 400", anthropic.BadRequestError, "invalid_request_error"),
        ("status 401", anthropic.InternalServerError, "api_error"),
        ('error type overloaded_error "busy"', anthropic.ServiceUnavailableError, "overloaded_error"),
    ],
)
async def test_errors_are_the_sdks(tmp_path: Path, dialect: str, script: str, kind: type[Exception], word: str) -> None:
    async with setup(tmp_path, dialect) as claw:
        with pytest.raises(kind) as caught:
            await claw.create(script)
        assert isinstance(caught.value, anthropic.APIStatusError)
        assert caught.value.type == word
        assert caught.value.request_id
        assert caught.value.error_code is not None
        with pytest.raises(kind) as caught:
            await claw.stream(script)
        assert isinstance(caught.value, anthropic.APIStatusError)
        assert caught.value.type == word


@BOTH
async def test_an_error_after_the_first_words(tmp_path: Path, dialect: str) -> None:
    async with setup(tmp_path, dialect) as claw:
        for script, code in (
            ('say one; error type overloaded_error "busy"', "provider_error.overloaded"),
            ("say one; cut", "provider_error.cut"),
            ("say one; end bare", "provider_error.cut"),
        ):
            with pytest.raises(anthropic.APIStatusError) as caught:
                await claw.stream(script)
            assert caught.value.error_code == code
            assert caught.value.request_id


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({"model": "other"}, anthropic.NotFoundError, "not_found_error"),
        ({"extra_body": {"max_tokens": "x"}}, anthropic.BadRequestError, "invalid_request_error"),
        ({"extra_body": {"temperature": 0.5}}, anthropic.BadRequestError, "invalid_request_error"),
    ],
)
async def test_what_the_gateway_refuses(tmp_path: Path, changes: dict[str, Any], kind: type[Exception], word: str) -> None:
    async with setup(tmp_path, "anthropic") as claw:
        with pytest.raises(kind) as caught:
            await claw.create(**changes)
        assert isinstance(caught.value, anthropic.APIStatusError)
        assert caught.value.type == word
        assert not claw.provider.log.requests


async def test_a_wrong_key(tmp_path: Path) -> None:
    async with setup(tmp_path, "anthropic", api_key="wrong") as claw:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await claw.create()
        assert (caught.value.type, caught.value.error_code) == ("authentication_error", "auth.invalid")


async def test_the_sdk_tries_again(tmp_path: Path) -> None:
    async with setup(tmp_path, "anthropic", max_retries=1) as claw:
        claw.provider.will("status 529 header x-a: b", "say better")
        retry = {"x-stainless-retry-count": "0"}
        message = await claw.create("say best", extra_headers=retry)
        assert message.content[0].text in ("better", "best")  # type: ignore[union-attr]
        assert claw.provider.log.counts["finished"] == 2


async def test_models_in_the_sdks_shape(tmp_path: Path) -> None:
    async with setup(tmp_path, "anthropic") as claw:
        listed = await claw.ask(lambda client: list(client.models.list()))
        assert [(model.id, model.type, model.lifecycle) for model in listed] == [("test-model", "model", "active")]
        one = await claw.ask(lambda client: client.models.retrieve("test-model"))
        assert one.display_name == "test-model"
