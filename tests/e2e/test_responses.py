"""Responses at a running gateway, over HTTP and over WebSocket, in front of both kinds of OpenAI provider."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import openai
import pytest
import trio
from openai.types.responses.response import IncompleteDetails
from trio_websocket import ConnectionClosed, WebSocketConnection, connect_websocket_url

from clawproxy.config import ModelConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.errors import ClawError
from clawproxy.testing.factories import make_head
from clawproxy.transport.responses_ws import session as responses_session
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway, make_config
from tests.e2e.http_client import fetch

MODELS = ["chat", "responses"]


@asynccontextmanager
async def serving(tmp_path: Path, **changes: Any) -> AsyncIterator[Running]:
    """A gateway whose models `chat` and `responses` are the same scripted provider, in two formats."""
    async with gateway(tmp_path, **changes) as running:
        yield running


@pytest.fixture
def two_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's one provider, under two names: one for each format."""

    def config(tmp_path: Path, base_url: str, **changes: Any) -> Any:
        key = SecretRef("", PROVIDER_KEY)
        providers = {
            "chat": ProviderConfig(base_url=base_url, api_key=key),
            "responses": ProviderConfig(dialect="openai_responses", base_url=base_url, api_key=key),
        }
        models = {name: ModelConfig((RouteConfig(name, "scripted-1"),)) for name in MODELS}
        return make_config(tmp_path, base_url, **{"providers": providers, "models": models, **changes})

    monkeypatch.setattr("tests.e2e.harness.make_config", config)


pytestmark = pytest.mark.usefixtures("two_formats")


async def with_sdk(running: Running, use: Callable[[openai.OpenAI], None]) -> None:
    def work() -> None:
        with openai.OpenAI(api_key=KEY, base_url=running.url + "/v1", max_retries=0) as client:
            use(client)

    with trio.fail_after(20):
        await trio.to_thread.run_sync(work)


@asynccontextmanager
async def socket(running: Running, key: str = KEY, path: str = "/v1/responses") -> AsyncIterator[WebSocketConnection]:
    headers = [(b"authorization", f"Bearer {key}".encode()), (b"openai-beta", b"responses_websockets=2026-02-06")]
    url = running.url.replace("http", "ws", 1) + path
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            ws = await connect_websocket_url(nursery, url, extra_headers=headers)
            try:
                yield ws
            finally:
                await trio.aclose_forcefully(ws._stream)
                nursery.cancel_scope.cancel()


async def ask(ws: WebSocketConnection, prompt: str, lane: str | None = None, **fields: Any) -> None:
    envelope = {} if lane is None else {"stream_id": lane}
    await ws.send_message(json.dumps({"type": "response.create", "model": "chat", "input": prompt, **envelope, **fields}))


async def hear(ws: WebSocketConnection) -> dict[str, Any]:
    event = json.loads(await ws.get_message())
    assert isinstance(event, dict)
    return event


async def until_end(ws: WebSocketConnection, lane: str | None = None) -> dict[str, Any]:
    """The event that ends the next response, of that lane."""
    while True:
        event = await hear(ws)
        ends = event["type"] in ("error", "response.completed", "response.failed", "response.incomplete")
        if ends and event.get("stream_id") == lane:
            return event


def text_of(event: dict[str, Any]) -> str:
    return "".join(
        [part["text"] for item in event["response"]["output"] if item["type"] == "message" for part in item["content"]]
    )


# --- HTTP ------------------------------------------------------------------------------------------------------------------


