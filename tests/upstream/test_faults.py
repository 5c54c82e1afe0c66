"""FAULTS.md, "What a provider does": each row that this side decides, against a real socket."""

from __future__ import annotations

import errno
import logging
import resource
import socket

import pytest
import trio

from clawproxy.config import SecretRef
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import End, Text
from clawproxy.secrets import Secret
from clawproxy.upstream import answer
from clawproxy.upstream.dns import Resolver
from tests.upstream.kit import (
    CHUNKED,
    KEY,
    Conversation,
    always,
    bench,
    chunk,
    descriptors,
    eventually,
    once,
    whole,
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_connection_refused() -> None:
    async with bench(always(whole(b"x.")), base_url=f"http://127.0.0.1:{free_port()}") as b:
        error = await b.fault()
        assert error.slug == "provider_error.unreachable"
        assert error.message == "The provider could not be reached. test: connection refused."
        assert error.details.provider == "test"
        assert not error.sent
        assert not b.phases.sent


async def test_unknown_name() -> None:
    def lookup(host: str) -> list[tuple[object, object, object, object, tuple[object, ...]]]:
        raise socket.gaierror(socket.EAI_NONAME, "nobody knows")

    async with bench(always(whole(b"x.")), host="nowhere.test", resolver=Resolver(lookup)) as b:
        error = await b.fault()
        assert error.slug == "provider_error.unreachable"
        assert error.message.endswith("test: name not found.")


@pytest.mark.parametrize("reset", [False, True])
async def test_closed_before_the_answer(reset: bool) -> None:
    async with bench(once(b"", reset=reset)) as b:
        error = await b.fault()
        assert error.slug == "provider_error.cut"
        assert error.sent
        assert b.phases.sent
        assert b.peer.opened == 1


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "pieces",
    [
        (CHUNKED, chunk(b"a\n"), b"5\r\nab"),
        (CHUNKED, chunk(b"a\n")),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", b"a\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-le",),
    ],
)
async def test_cut_in_the_middle(pieces: tuple[bytes, ...], reset: bool) -> None:
    async with bench(once(*pieces, reset=reset)) as b:
        error = await b.fault()
        assert error.slug == "provider_error.cut"
        assert error.sent
        assert b.counts() == (0, 0, 0)
        assert b.peer.opened == 1, "never silently retried"


async def test_what_came_before_the_cut_was_delivered() -> None:
    async with bench(once(CHUNKED, chunk(b"a\n"))) as b, b.open() as stream:
        batch = await stream.receive()
        assert batch is not None
        assert list(batch.events) == [Text("a")]
        with pytest.raises(ProviderFault, match="cut"):
            await stream.receive()


@pytest.mark.parametrize("tail", [b"garbage that breaks the chunking", b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"0\r\n\r\n\x00"])
async def test_after_the_terminal_marker_nothing_matters(tail: bytes) -> None:
    async with bench(once(CHUNKED + chunk(b"a\nEND\n") + tail, reset=True)) as b:
        assert await b.ask() == [Text("a"), End()]
        assert b.counts() == (0, 0, 0)


async def test_a_stream_that_lingers_after_its_end_carries_no_other_request() -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(CHUNKED + chunk(b"a\nEND\n"))
        await talk.gone()

    async with bench(script) as b:
        with trio.fail_after(1):
            for opened in (1, 2):
                assert await b.ask() == [Text("a"), End()]
                assert b.counts() == (0, 1, 0)
                await eventually(lambda: b.peer.open == 1)
                assert b.peer.opened == opened
            b.pool.sweep()
            assert b.counts() == (0, 0, 0)
            await eventually(lambda: b.peer.open == 0)


