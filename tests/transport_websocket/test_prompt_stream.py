"""Prompts that come in pieces, over real sockets: put together, bounded in size and time, ended early in every way."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from clawproxy.config import schema
from clawproxy.config.schema import Duration, LimitsConfig, ModelConfig, RouteConfig
from clawproxy.messages import ImagePart, Message, Principal, TextPart

from .kit import FakeService, connect, frame, gateway, message, request, until


def opened(ident: str = "a", **fields: Any) -> bytes:
    return message(type="llm_request", id=ident, model="test-model", prompt_stream=True, **fields)


def chunk(content: Any, ident: str = "a", **fields: Any) -> bytes:
    return message(type="llm_prompt_chunk", id=ident, content=content, **fields)


async def test_the_pieces_are_one_prompt() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(opened(prompt="say on", parameters={"max_tokens": 5}), chunk("e t"), chunk("", final=False))
        await until(lambda: len(gw.service.authenticated) == 2)
        assert gw.service.requests == [], "the exchange begins when the prompt is whole"
        await raw.send(chunk("wo", final=True))
        frames = await raw.until("llm_response_end")
        assert "".join(f.get("content", "") for f in frames) == "onetwo"
        assert [f["seq"] for f in frames] == list(range(len(frames)))
        [seen] = gw.service.requests
        assert (seen.messages, seen.max_tokens) == ((Message("user", "say one two"),), 5)


async def test_parts_and_messages_and_a_last_piece_without_content() -> None:
    image = {"type": "image", "data": "aGk=", "media_type": "image/png"}
    async with gateway() as gw, connect(gw.port) as raw:
        history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        await raw.send(
            opened(messages=history, system="be kind"), chunk("look: "), chunk([{"type": "text", "text": "here "}, image])
        )
        await raw.send(message(type="llm_prompt_chunk", id="a", final=True))
        await raw.until("llm_response_end")
        [seen] = gw.service.requests
        last = Message("user", (TextPart("look: here "), ImagePart(data="aGk=", media_type="image/png")))
        assert seen.messages == (Message("system", "be kind"), Message("user", "hi"), Message("assistant", "hello"), last)


async def test_many_are_streamed_at_once() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        names = [f"r{n}" for n in range(20)]
        await raw.send(*(opened(name, prompt="say ") for name in names))
        for piece in ("x", "y", "z"):
            await raw.send(*(chunk(piece, name, final=piece == "z") for name in names))
        ends = 0
        while ends < 20:
            got = await raw.json()
            ends += got["type"] == "llm_response_end"
            assert got["type"] != "error"
        assert {seen.messages[0].text() for seen in gw.service.requests} == {"say xyz"}


# --- what is wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "slug", "param"),
    [
        ([opened(parameters={"n": 2})], "unknown_parameter", "parameters.n"),  # at once, not after the last piece
        ([opened(prompt=7)], "invalid_request", "prompt"),
        ([opened(messages=[])], "invalid_request", "messages"),
        ([opened(), chunk({"no": 1})], "invalid_request", "content"),
        ([opened(), chunk([{"type": "video"}])], "invalid_request", "content[0].type"),
        ([opened(), chunk("x", final="yes")], "invalid_request", "final"),
        ([opened(), message(type="llm_prompt_chunk", id="a")], "invalid_request", "content"),
        ([opened(), chunk("", final=True)], "invalid_request", "prompt"),
    ],
)
async def test_what_is_wrong_ends_the_request_with_its_error(frames: list[bytes], slug: str, param: str) -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(*frames)
        error = await raw.json()
        assert (error["type"], error["id"], error["error"], error["param"]) == ("error", "a", slug, param)
        assert gw.service.closed[0][1].label == "refused.request", "it is told and counted like any other"
        await raw.send(request("b", "say x"))
        assert (await raw.until("llm_response_end"))[-1]["id"] == "b"


async def test_pieces_behind_a_broken_one_do_no_more_harm() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(opened(), chunk(7), *(chunk("x") for _ in range(60)), request("b", "say x"))
        kinds = [(f["type"], f.get("id"), f.get("error")) for f in await raw.until("llm_response_end", "b")]
        own = ("error", "a", "invalid_request")
        assert kinds.count(own) == 1
        assert {kind for kind in kinds if kind[0] == "error"} <= {own, ("error", None, "unknown_id")}


async def test_it_is_bounded_in_size() -> None:
    service = FakeService(config=schema.Config(limits=LimitsConfig(frame=schema.Size(5000))))
    async with gateway(service) as gw, connect(gw.port) as raw:
        await raw.send(opened(), chunk("x" * 3000), chunk("x" * 3000))
        error = await raw.json()
        assert (error["code"], error["error"], error["setting"], error["id"]) == (413, "frame_too_large", "limits.frame", "a")
        await raw.send(opened("b"), *(chunk("", "b") for _ in range(100)))  # nothing, very often
        frames = await raw.until("error", "b")
        assert frames[-1]["error"] == "frame_too_large"


# --- time ----------------------------------------------------------------------------------------------------------------


async def test_a_gap_is_bounded_by_the_clock_of_bodies_which_says_so() -> None:
    async with gateway(body=0.04) as gw, connect(gw.port) as raw:
        await raw.send(opened(prompt="say "))
        for _ in range(4):
            await trio.sleep(0.02)
            await raw.send(chunk("x"))
        error = await raw.json()
        assert (error["code"], error["error"], error["id"]) == (408, "timeout.body", "a")
        assert (error["clock"], error["setting"], error["limit_ms"]) == ("body", "deadlines.body", 40)
        assert "llm_prompt_chunk" in error["message"]
        assert "client" in error["message"]
        await raw.send(request("b", "say x"))
        assert (await raw.until("llm_response_end"))[-1]["outcome"] == "complete", "only that request is over"
        assert [outcome.label for _, outcome, _ in gw.service.closed] == ["timeout.body", "complete"]


@pytest.mark.parametrize("whose", ["client", "model", "gateway"])
async def test_all_of_it_is_bounded_by_the_deadline_from_the_first_message_on(whose: str) -> None:
    own = {"total": Duration(0.06)} if whose == "model" else {}
    model = ModelConfig((RouteConfig("p", "m"),), deadlines=own)
    service = FakeService(config=schema.Config(models={"test-model": model}))
    total = 0.06 if whose == "gateway" else 600.0
    asked: dict[str, Any] = {"deadline_ms": 60} if whose == "client" else {}
    async with gateway(service, total=total) as gw, connect(gw.port) as raw, trio.open_nursery() as nursery:
        await raw.send(opened(**asked))

        async def drip() -> None:
            while True:
                await raw.send(chunk("x"))
                await trio.sleep(0.005)

        nursery.start_soon(drip)
        began = trio.current_time()
        error = (await raw.until("error", "a"))[-1]
        assert (error["error"], error["limit_ms"]) == ("timeout.total", 60)
        assert "client" in error["message"]
        assert trio.current_time() - began < 1
        nursery.cancel_scope.cancel()
        assert gw.service.closed[0][1].label == "timeout.total"


async def test_the_exchange_knows_when_the_first_message_came() -> None:
    class Notes(FakeService):
        began: float | None = None

        async def handle(self, call: Any, client: Any) -> Any:
            self.began = call.began
            return await super().handle(call, client)

    service = Notes()
    async with gateway(service) as gw, connect(gw.port) as raw:
        before = trio.current_time()
        await raw.send(opened())
        await until(lambda: len(service.authenticated) == 2)
        sent = trio.current_time()
        await trio.sleep(0.03)
        await raw.send(chunk("say x", final=True))
        await raw.until("llm_response_end")
        assert service.began is not None
        assert before <= service.began <= sent


# --- ends ----------------------------------------------------------------------------------------------------------------


async def test_a_cancel_ends_it() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(opened(), chunk("x"), message(type="llm_cancel", id="a"))
        end = await raw.json()
        assert (end["type"], end["outcome"], end["seq"]) == ("llm_response_end", "cancelled", 0)
        assert end["receipt"]["cancelled_at"] > 1e9
        await raw.send(chunk("x", final=True))
        assert (await raw.json())["error"] == "unknown_id"
        assert gw.service.requests == []
        await raw.send(opened(), chunk("say x", final=True))
        assert (await raw.until("llm_response_end"))[-1]["outcome"] == "complete"


@pytest.mark.parametrize("rude", [False, True])
async def test_a_client_that_leaves_takes_it_along(rude: bool) -> None:
    """`gateway` asserts that no task is left."""
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(*(opened(f"r{n}", prompt="x" * 1000) for n in range(20)))
        await until(lambda: len(gw.service.authenticated) > 20)
        if rude:
            await trio.aclose_forcefully(raw.stream)
        else:
            await raw.send(frame(8))
            await raw.closed()
        await until(lambda: not gw.active)
        assert gw.service.requests == []


async def test_policy_is_asked_when_it_begins_and_when_it_is_whole() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(opened())
        await until(lambda: len(gw.service.authenticated) == 2)
        gw.service.principals.clear()
        await raw.send(chunk("say x", final=True))
        error = await raw.json()
        assert (error["code"], error["id"]) == (401, "a")
        assert await raw.closed() == 4401
        assert gw.service.requests == []


async def test_it_takes_one_of_the_connections_places() -> None:
    service = FakeService(
        config=schema.Config(limits=LimitsConfig(in_flight_per_connection=1)), principals={"good": Principal(key="k")}
    )
    async with gateway(service) as gw, connect(gw.port) as raw:
        await raw.send(opened(), request("b", "say x"))
        error = await raw.json()
        assert (error["error"], error["id"]) == ("limit.in_flight", "b")


async def test_nothing_is_added_to_a_prompt_that_is_not_final() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(opened(), message(type="llm_append", id="a", content="x"))
        error = await raw.json()
        assert (error["error"], error["ref"]) == ("invalid_request", "a")
        await raw.send(chunk("say x", final=True), chunk("y"))
        frames = await raw.until("llm_response_end")
        assert frames[-1]["outcome"] == "complete"
        assert gw.service.requests[0].messages == (Message("user", "say x"),)
