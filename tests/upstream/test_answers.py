"""What a provider says, byte for byte, and what the exchange receives."""

from __future__ import annotations

import pytest
import trio

from clawproxy.config import Config, ProviderConfig
from clawproxy.dialects.base import OutboundRequest
from clawproxy.errors import ClawError
from clawproxy.events import Batch, End, Failed, Text
from clawproxy.messages import Route
from clawproxy.secrets import Secret
from clawproxy.testing.factories import make_request
from clawproxy.upstream.providers import Providers
from tests.upstream.kit import CHUNKED, KEY, Conversation, LineDialect, RecordedPhases, always, bench, chunk, once, whole


async def test_a_stream_gives_one_batch_for_each_network_read() -> None:
    pieces = (CHUNKED, chunk(b"a\n"), chunk(b"b\nc\n"), chunk(b"END\n") + b"0\r\n\r\n")
    async with bench(always(*pieces)) as b:
        batches: list[Batch] = []
        async with b.open() as stream:
            assert stream.status == 200
            while (batch := await stream.receive()) is not None:
                batches.append(batch)
            assert await stream.receive() is None
        assert [list(x.events) for x in batches] == [[Text("a")], [Text("b"), Text("c")], [End()]]
        assert b.counts() == (0, 1, 0)
        assert b.phases.entered == ["connect", "first_token"]
        assert b.phases.sent


async def test_an_event_split_over_reads_makes_no_empty_batch() -> None:
    async with bench(always(CHUNKED, chunk(b"he"), chunk(b"ll"), chunk(b"o\nEND\n"), b"0\r\n\r\n")) as b, b.open() as stream:
        batch = await stream.receive()
        assert batch is not None
        assert list(batch.events) == [Text("hello"), End()]
        assert await stream.receive() is None


@pytest.mark.parametrize(
    "answer",
    [
        whole(b"hello."),
        b"HTTP/1.1 200\r\nContent-LENGTH:6\r\n\r\nhello.",
        CHUNKED + chunk(b"hel") + chunk(b"lo.") + b"0\r\n\r\n",
        CHUNKED + b"3;a=b\r\nhel\r\n" + chunk(b"lo.") + b"0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + whole(b"hello."),
    ],
)
async def test_a_whole_answer_however_framed(answer: bytes) -> None:
    async with bench(always(answer)) as b:
        assert await b.ask(stream=False) == [Text("hello."), End()]
        assert await b.ask(stream=False) == [Text("hello."), End()]
        assert b.counts() == (0, 1, 0)
        assert b.peer.opened == 1
        assert b.phases.entered == ["first_token"]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_body_that_ends_with_the_connection(version: bytes) -> None:
    async with bench(once(b"HTTP/" + version + b" 200 OK\r\n\r\n", b"hello.")) as b:
        assert await b.ask(stream=False) == [Text("hello."), End()]
        assert b.counts() == (0, 0, 0)


async def test_a_close_delimited_body_cut_short_is_the_decoders_to_notice() -> None:
    async with bench(once(b"HTTP/1.1 200 OK\r\n\r\n", b"hel")) as b:
        (event,) = await b.ask(stream=False)
        assert isinstance(event, Failed)
        assert event.error.slug == "provider_error.cut"


@pytest.mark.parametrize("cut", range(1, len(CHUNKED) + 12))
async def test_an_answer_cut_in_two_anywhere(cut: int) -> None:
    answer = CHUNKED + chunk(b"hi\nEND\n") + b"0\r\n\r\n"
    async with bench(always(answer[:cut], answer[cut:])) as b:
        assert await b.ask() == [Text("hi"), End()]
        # The terminal event is enough for the answer. Cut within its chunk's own CRLF the connection is lost; a last chunk that
        # is not here yet is waited for in the pool.
        end = answer.index(b"END\n") + 4
        assert b.counts() == (0, 0 if end <= cut < end + 2 else 1, 0)


async def test_a_provider_that_is_always_ahead_does_not_keep_the_loop() -> None:
    ticks = 0

    async def others() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await trio.lowlevel.checkpoint()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(CHUNKED)
        for _ in range(200):
            await talk.say(chunk(b"x" * 65000 + b"\n"))
        await talk.say(chunk(b"END\n") + b"0\r\n\r\n")

    async with bench(script) as b, trio.open_nursery() as nursery, b.open() as stream:
        await trio.sleep(0.05)
        nursery.start_soon(others)
        reads = 0
        while await stream.receive() is not None:
            reads += 1
        assert ticks >= reads / 8
        nursery.cancel_scope.cancel()