MALFORMED = {
    "length and chunked": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nx.",
    "length list": b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nx.",
    "length sign": b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nx.",
    "gzip chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked 1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "content coding": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nx.",
    "obs-fold": b"HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\ncontent-length: 2\r\n\r\nx.",
    "space before colon": b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nx.",
    "bare lf": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nx.",
    "bare lf in head": b"HTTP/1.1 200 OK\r\nx: y\ncontent-length: 2\r\n\r\nx.",
    "bare cr": b"HTTP/1.1 200 OK\r\nx: y\rz\r\ncontent-length: 2\r\n\r\nx.",
    "nul": b"HTTP/1.1 200 OK\r\nx: \x00\r\ncontent-length: 2\r\n\r\nx.",
    "escape in reason": b"HTTP/1.1 200 Bad\x1b[2J\r\ncontent-length: 2\r\n\r\nx.",
    "no header name": b"HTTP/1.1 200 OK\r\n: x\r\n\r\nx.",
    "status letters": b"HTTP/1.1 2OO OK\r\n\r\nx.",
    "status long": b"HTTP/1.1 2000 OK\r\n\r\nx.",
    "status 999": b"HTTP/1.1 999 OK\r\n\r\nx.",
    "version 2": b"HTTP/2.0 200 OK\r\n\r\nx.",
    "no http": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "leading empty line": b"\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx.",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    "interim for ever": b"HTTP/1.1 102 Processing\r\n\r\n" * 11,
    "chunk size": CHUNKED + b"zz\r\n",
    "chunk overrun": CHUNKED + b"1\r\nab\r\n",
    "chunk negative": CHUNKED + b"-1\r\n",
    "chunk huge": CHUNKED + b"f" * 17 + b"\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed(name: str) -> None:
    async with bench(once(MALFORMED[name], reset=True)) as b:
        error = await b.fault()
        assert error.slug == "provider_error.malformed", error
        assert b.counts() == (0, 0, 0)


async def test_a_head_without_end() -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(b"HTTP/1.1 200 OK\r\n")
        while True:
            await talk.say(b"x-a: " + b"y" * 1000 + b"\r\n")

    async with bench(script) as b:
        error = await b.fault()
        assert error.slug == "provider_error.malformed"
        assert "64 KiB" in error.message


@pytest.mark.parametrize(
    "pieces",
    [
        (CHUNKED, *[chunk(b"x" * 600) for _ in range(3)]),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 2000),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n",),
        (CHUNKED + b"1;" + b"e" * 600, b"e" * 600),
        (CHUNKED + b"0\r\n" + b"t: " + b"e" * 600, b"e" * 600),
    ],
    ids=["chunked", "close", "declared", "extension", "trailer"],
)
async def test_larger_than_allowed(pieces: tuple[bytes, ...]) -> None:
    async with bench(once(*pieces), response=1000) as b:
        error = await b.fault()
        assert error.slug == "provider_error.too_large"
        assert error.sent
        assert b.counts() == (0, 0, 0)


async def test_a_redirect_is_not_followed() -> None:
    async def trap(talk: Conversation) -> None:
        await talk.request()

    async with bench(trap) as evil:
        location = f"location: http://127.0.0.1:{evil.peer.port}/"
        async with bench(always(whole(b"", "307 Temporary Redirect", location))) as b:
            error = await b.fault()
            assert error.slug == "provider_error.redirect"
            assert error.details.provider_status == 307
            assert str(evil.peer.port) not in error.message
        assert evil.peer.opened == 0


async def test_an_error_reaches_the_dialect_and_keeps_the_connection() -> None:
    fields = ("retry-after: 7", "set-cookie: a=b", "x-ratelimit-remaining: 0", "x-api-key: " + KEY, "Retry-After: 9")
    async with bench(always(whole(b'{"error":1}', "429 Slow Down", *fields))) as b:
        error = await b.fault()
        assert error.slug == "provider_error.rate_limited"
        assert (error.details.provider, error.details.provider_status) == ("test", 429)
        assert b.dialect.errors == [(429, {"retry-after": "7", "x-ratelimit-remaining": "0"}, b'{"error":1}')]
        assert b.counts() == (0, 1, 0)


async def test_an_error_of_100_megabytes() -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(b"HTTP/1.1 400 Bad\r\ncontent-length: 104857600\r\n\r\n")
        while True:
            await talk.stream.send_all(b"x" * 65536)

    async with bench(script, response=1_000_000) as b:
        with trio.fail_after(1):
            error = await b.fault()
        assert error.slug == "provider_error.server"
        assert len(b.dialect.errors[0][2]) == 65536
        assert b.counts() == (0, 0, 0)


async def test_an_error_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "ERROR_BODY_SECONDS", 0.1)

    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(b"HTTP/1.1 500 Oops\r\ncontent-length: 1000\r\n\r\n")
        while True:
            await talk.say(b"x")
            await trio.sleep(0.01)

    async with bench(script) as b:
        with trio.fail_after(1):
            error = await b.fault()
        assert error.slug == "provider_error.server"
        assert 0 < len(b.dialect.errors[0][2]) < 1000
        assert b.counts() == (0, 0, 0)


async def test_an_error_cut_short_is_still_that_error() -> None:
    async with bench(once(b"HTTP/1.1 503 No\r\ncontent-length: 1000\r\n\r\nhalf")) as b:
        assert (await b.fault()).slug == "provider_error.server"
        assert b.dialect.errors[0][2] == b"half"


# --- reuse -----------------------------------------------------------------------------------------------------------------


