"""The Claw WebSocket through the whole gateway, over real sockets: steering, streamed prompts, credits, tools and files."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from clawproxy.config import PipelineConfig
from clawproxy.errors import Refusal
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import ChatRequest
from clawproxy.testing import sweep
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.test_sweep_sockets import Baseline, Counting, books_are_right, next_request_works, ordinary, settles
from tests.e2e.websocket_client import Frames, masked, open_raw

ENDS = {"llm_response_end", "error"}


class Socket:
    """An authenticated connection that says and hears objects."""

    def __init__(self, stream: trio.abc.Stream, rest: bytes) -> None:
        self.stream = stream
        self.frames = Frames(stream, rest)

    async def say(self, *messages: dict[str, Any]) -> None:
        await self.stream.send_all(b"".join(masked(json.dumps(message).encode()) for message in messages))

    async def ask(self, prompt: str, ident: str = "a", **fields: Any) -> None:
        await self.say({"type": "llm_request", "id": ident, "model": "test-model", "prompt": prompt, **fields})

    async def append(self, content: Any, ident: str = "a") -> None:
        await self.say({"type": "llm_append", "id": ident, "content": content})

    async def hear(self, *kinds: str) -> list[dict[str, Any]]:
        """Up to and with the first of these types."""
        heard = []
        with trio.fail_after(5):
            while True:
                heard.append(await self.frames.next())
                if heard[-1]["type"] in kinds:
                    return heard

    async def end(self) -> list[dict[str, Any]]:
        return await self.hear(*ENDS)


@asynccontextmanager
async def socket(running: Running) -> AsyncIterator[Socket]:
    async with await running.connect() as stream:
        own = Socket(stream, await open_raw(stream, KEY))
        await own.hear("auth_ok")
        yield own


def text(frames: list[dict[str, Any]]) -> str:
    return "".join(frame["content"] for frame in frames if frame["type"] == "llm_token")


def sent(running: Running, number: int) -> list[tuple[str, Any]]:
    """What a request of the provider's log asked."""
    return [(message["role"], message["content"]) for message in running.provider.log.entries[number].body["messages"]]


# --- steering ------------------------------------------------------------------------------------------------------------