async def test_the_sdk_over_http(tmp_path: Path) -> None:
    def use(client: openai.OpenAI) -> None:
        for model in MODELS:
            script = 'script: reasoning hm; say hello world; tool f {"a":1}'
            answer = client.responses.create(model=model, input=script, instructions="be good")
            assert (answer.output_text, answer.status) == ("hello world", "completed")
            assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
            with client.responses.stream(model=model, input=script) as stream:
                stream.until_done()
                final = stream.get_final_response()
            assert final.output_text == "hello world"
            assert final.usage is not None
            assert final.usage.output_tokens == answer.usage.output_tokens if answer.usage else False
            raw = client.responses.with_raw_response.create(model=model, input="script: say a; finish length")
            assert raw.headers["x-claw-route"].startswith(model)
            assert raw.parse().incomplete_details == IncompleteDetails(reason="max_output_tokens")
            # What was answered is the next request's input.
            items: Any = [{"role": "user", "content": "a"}, *[item.to_dict() for item in answer.output]]
            items.append({"type": "function_call_output", "call_id": "call_0", "output": "done"})
            assert client.responses.create(model=model, input=[*items, {"role": "user", "content": "echo"}]).output_text

    async with serving(tmp_path) as running:
        await with_sdk(running, use)
        last = [entry.body for entry in running.provider.log.entries][-1]
        assert [item["type"] for item in last["input"]] == [
            "message", "reasoning", "message", "function_call", "function_call_output", "message",
        ]  # fmt: skip
        assert last["input"][1]["encrypted_content"].startswith("gAAAA")


async def test_faults_over_http(tmp_path: Path) -> None:
    def use(client: openai.OpenAI) -> None:
        for model in MODELS:
            with pytest.raises(openai.APIError, match="overloaded"):
                list(client.responses.create(model=model, input="script: say a b c; error type overloaded_error x", stream=True))
            with pytest.raises(openai.APIError, match="cut off"):
                list(client.responses.create(model=model, input="script: say a b c; no done; end bare", stream=True))
            with pytest.raises(openai.APIError, match="understood"):
                list(client.responses.create(model=model, input="script: say a b c; bad json", stream=True))
            events = list(
                client.responses.create(model=model, input="script: say a; unknown event; comment x; say b", stream=True)
            )
            assert events[-1].type == "response.completed"
            with pytest.raises(openai.BadRequestError) as caught:
                client.responses.create(model=model, input="x", background=True)
            assert caught.value.param == "background"
        for model in MODELS:  # last: from then on the credential rests
            with pytest.raises(openai.RateLimitError):
                client.responses.create(model=model, input="script: status 429")

    async with serving(tmp_path) as running:
        await with_sdk(running, use)


async def test_a_secret_is_in_no_event_of_the_same_format(tmp_path: Path) -> None:
    """The provider's own events repeat the whole text three times after its pieces."""
    secret = "AKIAIOSFODNN7EXAMPLE"

    def use(client: openai.OpenAI) -> None:
        for prompt in (
            f"script: say the key is {secret} yes",
            f"script: say* the key is {secret}",
            f"script: chunk 2; say {secret}",
        ):
            with client.responses.with_streaming_response.create(model="responses", input=prompt, stream=True) as response:
                body = response.read().decode()
            assert "response.completed" in body
            assert secret not in body

    async with serving(tmp_path) as running:
        await with_sdk(running, use)


# --- WebSocket: the SDK ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(r"ignore:connect\(\) must be used:DeprecationWarning")  # the SDK's own use of websockets 17
async def test_the_sdk_over_websocket(tmp_path: Path) -> None:
    def use(client: openai.OpenAI) -> None:
        for model in MODELS:
            with client.responses.connect() as connection:
                connection.response.create(model=model, input="first words", generate=False, stream_id="a")
                kinds: list[Any] = [connection.recv() for _ in range(3)]
                assert [event.type for event in kinds] == ["response.created", "response.in_progress", "response.completed"]
                previous = kinds[-1].response.id
                for prompt in ("script: reasoning hm; say one two", "script: say three"):
                    connection.response.create(model=model, input=prompt, previous_response_id=previous, stream_id="a")
                    for event in connection:
                        assert event.stream_id == "a"
                        if event.type == "response.completed":
                            previous = event.response.id
                            break
                connection.response.create(model=model, input="x", previous_response_id="resp_unknown")
                error: Any = connection.recv()
                assert (error.type, error.status, error.error.code) == ("error", 400, "previous_response_not_found")

    async with serving(tmp_path) as running:
        await with_sdk(running, use)
        bodies = [entry.body for entry in running.provider.log.entries]
        chat, other = ([body for body in bodies if ("input" in body) is it] for it in (False, True))
        assert [message["role"] for message in chat[-1]["messages"]] == ["user", "user", "assistant", "user"]
        assert [item["type"] for item in other[-1]["input"]] == ["message", "message", "reasoning", "message", "message"]
        assert "previous_response_id" not in other[-1]
        assert len(bodies) == 4, "warming up asks no provider"


