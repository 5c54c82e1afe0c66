"""Attempts over WebSockets, against the scripted provider on real sockets: what comes, what is kept, what falls back to HTTP."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, evolve

from clawproxy.config import Config, PoolConfig, ProviderConfig, SecretRef
from clawproxy.config.schema import Duration, LimitsConfig, Size
from clawproxy.dialects.openai_responses.provider import OpenAIResponsesProvider
from clawproxy.errors import ProviderFault
from clawproxy.events import Batch, End, Failed, Finish, Reasoning, Text, ToolCallDelta, UsageReport
from clawproxy.messages import Route
from clawproxy.scripted import ScriptedProvider
from clawproxy.secrets import Secret
from clawproxy.testing.factories import make_request
from clawproxy.upstream import base, responses_ws, websocket
from clawproxy.upstream.providers import Providers
from clawproxy.upstream.wire import Wire
from tests.upstream.kit import RecordedPhases, descriptors, eventually
from tests.upstream.sweep import sweep

ROUTE = Route("test", "m")
KEY = "sk-canary-0123456789"


@define(eq=False)
class Bench:
    peer: ScriptedProvider
    providers: Providers
    phases: RecordedPhases

    def open(self, script: str, *, stream: bool = True, **changes: Any) -> base.Opening:
        self.phases = RecordedPhases()
        request = evolve(make_request(f"script: {script}", stream=stream), **changes)
        dialect = self.providers.dialect("test")
        return self.providers.open(ROUTE, request, dialect.encode_request(request, ROUTE), self.phases, "k")

    async def ask(self, script: str, *, stream: bool = True, **changes: Any) -> list[Batch]:
        batches = []
        async with self.open(script, stream=stream, **changes) as answer:
            assert answer.status == 200
            while (batch := await answer.receive()) is not None:
                batches.append(batch)
        return batches

    async def text(self, script: str = "say Hello there.", *, stream: bool = True) -> str:
        events = [event for batch in await self.ask(script, stream=stream) for event in batch.events]
        assert isinstance(events[-1], End)
        return "".join(event.text for event in events if isinstance(event, Text))

    async def fault(self, script: str, **changes: Any) -> ProviderFault:
        with pytest.raises(ProviderFault) as caught:
            await self.ask(script, **changes)
        return caught.value

    def methods(self) -> list[str]:
        return [entry.method for entry in self.peer.log.entries]

    def counts(self) -> tuple[int, int]:
        figures = self.providers.statistics()["test"]
        return figures.active, figures.idle

    @property
    def sockets(self) -> responses_ws.Sockets:
        found = self.providers._providers["test"].sockets
        assert found is not None
        return found


@asynccontextmanager
async def bench(*, response: int = 64 * 1024 * 1024, pool: PoolConfig | None = None) -> AsyncIterator[Bench]:
    async with ScriptedProvider.running(key=Secret(KEY)) as peer:
        settings = ProviderConfig(
            "openai_responses", peer.base_url, SecretRef("", KEY), websocket=True, pool=pool or PoolConfig()
        )
        config = Config(providers={"test": settings}, limits=LimitsConfig(response=Size(response)))
        dialects = {"openai_responses": OpenAIResponsesProvider()}
        providers = Providers(config, dialects, lambda ref: Secret(ref.value), 1, environ={})
        made = Bench(peer, providers, RecordedPhases())
        try:
            yield made
        finally:
            for provider in providers._providers.values():
                provider.close()
        assert made.counts()[0] == 0, "a place is still held"
        assert not peer.log.malformed
        await eventually(lambda: peer.log.open_connections == 0)


# --- what comes ------------------------------------------------------------------------------------------------------------


async def test_text_comes_event_by_event_and_the_next_answer_on_the_same_socket() -> None:
    async with bench() as b:
        batches = await b.ask("say* One; pause 10ms; say* Two; usage 11 7")
        assert b.phases.entered == ["connect", "first_token"]
        assert b.phases.sent
        events = [event for batch in batches for event in batch.events]
        assert [event.text for event in events if isinstance(event, Text)] == ["One", "Two"]
        (usage,) = [event.usage for event in events if isinstance(event, UsageReport)]
        assert (usage.input_tokens, usage.output_tokens) == (11, 7)
        assert len(batches) > 2
        assert await b.text() == "Hello there."
        assert b.phases.entered == ["first_token"]
        log = b.peer.log
        assert (log.sockets, log.connections_opened, b.counts()) == (1, 1, (0, 1))
        assert b.providers.statistics()["test"].reused_total == 1
        body = log.last.body
        assert body["type"] == "response.create"
        assert body["model"] == "m"
        assert not {"stream", "background", "stream_id"} & set(body)
        assert log.last.credential_ok
        assert log.last.target == "/v1/responses"


async def test_the_bytes_of_a_stream_are_those_of_http() -> None:
    async with bench() as b:
        script = 'reasoning Let me think.; say Zürich\u2028 now.; tool f {"a":1}; usage 3 4'
        over_socket = await b.ask(script)
        b.sockets.refuse("test")
        over_http = await b.ask(script)
        assert b.methods() == ["GET", "POST"]

        def said(batches: list[Batch]) -> tuple[list[object], list[str]]:
            raw = b"".join(batch.raw or b"" for batch in batches).decode()
            events: list[object] = [
                event for batch in batches for event in batch.events if not isinstance(event, (Reasoning, ToolCallDelta))
            ]
            return events[1:], [line for line in raw.split("\n") if line.startswith("event:")]

        assert said(over_socket) == said(over_http)


async def test_tools_and_reasoning() -> None:
    async with bench() as b:
        events = [event for batch in await b.ask('reasoning Hm.; tool get_weather {"city":"Oslo"}') for event in batch.events]
        assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "Hm."
        calls = [event for event in events if isinstance(event, ToolCallDelta)]
        assert calls[0].name == "get_weather"
        assert json.loads("".join(event.arguments for event in calls)) == {"city": "Oslo"}
        assert [event.reason for event in events if isinstance(event, Finish)] == ["tool_calls"]


async def test_a_whole_answer_is_what_the_last_event_holds() -> None:
    async with bench() as b:
        (batch,) = await b.ask("reasoning Hm.; say Hello there.; usage 3 4", stream=False)
        assert batch.raw is not None
        assert json.loads(batch.raw)["object"] == "response"
        assert [event.text for event in batch.events if isinstance(event, (Text, Reasoning)) and event.text] == [
            "Hm.",
            "Hello there.",
        ]
        assert isinstance(batch.events[-1], End)
        assert b.counts() == (0, 1)


async def test_large_messages_both_ways_however_they_are_cut() -> None:
    async with bench() as b:
        long = "word " * 60_000
        assert await b.text(f"split 999; say* {long.strip()}") == long.strip()
        assert await b.text("split 1; comment hi; say Zürich") == "Zürich"
        assert b.peer.log.sockets == 1


# --- what fails ------------------------------------------------------------------------------------------------------------


async def test_an_error_before_is_the_status_it_names() -> None:
    async with bench() as b:
        fault = await b.fault("status 429 retry-after 3")
        assert (fault.slug, fault.details.provider_status, fault.details.retry_after_ms) == (
            "provider_error.rate_limited",
            429,
            3000,
        )
        assert (await b.fault("status 400")).slug == "provider_error.rejected"
        assert b.counts() == (0, 0), "an answer that failed leaves no socket behind"
        assert b.methods() == ["GET", "GET"]
        (batch,) = await b.ask("error code insufficient_quota Pay!", stream=False)
        assert isinstance(batch.events[0], Failed)
        assert batch.events[0].error.slug == "provider_error.quota"


async def test_an_error_within() -> None:
    async with bench() as b:
        batches = await b.ask("say* Well,; error type server_error code boom It broke.")
        failed = batches[-1].events[-1]
        assert isinstance(failed, Failed)
        assert failed.error.slug == "provider_error.server"
        assert "broke" not in str(failed.error)
        assert b"broke" not in b"".join(batch.raw or b"" for batch in batches)
        assert b.counts() == (0, 0)
        assert not b.sockets.refused


@pytest.mark.parametrize(
    "script", ["say* One; pause 10ms; cut", "say* One; pause 10ms; reset", "say* One; pause 10ms; close; no done"]
)
async def test_a_cut_within_is_told_and_not_asked_again(script: str) -> None:
    async with bench() as b:
        fault = await b.fault(script)
        assert (fault.slug, fault.sent) == ("provider_error.cut", True)
        assert b.peer.log.requests == 1
        assert not b.sockets.refused, "content had come: it can do it"


async def test_a_new_socket_that_breaks_before_content_is_not_tried_again_for_a_while() -> None:
    async with bench() as b:
        assert (await b.fault("begin; cut")).slug == "provider_error.cut"
        assert b.peer.log.requests == 1
        assert await b.text() == "Hello there."
        assert b.methods() == ["GET", "POST"]


@pytest.mark.parametrize(
    ("script", "slug"),
    [
        ('bad json', "malformed"),
        (r"raw \x82\x01x", "malformed"),
        (r"raw \x81\x02\xff\xfe", "malformed"),
        (r"raw \xff\xff\xff\xff", "malformed"),
        (r"raw \x81\x7f\x00\x00\x00\x00\x7f\x00\x00\x00", "too_large"),
        ("tokens 100000", "too_large"),
    ],
)  # fmt: skip
async def test_bad_frames_end_the_answer_and_the_socket(script: str, slug: str) -> None:
    async with bench(response=1_000_000) as b:
        try:
            batches = await b.ask(f"say* One; pause 10ms; {script}")
        except ProviderFault as fault:
            found = fault.slug
        else:
            failed = batches[-1].events[-1]
            assert isinstance(failed, Failed)
            found = failed.error.slug
        assert found == f"provider_error.{slug}"
        assert b.counts() == (0, 0)


# --- sockets that are kept -------------------------------------------------------------------------------------------------


async def test_pings_of_an_idle_socket_are_answered() -> None:
    async with bench() as b:
        await b.text()
        (socket,) = b.sockets.pool._idle
        assert socket.quiet()
        b.peer.socket_coda = b"\x89\x02hi"
        assert await b.text() == "Hello there."
        await trio.sleep(0.01)
        b.sockets.pool.sweep()
        assert b.counts() == (0, 1)
        assert await b.text() == "Hello there."
        assert b.peer.log.sockets == 1


STRAYS = [b"\x81\x02{}", b"\x81", b"\x01\x00", b"\x89\x7e", b"\x88\x00", b"\x89\x02h", b""]


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("with_the_answer", [False, True])
async def test_a_socket_that_has_more_to_say_is_not_used_again(stray: bytes, with_the_answer: bool) -> None:
    if with_the_answer and stray[-1:] == b"}":
        return  # whole, and so taken out with the answer
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        ws = websocket.WebSocket("test", Wire(ours), 1000)
        theirs.send(b"\x81\x02{}" + (stray if with_the_answer else b""))
        assert (await ws.receive())[0] == b"{}"
        if not with_the_answer:
            assert ws.quiet()
            theirs.send(stray) if stray else theirs.shutdown(socket.SHUT_WR)
        assert ws.quiet() is (with_the_answer and not stray)
        ws.close()


async def test_a_socket_closed_at_the_moment_of_its_reuse_is_a_cut() -> None:
    async with bench() as b:
        await b.text("say Hi.; close at reuse")
        assert (await b.fault("say never")).slug == "provider_error.cut"
        assert not b.sockets.refused, "that happens to any connection"
        assert await b.text() == "Hello there."
        assert b.peer.log.sockets == 2


async def test_sockets_are_retired_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert responses_ws.LIFETIME == 55 * 60
    monkeypatch.setattr(responses_ws, "LIFETIME", 0.05)
    async with bench(pool=PoolConfig(lifetime=Duration(7200.0))) as b:
        await b.text()
        await trio.sleep(0.06)
        await b.text()
        assert b.peer.log.sockets == 2


async def test_a_socket_that_is_too_old_is_replaced_and_then_http() -> None:
    async with bench() as b:
        b.peer.socket_answers = 2
        assert [await b.text() for _ in range(3)] == ["Hello there."] * 3
        assert (b.peer.log.sockets, b.methods()) == (2, ["GET"] * 3)
        b.peer.socket_answers = 0
        await b.text()
        assert b.methods()[-1] == "POST"
        assert b.sockets.refused
        assert b.phases.sent


async def test_one_answer_at_a_time_on_a_socket_and_no_more_sockets_than_places() -> None:
    async with bench(pool=PoolConfig(max=2)) as b, b.open("say One; stall") as first, b.open("say Two; stall") as second:
        await first.receive()
        await second.receive()
        assert b.peer.log.sockets == 2
        with trio.move_on_after(0.02) as scope:
            await b.text()
        assert scope.cancelled_caught
        assert b.phases.entered == ["queue"]


# --- the way back to HTTP --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [404, 426, 200, 301, 503, "cut"])
async def test_a_refused_upgrade_goes_over_http_and_is_remembered(how: Any) -> None:
    async with bench() as b:
        b.peer.upgrade = how
        assert await b.text() == "Hello there."
        assert b.phases.entered == ["connect", "connect", "first_token"]
        b.peer.upgrade = "hang"
        with trio.fail_after(2):
            assert await b.text() == "Hello there.", "the second answer is asked for without a new try"
        assert b.methods() == ["POST", "POST"]
        assert b.peer.log.sockets == 0


async def test_a_refusal_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses_ws, "MEMORY", 0.05)
    async with bench() as b:
        b.peer.upgrade = 404
        await b.text()
        b.peer.upgrade = "accept"
        await trio.sleep(0.06)
        await b.text()
        assert b.methods() == ["POST", "GET"]


async def test_what_only_http_can_do_goes_over_http() -> None:
    async with bench() as b:
        request = evolve(make_request("hi", stream=True), dialect="openai_responses", extra={"background": True})
        outbound = b.providers.dialect("test").encode_request(request, ROUTE)
        async with b.providers.open(ROUTE, request, outbound, RecordedPhases(), "k") as answer:
            while await answer.receive() is not None:
                pass
        assert b.methods() == ["POST"]
        assert not b.sockets.refused


async def test_an_upgrade_that_hangs_is_under_the_connect_clock() -> None:
    async with bench() as b:
        b.peer.upgrade = "hang"
        b.sockets._connect_limit = 0.03
        with trio.move_on_after(0.03) as scope:
            await b.text()
        assert scope.cancelled_caught
        assert b.phases.entered == ["connect"]
        assert not b.phases.sent
        assert await b.text() == "Hello there.", "the next one does not wait for it"
        assert b.methods() == ["POST"]


# --- leaving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.timed
@pytest.mark.parametrize("script", ["stall", "begin; stall", "say One; stall", "tokens 1000000"])
async def test_leaving_early_closes_the_socket(script: str) -> None:
    """Within 20 ms, the best of five: a busy machine can only add to it."""
    async with bench() as b:
        late = []
        for _ in range(5):
            with trio.move_on_after(0.02):
                async with b.open(script) as answer:
                    while await answer.receive() is not None:
                        pass
            left = time.time()
            with trio.fail_after(2):
                await b.peer.log.wait_for(lambda log: not log.in_progress)
            entry = b.peer.log.last
            assert entry.state == "closed_by_peer"
            assert entry.closed_at is not None
            late.append(entry.closed_at - left)
            assert b.counts() == (0, 0)
        assert min(late) < 0.02, late


async def test_cancelled_at_every_point() -> None:
    async with bench() as b:
        before = descriptors()

        async def scenario() -> None:
            await b.text()
            await b.text("pause 1ms; say Hello there.")

        async def check() -> None:
            assert b.counts()[0] == 0
            assert b.counts()[1] <= 1
            while b.sockets.pool._idle:
                b.sockets.pool._idle.pop().close()
            await eventually(lambda: b.peer.log.open_connections == 0 and descriptors() == before)

        assert await sweep(scenario, check) >= 6
        assert not b.sockets.refused


def test_frames_are_masked_and_unmask_to_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: b"\x01\x02\x03\x04"[:count])
    for length in (0, 1, 125, 126, 65535, 65536):
        payload = os.getrandom(length) if length else b""
        data = websocket._text_frame(payload)
        head = 2 if length < 126 else 4 if length < 65536 else 10
        assert data[0] == 0x81
        assert data[1] & 0x80
        assert data[head : head + 4] == b"\x01\x02\x03\x04"
        assert bytes(byte ^ (1 + at % 4) for at, byte in enumerate(data[head + 4 :])) == payload