async def test_an_append_in_mid_stream(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, socket(running) as ws:
        first = "script: say Once upon a; stall"
        await ws.ask(first)
        heard = await ws.hear("llm_token")
        while text(heard) != "Once upon a":
            heard += await ws.hear("llm_token")
        log = running.provider.log
        assert log.in_progress == 1
        await ws.append('script: say " frog."')
        rest = await ws.end()
        with trio.fail_after(5):
            await log.wait_for(lambda log: not log.in_progress)
        assert [entry.state for entry in log.entries] == ["closed_by_peer", "finished"]
        assert sent(running, 1) == [("user", first), ("assistant", "Once upon a"), ("user", 'script: say " frog."')]
        kinds = [frame["type"] for frame in rest]
        assert kinds[0] == "llm_notice", "at once, not with the next token"
        assert (rest[0]["code"], rest[0]["details"]) == ("steered", {"attempt": 2})
        assert kinds.count("llm_response_start") == 0
        assert text(heard + rest) == "Once upon a frog."
        assert [frame["seq"] for frame in heard + rest] == list(range(len(heard + rest)))
        assert len({frame["request_id"] for frame in heard + rest}) == 1
        assert rest[-1]["outcome"] == "complete"
        await running.at_rest()
        store = running.server.gateway.app.store
        await store.flush()
        rows = sorted(await store.rows(), key=lambda row: row.opened.number)
        assert [(row.opened.reason, row.closed.outcome) for row in rows if row.closed] == [
            ("first", "cancelled"),
            ("steer", "complete"),
        ]
        assert rest[-1]["usage"]["input_tokens"] == sum(row.closed.input_tokens or 0 for row in rows if row.closed)


async def test_an_append_before_the_first_token(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, socket(running) as ws:
        await ws.ask("script: stall", parameters={"stream": False})
        with trio.fail_after(5):
            await running.provider.log.wait_for(lambda log: log.in_progress)
        await ws.append("script: say hello")
        frames = await ws.end()
        assert [frame["type"] for frame in frames] == ["llm_response_start", "llm_notice", "llm_token", "llm_response_end"]
        assert text(frames) == "hello"
        assert sent(running, 1) == [("user", "script: stall"), ("user", "script: say hello")]


async def test_an_append_right_behind_its_request_and_one_after_the_end(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, socket(running) as ws:
        await ws.say(
            {"type": "llm_request", "id": "a", "model": "test-model", "prompt": "hello"},
            {"type": "llm_append", "id": "a", "content": "script: say both"},
        )
        frames = await ws.end()
        assert text(frames) == "both"
        assert len(running.provider.log.entries) == 1
        await ws.append("too late")
        [error] = await ws.hear("error")
        assert (error["code"], error["error"], error["ref"]) == (404, "unknown_id", "a")
        assert "id" not in error


class NoFrogs:
    """A policy that looks at prompts."""

    @hookimpl
    async def prepare_request(self, request: ChatRequest) -> None:
        await trio.lowlevel.checkpoint()
        if any("frog" in text for text in request.texts()):
            raise Refusal("refused.sanitize", policy="no-frogs")


async def test_what_is_added_is_sanitized_and_a_refusal_ends_the_answer(tmp_path: Path) -> None:
    order = PipelineConfig(("no_frogs", *PipelineConfig().order))
    async with gateway(tmp_path, plugins={"no_frogs": NoFrogs()}, pipeline=order) as running, socket(running) as ws:
        await ws.ask("script: say one; stall")
        await ws.hear("llm_token")
        secret = "sk-ant-api03-" + "A" * 93 + "AA"
        await ws.append(f"script: say two; stall\n# {secret}")
        heard = await ws.hear("llm_token")
        assert [frame["code"] for frame in heard if frame["type"] == "llm_notice"] == ["redacted", "steered"]
        assert secret.encode() not in running.provider.log.entries[1].body_bytes
        await ws.append("about frogs")
        heard = await ws.end()
        assert (heard[-1]["id"], heard[-1]["code"], heard[-1]["error"]) == ("a", 400, "refused.sanitize")
        with trio.fail_after(5):
            await running.at_rest()
            await running.provider.log.wait_for(lambda log: not log.in_progress)
        assert len(running.provider.log.entries) == 2


async def test_steering_one_leaves_the_others_alone(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, socket(running) as ws:
        await ws.ask("script: say one; stall", "a")
        await ws.ask("script: tokens 50 every 1ms", "b")
        await ws.hear("llm_token")
        await ws.append("script: say two", "a")
        frames: list[dict[str, Any]] = []
        while sum(frame["type"] in ENDS for frame in frames) < 2:
            frames += await ws.end()
        assert [frame["type"] for frame in frames if frame.get("id") == "b"][-1] == "llm_response_end"
        assert text([frame for frame in frames if frame["id"] == "b"]).endswith("tok49")


# --- the rest ------------------------------------------------------------------------------------------------------------


async def test_a_streamed_prompt(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, socket(running) as ws:
        await ws.say({"type": "llm_request", "id": "a", "model": "test-model", "prompt_stream": True, "prompt": "script: "})
        await trio.sleep(0.03)
        assert not running.provider.log.entries
        await ws.say(
            {"type": "llm_prompt_chunk", "id": "a", "content": "say he"},
            {"type": "llm_prompt_chunk", "id": "a", "content": "llo", "final": True},
        )
        frames = await ws.end()
        assert text(frames) == "hello"
        timing = frames[-1]["timing_ms"]
        assert timing["prompt"] >= 25
        assert timing["total"] >= timing["prompt"], "the deadline counts from the first message"
        assert timing["gateway"] < timing["prompt"], "waiting for the client is not the gateway's own time"


async def test_without_credit_the_provider_is_not_read(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, await running.connect() as stream:
        ws = Socket(stream, await open_raw(stream, KEY))
        await ws.hear("auth_ok")
        await ws.say({"type": "auth", "token": KEY, "credit": True})
        [welcome] = await ws.hear("auth_ok")
        assert welcome["limits"]["credit"] == 0
        tokens = 1_000_000
        await ws.ask(f"script: chunk 100; tokens {tokens}")
        await ws.hear("llm_response_start")
        log = running.provider.log
        taken = -1
        with trio.fail_after(5):
            while log.entries[0].bytes_sent != taken:  # until the sockets between are full
                taken = log.entries[0].bytes_sent
                await trio.sleep(0.05)
        assert log.in_progress, "the provider is held up"
        assert log.entries[0].events_sent < tokens / 100
        await ws.ask("script: say hello", "b")
        await ws.say({"type": "credit", "id": "b", "n": 10})
        frames = await ws.end()
        assert text(frames) == "hello", "others go on"
        await ws.say({"type": "llm_cancel", "id": "a"})
        [end] = await ws.end()
        assert (end["id"], end["outcome"], end["seq"]) == ("a", "cancelled", 1)
        with trio.fail_after(5):
            await log.wait_for(lambda log: not log.in_progress)
            await running.at_rest()


async def test_a_turn_with_a_tool_a_file_and_all_parameters(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    parameters = {"tools": [tool], "tool_choice": "auto", "parallel_tool_calls": False, "stop": ["END"], "seed": 7}
    async with gateway(tmp_path) as running, socket(running) as ws:
        prompt: list[dict[str, Any]] = [
            {"type": "text", "text": 'script: say Let me see.; tool weather {"city":"Oslo"}; tool weather {"city":"Rome"}'},
            {"type": "image", "data": "aGk=", "media_type": "image/png"},
            {"type": "file", "data": "aGk=", "media_type": "application/pdf", "filename": "a.pdf"},
        ]
        await ws.say({"type": "llm_request", "id": "a", "model": "test-model", "prompt": prompt, "parameters": parameters})
        frames = await ws.end()
        assert frames[-1]["finish_reason"] == "tool_calls"
        calls: dict[int, dict[str, Any]] = {}
        for frame in frames:
            if frame["type"] == "llm_tool_call":
                call = calls.setdefault(frame["index"], {"call_id": frame["call_id"], "name": "", "arguments": ""})
                assert call["call_id"] == frame["call_id"], "each piece says which call it is of"
                call["name"] += frame.get("name") or ""
                call["arguments"] += frame["arguments"]
        assert [(call["name"], call["arguments"]) for call in calls.values()] == [
            ("weather", '{"city":"Oslo"}'),
            ("weather", '{"city":"Rome"}'),
        ]
        body = running.provider.log.entries[0].body
        assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url", "file"]
        assert (body["stop"], body["seed"], body["parallel_tool_calls"]) == (["END"], 7, False)
        results = [
            {"role": "tool", "tool_call_id": call["call_id"], "content": "12 degrees", "is_error": False}
            for call in calls.values()
        ]
        turns = [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": text(frames), "tool_calls": list(calls.values())},
            *results,
            {"role": "user", "content": "script: say done"},
        ]
        await ws.say({"type": "llm_request", "id": "b", "model": "test-model", "messages": turns, "parameters": parameters})
        assert text(await ws.end()) == "done"
        sent_back = running.provider.log.entries[1].body["messages"][1]["tool_calls"]
        assert [call["function"]["arguments"] for call in sent_back] == ['{"city":"Oslo"}', '{"city":"Rome"}']


# --- everywhere ------------------------------------------------------------------------------------------------------------


async def test_an_append_at_any_point_is_refused_or_answered(tmp_path: Path) -> None:
    """At every n-th schedule point of any task: the books are right, the text is whole, nothing is left."""
    counting = Counting()
    async with ordinary(tmp_path, counting) as running:
        await next_request_works(running, "warm-up")
        with trio.fail_after(3):
            await running.at_rest()
        await running.server.gateway.app.store.rows()
        await trio.sleep(0.05)
        baseline = Baseline(running)
        log = running.provider.log
        open_now: list[Socket] = []
        answers: list[list[dict[str, Any]]] = []
        seen: set[str] = set()
        ways: set[tuple[str, int]] = set()

        async def run(_: trio.CancelScope) -> None:
            open_now.clear()
            with trio.fail_after(5):
                async with socket(running) as ws:
                    await ws.ask("script: tokens 4")
                    open_now.append(ws)
                    frames = await ws.end()
                    while frames[-1]["type"] == "error" and "id" not in frames[-1]:
                        frames += await ws.end()
                    if said and not any(frame["type"] == "error" or frame.get("code") == "steered" for frame in frames):
                        frames += await ws.hear("error")  # it crossed the end on its way
                    answers.append(frames)

        said: list[int] = []

        def act(_: trio.CancelScope) -> None:
            if open_now:
                message = {"type": "llm_append", "id": "a", "content": "script: say more"}
                data = masked(json.dumps(message).encode())
                stream = open_now[0].stream
                assert isinstance(stream, trio.SocketStream)
                if stream.socket.fileno() >= 0:
                    stream.socket._sock.send(data)  # type: ignore[attr-defined]  # whole: the kernel's buffer is empty
                    said.append(1)

        async def check(point: int) -> None:
            where = f"point {point}: {[frame['type'] for frame in answers[-1]]}"
            said.clear()
            await settles(baseline.reached, lambda: f"{where}: {baseline}; {log}")
            assert all(count == 1 for count in counting.closings.values()), where
            frames = answers[-1]
            steered = [frame for frame in frames if frame.get("code") == "steered"]
            own = [frame for frame in frames if frame.get("id") == "a"]
            assert [frame["seq"] for frame in own] == list(range(len(own))), where
            assert own[-1]["outcome"] == "complete", where
            bodies = [entry.body["messages"] for entry in log.entries]
            if steered:
                assert bodies[-1][-1]["content"] == "script: say more", where
                before = bodies[-1][1]["content"] if len(bodies[-1]) == 3 else ""
                assert text(frames) == before + "more", where
            else:
                assert text(frames) == " tok0 tok1 tok2 tok3", where
            ways.add(("steered" if steered else "plain", len(bodies)))
            seen.update(entry.request_id for entry in log.entries if entry.request_id)
            log.clear()

        points = await sweep(run, check, act=act, all_tasks=True, step=2)
        assert points > 10
        await books_are_right(running, counting, seen)
        assert {way for way, _ in ways} == {"steered", "plain"}


async def test_what_the_page_says_can_be_sent(tmp_path: Path) -> None:
    """Every `->` line of docs/protocol.md that is whole JSON, as it stands there; the server understands each."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    page = page.replace(',\n    "', ',"')  # an object over more than one line
    lines = re.findall(r"^-> (\{.*\})$", page, re.MULTILINE)
    whole = [
        json.loads(line.replace('"..."', f'"{KEY}"').replace("gpt-4-turbo", "test-model"))
        for line in lines
        if ", ...}" not in line
    ]
    kinds = {"auth", "llm_request", "llm_prompt_chunk", "llm_append", "credit"}
    assert {message["type"] for message in whole} == kinds
    async with gateway(tmp_path) as running, socket(running) as ws:
        for message in whole:
            await ws.say(message)
            if message["type"] == "llm_append":  # its request was over long ago
                assert (await ws.hear("error"))[-1]["error"] == "unknown_id"
            elif message.get("final") or (message["type"] == "llm_request" and "prompt_stream" not in message):
                assert (await ws.end())[-1]["outcome"] == "complete"