async def test_a_stream_whose_bytes_are_always_there_can_be_cancelled() -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(CHUNKED)
        while True:
            await talk.say(chunk(b"x" * 65000))

    async with bench(script) as b:
        with trio.fail_after(2), trio.move_on_after(0.05) as scope:
            await b.ask()
        assert scope.cancelled_caught


async def test_providers_without_an_address_are_served_in_process() -> None:
    async with bench(always(whole(b"x."))) as inner:
        settings = ProviderConfig(dialect="scripted")
        config = Config(providers={"test": settings})
        outer = Providers(config, {}, lambda ref: Secret(""), in_process={"scripted": inner.providers})
        assert outer.dialect("test") is inner.dialect
        request, out = make_request(), OutboundRequest("/say", b"hi")
        async with outer.open(Route("test", "m"), request, out, RecordedPhases(), "k") as stream:
            batch = await stream.receive()
            assert batch is not None
        assert outer.statistics() == {}
        await outer.aclose()


async def test_what_goes_out_is_ours_alone() -> None:
    async with bench(always(whole(b"x.")), prefix="/api/v1/", headers={"X-Org": "acme"}) as b:
        await b.ask("prompt", stream=False, headers=(("content-type", "application/json"), ("x-org", "dialect's")))
        seen = b.peer.seen[0]
        assert seen.line == "POST /api/v1/say HTTP/1.1"
        names = [name for name, _ in seen.headers]
        assert sorted(names) == sorted(set(names))
        assert set(names) == {
            "host", "user-agent", "accept-encoding", "content-type", "x-org", "authorization", "content-length",
        }  # fmt: skip
        assert seen.all("host") == [f"127.0.0.1:{b.peer.port}"]
        assert seen.all("authorization") == [f"Bearer {KEY}"]
        assert seen.all("x-org") == ["acme"]
        assert seen.body == b"prompt"


@pytest.mark.parametrize("header", ["x-api-key", "x-goog-api-key", "api-key"])
async def test_the_credential_goes_where_the_dialect_wants_it(header: str) -> None:
    async with bench(always(whole(b"x.")), dialect=LineDialect(header)) as b:
        await b.ask(stream=False)
        assert b.peer.seen[0].all(header) == [KEY]
        assert not b.peer.seen[0].all("authorization")


async def test_head_and_body_go_out_in_one_write() -> None:
    async def script(talk: Conversation) -> None:
        first = await talk.stream.receive_some(65536)
        assert first.endswith(b"\r\n\r\nprompt")
        await talk.say(whole(b"one write."))

    async with bench(script) as b:
        assert await b.ask("prompt", stream=False) == [Text("one write."), End()]


async def test_a_body_larger_than_all_buffers() -> None:
    prompt = "x" * 4_000_000
    async with bench(always(whole(b"x."))) as b:
        await b.ask(prompt, stream=False)
        assert len(b.peer.seen[0].body) == 4_000_000


async def test_an_answer_before_the_request_was_read_is_heard() -> None:
    async def script(talk: Conversation) -> None:
        await talk.say(whole(b"no", "413 Content Too Large"))
        await trio.sleep(0.05)

    async with bench(script) as b:
        error = await b.fault(prompt="x" * 4_000_000)
        assert b.dialect.errors[0][0] == 413
        assert error.details.provider_status == 413
        assert b.counts() == (0, 0, 0)


@pytest.mark.parametrize("path", ["/say hello", "/a\r\nx: y", "/v1/../admin", "/v1/%2E./admin", "say", "/a#b", "/é"])
async def test_a_path_that_would_leave_its_place_is_refused(path: str) -> None:
    async with bench(always(whole(b"x."))) as b:
        with pytest.raises(ClawError, match="invalid_request"):
            await b.ask(path=path)
        assert b.peer.opened == 0


@pytest.mark.parametrize(
    "header", [("x-a", "b\r\nc: d"), ("x-a\r\n", "b"), ("host", "evil"), ("authorization", "Bearer x"), ("", "")]
)
async def test_a_dialect_can_not_break_the_head(header: tuple[str, str]) -> None:
    async with bench(always(whole(b"x."))) as b:
        with pytest.raises(ValueError, match="bad header"):
            await b.ask(headers=(header,))
        assert b.counts() == (0, 0, 0)