# --- WebSocket: raw --------------------------------------------------------------------------------------------------------


async def test_lanes(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, socket(running) as ws:
        await ask(ws, "script: pause 40ms; say slow", "a")
        await ask(ws, "script: say second", "a")
        await ask(ws, "script: say quick", "b")
        await ask(ws, "script: say nameless")
        ends: list[tuple[str | None, str]] = []
        while len(ends) < 4:
            event = await hear(ws)
            if event["type"] == "response.completed":
                ends.append((event.get("stream_id"), text_of(event)))
        assert [text for lane, text in ends if lane == "a"] == ["slow", "second"]
        assert ends.index(("b", "quick")) < ends.index(("a", "slow"))
        assert (None, "nameless") in ends


async def test_a_lane_may_go_on_from_a_response_that_is_still_running(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, socket(running) as ws:
        await ask(ws, "script: begin; say a b; pause 30ms; say c", model="responses")
        created = await hear(ws)
        await ask(ws, "script: say done", model="responses", previous_response_id=created["response"]["id"])
        assert text_of(await until_end(ws)) == "a bc"
        assert text_of(await until_end(ws)) == "done"
        assert len(running.provider.log.entries[-1].body["input"]) == 3


async def test_what_is_wrong_is_answered_and_the_connection_goes_on(tmp_path: Path) -> None:
    wrong: list[tuple[Any, str, str | None]] = [
        ("no json", "invalid_json", None),
        ([], "bad_frame", None),
        ({"type": 5}, "bad_frame", None),
        ({"type": "session.update"}, "invalid_request", "type"),
        ({"type": "response.steer", "previous_response_id": "x", "input": "y"}, "unsupported_parameter", "type"),
        ({"type": "response.create", "stream_id": "a"}, "invalid_request", "model"),
        ({"type": "response.create", "model": "chat"}, "invalid_request", "input"),
        ({"type": "response.create", "model": "nope", "input": "x"}, "model_not_found", "model"),
        ({"type": "response.create", "model": "chat", "input": "x", "background": True}, "unsupported_parameter", "background"),
        ({"type": "response.create", "model": "nope", "generate": False}, "invalid_request", "input"),
    ]
    async with serving(tmp_path) as running, socket(running, path="/openai/v1/responses") as ws:
        await ws.send_message(json.dumps({"type": "response.processed", "response_id": "x"}))
        for frame, code, param in wrong:
            await ws.send_message(frame if isinstance(frame, str) else json.dumps(frame))
            event = await hear(ws)
            assert (event["type"], event["error"]["code"], event["error"]["param"]) == ("error", code, param), frame
            assert event.get("stream_id") == (frame.get("stream_id") if isinstance(frame, dict) else None)
        await ask(ws, "script: say fine")
        assert text_of(await until_end(ws)) == "fine"
        await ask(ws, "script: say a b c; cut")
        assert (await until_end(ws))["response"]["status"] == "failed"
        await ask(ws, "script: say fine")
        assert text_of(await until_end(ws)) == "fine"


async def test_too_much_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, socket(running) as ws:
        for number in range(17):
            await ask(ws, "script: say a; stall", f"lane{number}")
        await running.provider.log.wait_for(lambda log: log.counts["in_progress"] == 16)
        for _ in range(48):
            await ask(ws, "hi", "lane0")
        while (event := await hear(ws))["type"] != "error":
            pass
        assert (event["status"], event["error"]["code"]) == (429, "limit.in_flight")
        assert running.provider.log.counts["in_progress"] == 16


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_closing_the_socket_cancels_everything(tmp_path: Path, way: str) -> None:
    async with serving(tmp_path) as running:
        async with socket(running) as ws:
            for lane in ("a", "b"):
                await ask(ws, "script: say a; stall", lane)
                await ask(ws, "script: say never", lane)
            await running.provider.log.wait_for(lambda log: log.counts["in_progress"] == 2)
            if way == "close":
                await ws.aclose()
        with trio.fail_after(5):
            await running.provider.log.wait_for(lambda log: log.counts["closed_by_peer"] == 2)
            await running.at_rest()
        assert len(running.provider.log.entries) == 2


async def test_binary_messages_are_rejected(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, socket(running) as ws:
        await ws.send_message(b"{}")
        assert (await hear(ws))["error"]["code"] == "bad_frame"
        with pytest.raises(ConnectionClosed) as closed:
            await hear(ws)
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1003


async def test_a_message_over_four_mebibytes(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, socket(running) as ws:
        with suppress(ConnectionClosed):
            await ask(ws, "x" * (4 * 1024 * 1024))
        with pytest.raises(ConnectionClosed) as closed:
            await hear(ws)
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1009


async def test_who_may_not_come_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        upgrade = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-version": "13"}
        upgrade["sec-websocket-key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
        for token in ({}, {"authorization": "Bearer wrong"}):
            async with await running.connect() as connection:
                reply = await fetch(connection, "GET", "/v1/responses", headers={**upgrade, **token})
                assert (reply.status, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        async with await running.connect() as connection:
            reply = await fetch(connection, "GET", "/v1/responses", headers={"authorization": f"Bearer {KEY}"})
            assert reply.status == 426
            reply = await fetch(connection, "PUT", "/v1/responses")
            assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, POST, OPTIONS")


@pytest.mark.parametrize("generate", [True, False])
async def test_each_create_is_authenticated_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generate: bool) -> None:
    async with serving(tmp_path) as running, socket(running) as ws:
        await ask(ws, "script: say fine")
        assert text_of(await until_end(ws)) == "fine"

        async def authenticate(self: object, credentials: object) -> object:
            raise ClawError("auth.expired")

        monkeypatch.setattr(type(running.server.gateway), "authenticate", authenticate)
        await ask(ws, "script: say more", generate=generate)
        event = await until_end(ws)
        assert (event["status"], event["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(ConnectionClosed) as closed:
            await hear(ws)
        assert closed.value.reason is not None
        assert closed.value.reason.code == 4401
        assert len(running.provider.log.entries) == 1


async def test_the_end_of_a_connections_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses_session, "LIFE", 0.04)
    async with serving(tmp_path) as running, socket(running) as ws:
        await ask(ws, "script: say a; pause 100ms; say b")
        while (event := await hear(ws))["type"] != "error":
            pass
        assert event["error"]["code"] == "websocket_connection_limit_reached"
        await ask(ws, "too late")
        assert (await until_end(ws))["error"]["code"] == "websocket_connection_limit_reached"
        assert text_of(await until_end(ws)) == "ab"
        with pytest.raises(ConnectionClosed) as closed:
            await hear(ws)
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1000


async def test_draining(tmp_path: Path) -> None:
    deadlines = attrs.evolve(make_config(tmp_path, "http://x").deadlines, drain=1.0)
    async with serving(tmp_path, deadlines=deadlines) as running, socket(running) as idle, socket(running) as busy:
        await ask(busy, "script: say a; pause 50ms; say b")
        await running.provider.log.wait_for(lambda log: log.counts["in_progress"] == 1)
        running.server.drain()
        with pytest.raises(ConnectionClosed) as closed:
            await hear(idle)
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1001
        assert text_of(await until_end(busy)) == "ab"
        with pytest.raises(ConnectionClosed):
            await hear(busy)


async def test_extensions_are_declined(tmp_path: Path) -> None:
    """Codex offers permessage-deflate."""
    head = make_head("/v1/responses", "GET")
    async with serving(tmp_path) as running, await running.connect() as stream:
        await stream.send_all(
            f"{head.method} {head.target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
            f"Authorization: Bearer {KEY}\r\n\r\n".encode()
        )
        with trio.fail_after(5):
            answer = bytes(await stream.receive_some(4096))
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"extensions" not in answer.lower()