async def test_a_connection_closed_while_idle_is_replaced() -> None:
    async with bench(once(whole(b"x."))) as b:
        for _ in range(3):
            assert await b.ask(stream=False) == [Text("x."), End()]
            await trio.sleep(0.02)
        assert b.peer.opened == 3
        assert b.phases.entered == ["connect", "first_token"]


async def test_a_connection_that_spoke_while_idle_is_replaced() -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(whole(b"x."), whole(b"smuggled."))
        await talk.gone()

    async with bench(script) as b:
        for _ in range(3):
            assert await b.ask(stream=False) == [Text("x."), End()]
            await trio.sleep(0.03)
        assert b.peer.opened == 3


async def test_an_answer_with_more_behind_it_is_not_reused() -> None:
    async with bench(always(whole(b"x.") + whole(b"smuggled."))) as b:
        assert await b.ask(stream=False) == [Text("x."), End()]
        assert b.counts() == (0, 0, 0)


@pytest.mark.parametrize("field", ["connection: close", "Connection: foo, Close"])
async def test_connection_close_is_honoured(field: str) -> None:
    async with bench(always(whole(b"x.", "200 OK", field))) as b:
        assert await b.ask(stream=False) == [Text("x."), End()]
        assert b.counts() == (0, 0, 0)


async def test_closed_exactly_at_reuse_with_nothing_accepted_goes_to_a_fresh_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(whole(b"x."))
        if talk.number == 0:
            talk.reset()
        else:
            await talk.gone()

    async with bench(script) as b:
        await b.ask(stream=False)
        await trio.sleep(0.02)
        # The peek happened a moment before the RST arrived: the first the gateway hears of it is its own send.
        connection = b.pool._idle[0]
        monkeypatch.setattr(type(connection), "quiet", lambda self: True)
        assert await b.ask(stream=False) == [Text("x."), End()]
        assert b.peer.opened == 2
        assert len(b.peer.seen) == 2
        assert b.phases.entered == ["first_token", "connect", "first_token"]
        assert b.phases.sent


async def test_closed_exactly_at_reuse_with_bytes_accepted_is_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(once(whole(b"x."))) as b:
        await b.ask(stream=False)
        await trio.sleep(0.02)
        # A FIN alone: the kernel still takes our bytes, and who knows what became of them.
        connection = b.pool._idle[0]
        monkeypatch.setattr(type(connection), "quiet", lambda self: True)
        error = await b.fault(stream=False)
        assert error.slug == "provider_error.cut"
        assert error.sent
        assert b.phases.sent
        assert b.peer.opened == 1
        assert b.counts() == (0, 0, 0)


# --- credentials and shortages ---------------------------------------------------------------------------------------------


async def test_a_key_that_is_missing_is_our_fault_and_sends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def resolve(ref: SecretRef) -> Secret:
        raise LookupError(f"{KEY} is not there")

    async with bench(always(whole(b"x.")), resolve=resolve) as b:
        with caplog.at_level(logging.DEBUG):
            error = await b.fault()
        assert error.slug == "provider_error.auth"
        assert not error.sent
        assert "providers.test.api_key" in caplog.text
        assert KEY not in caplog.text + repr(error) + str(error.__context__)
        assert b.peer.opened == 0


@pytest.mark.parametrize("key", ["", "a\r\nb: c", "a b", "schlüssel"])
async def test_a_key_that_is_no_header_value(key: str) -> None:
    async with bench(always(whole(b"x.")), resolve=lambda ref: Secret(key)) as b:
        error = await b.fault()
        assert error.slug == "provider_error.auth"
        assert not key or key not in str(error)


async def test_a_refused_key_is_read_again() -> None:
    """A refused request was not worked on: it is sent once more where the key has been replaced, and only there."""
    keys = iter(["old", "old", "older", "new"])
    asked = 0

    async def script(talk: Conversation) -> None:
        nonlocal asked
        while True:
            seen = await talk.request()
            asked += 1
            good = seen.all("authorization") == ["Bearer new"]
            await talk.say(whole(b"x.") if good else whole(b"", "401 Unauthorized"))

    async with bench(script, resolve=lambda ref: Secret(next(keys))) as b:
        assert (await b.fault(stream=False)).slug == "provider_error.auth"
        assert asked == 1, "the same key"
        assert (await b.fault(stream=False)).slug == "provider_error.auth"
        assert asked == 3, "another, which is refused, too"
        assert await b.ask(stream=False) == [Text("x."), End()]
        assert await b.ask(stream=False) == [Text("x."), End()]


async def test_out_of_descriptors_is_not_the_providers_fault() -> None:
    async with bench(always(whole(b"x."))) as b:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = descriptors()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(ClawError) as caught:
                await b.ask()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.slug == "overloaded"
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EMFILE
        assert descriptors() == before
