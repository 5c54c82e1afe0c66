"""TLS: always verified, closed without ceremony, reused like plain connections."""

from __future__ import annotations

import datetime
import socket
import ssl
from pathlib import Path

import pytest
import trio
import trustme

from clawproxy.config import SecretRef
from clawproxy.errors import ConfigError
from clawproxy.events import End, Text
from clawproxy.upstream.dns import Resolver
from tests.upstream.kit import CHUNKED, KEY, Conversation, Gone, always, bench, chunk, eventually, make_providers, once, whole


def resolver() -> Resolver:
    return Resolver(lambda host: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))])


async def test_answers_and_reuse(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    pieces = (CHUNKED, chunk(b"a\n"), chunk(b"b\nEND\n") + b"0\r\n\r\n")
    async with bench(always(*pieces), server_tls, ca_file=ca_file, host="provider.test", resolver=resolver()) as b:
        for _ in range(3):
            assert await b.ask() == [Text("a"), Text("b"), End()]
            await trio.sleep(0.01)  # session tickets come when they like
        assert b.peer.opened == 1
        assert b.counts() == (0, 1, 0)


async def test_server_name_and_protocol(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    said: list[object] = []

    async def script(talk: Conversation) -> None:
        await talk.request()
        assert isinstance(talk.stream, trio.SSLStream)
        said.append(talk.stream.selected_alpn_protocol())
        await talk.say(whole(b"x."))
        await talk.gone()

    names: list[str | None] = []
    server_tls.sni_callback = lambda _tls, name, _context: names.append(name)
    try:
        async with bench(script, server_tls, ca_file=ca_file, host="Provider.TEST", resolver=resolver()) as b:
            assert await b.ask(stream=False) == [Text("x."), End()]
            assert b.peer.seen[0].all("host") == [f"provider.test:{b.peer.port}"]
    finally:
        server_tls.sni_callback = None
    assert names == ["provider.test"]
    assert said == ["http/1.1"]


async def test_a_long_answer_in_one_batch_per_read(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    text = b"x" * 1_000_000
    async with bench(always(CHUNKED + chunk(text + b"\nEND\n") + b"0\r\n\r\n"), server_tls, ca_file=ca_file) as b:
        assert await b.ask() == [Text(text.decode()), End()]
        assert b.counts() == (0, 1, 0)


@pytest.mark.parametrize("what", ["authority", "name", "date"])
async def test_a_certificate_that_is_not_good(what: str, ca: trustme.CA, ca_file: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if what == "authority":
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    elif what == "name":
        ca.issue_cert("other.test").configure_cert(context)
    else:
        past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        ca.issue_cert("127.0.0.1", not_before=past, not_after=past.replace(year=2021)).configure_cert(context)
    async with bench(always(whole(b"x.")), context, ca_file=ca_file) as b:
        error = await b.fault()
        assert error.slug == "provider_error.unreachable"
        assert "test: certificate verify failed: " in error.message
        assert not error.sent
        assert b.peer.seen == [], "the key never left"


async def test_the_systems_authorities_do_not_know_ours(server_tls: ssl.SSLContext) -> None:
    async with bench(always(whole(b"x.")), server_tls) as b:
        assert "certificate verify failed" in (await b.fault()).message


async def test_a_server_that_speaks_no_tls(ca_file: Path) -> None:
    async def script(talk: Conversation) -> None:
        await talk.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await talk.gone()

    async with bench(script, ca_file=ca_file) as plain:
        async with bench(script, base_url=f"https://127.0.0.1:{plain.peer.port}") as b:
            error = await b.fault()
        assert error.slug == "provider_error.unreachable"
        assert "test: TLS failed: " in error.message


async def test_closed_during_the_handshake() -> None:
    async def script(talk: Conversation) -> None:
        await talk.stream.receive_some(100)

    async with bench(script) as plain:
        async with bench(script, base_url=f"https://127.0.0.1:{plain.peer.port}") as b:
            error = await b.fault()
        assert error.slug == "provider_error.unreachable"
        assert "connection" in error.message


async def test_a_close_delimited_body_needs_a_tls_close(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    """Without close_notify anyone on the way could have cut it (RFC 8446, 6.1)."""

    async def polite(talk: Conversation) -> None:
        await talk.request()
        await talk.say(b"HTTP/1.1 200 OK\r\n\r\nhello.")
        assert isinstance(talk.stream, trio.SSLStream)
        # https_compatible streams keep quiet unless unwrapped
        with trio.move_on_after(0.1):
            await talk.stream.unwrap()
        raise Gone

    async with bench(polite, server_tls, ca_file=ca_file) as b:
        assert await b.ask(stream=False) == [Text("hello."), End()]
    async with bench(once(b"HTTP/1.1 200 OK\r\n\r\nhello."), server_tls, ca_file=ca_file) as b:
        assert (await b.fault(stream=False)).slug == "provider_error.cut"


async def test_closed_while_idle(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    async with bench(once(whole(b"x.")), server_tls, ca_file=ca_file) as b:
        for _ in range(2):
            assert await b.ask(stream=False) == [Text("x."), End()]
            await eventually(lambda: b.peer.open == 0)
        assert b.peer.opened == 2


async def test_a_tls_close_that_comes_with_the_answer(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    """One segment holds both, and no FIN follows: the socket is quiet, the connection is not."""

    async def script(talk: Conversation) -> None:
        await talk.request()
        assert isinstance(talk.stream, trio.SSLStream)
        raw = talk.socket
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        await talk.say(whole(b"x."))
        with trio.move_on_after(0.02):
            await talk.stream.unwrap()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        while await raw.recv(65536):
            pass

    async with bench(script, server_tls, ca_file=ca_file) as b:
        for opened in (1, 2):
            with trio.fail_after(2):
                assert await b.ask(stream=False) == [Text("x."), End()]
            assert b.peer.opened == opened


async def test_a_large_request(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    async with bench(always(whole(b"x.")), server_tls, ca_file=ca_file) as b:
        assert await b.ask("y" * 3_000_000, stream=False) == [Text("x."), End()]
        assert b.peer.seen[0].body == b"y" * 3_000_000


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_bad_ca_file(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        make_providers("https://provider.test", ca_file=path, api_key=SecretRef("", KEY))
    (problem,) = caught.value.problems
    assert problem.startswith("providers.test.ca_file: ")
