"""The choice of the engine, and what the head check makes of a good head."""

from __future__ import annotations

import sys

import pytest

from clawproxy.errors import ClawError
from clawproxy.http1.body import BodyReader
from clawproxy.http1.engine import Engine, EngineRefused, RawHead, select
from clawproxy.http1.engine_h11 import H11Engine
from clawproxy.http1.engine_httptools import HttptoolsEngine
from clawproxy.http1.headcheck import HeadCollector, parse_head, risky_target


def test_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLAWPROXY_HTTP_ENGINE", raising=False)
    assert select() is HttptoolsEngine
    assert select("h11") is H11Engine
    monkeypatch.setenv("CLAWPROXY_HTTP_ENGINE", "h11")
    assert select() is H11Engine
    assert select("httptools") is HttptoolsEngine
    with pytest.raises(ValueError, match="nginx"):
        select("nginx")


def test_without_httptools_h11_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLAWPROXY_HTTP_ENGINE", raising=False)
    monkeypatch.setitem(sys.modules, "httptools", None)
    monkeypatch.delitem(sys.modules, "clawproxy.http1.engine_httptools")
    assert select() is H11Engine
    with pytest.raises(ImportError):
        select("httptools")


@pytest.mark.parametrize("make", [HttptoolsEngine, H11Engine])
def test_a_head(make: type[Engine]) -> None:
    raw = (
        b"POST /v1/x?a=b&c HTTP/1.1\r\nHost: gw.test:80\r\nX-A:  one \t\r\nx-a: two\r\nEmpty:\r\nsession_id: 1\r\n"
        b"Content-Length: 3\r\nConnection: Keep-Alive, Foo\r\n\r\n"
    )
    head = parse_head(raw, make())
    assert (head.method, head.target, head.path, head.query) == ("POST", "/v1/x?a=b&c", "/v1/x", "a=b&c")
    assert head.all("x-a") == ["one", "two"]
    assert head.get("empty") == ""
    assert head.get("session_id") is None
    assert (head.keep_alive, head.content_length, head.chunked, head.version) == (True, 3, False, "1.1")


class Disagreeing:
    """An engine that reads something else than the strict check."""

    complete = True

    def __init__(self, target: bytes = b"/", fields: int = 1, refuse: bool = False, body: bytes = b"") -> None:
        self._target, self._fields, self._refuse, self._body = target, fields, refuse, body

    def head(self, data: bytes) -> RawHead:
        if self._refuse:
            raise EngineRefused("no")
        return RawHead(b"GET", self._target, "1.1", [(b"host", b"a")] * self._fields)

    def body(self, data: bytes) -> bytes:
        return self._body


@pytest.mark.parametrize("engine", [Disagreeing(b"/other"), Disagreeing(fields=2), Disagreeing(refuse=True)])
def test_where_the_readings_differ_the_request_is_refused(engine: Disagreeing) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert parse_head(raw, Disagreeing()).path == "/"
    with pytest.raises(ClawError, match="bad_head"):
        parse_head(raw, engine)


def test_where_the_bodies_differ_the_request_is_refused() -> None:
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
    reader = BodyReader(parse_head(raw, HttptoolsEngine()), Disagreeing(body=b"ab"), 100)
    with pytest.raises(ClawError, match="bad_body"):
        reader.feed(b"abc")


def test_bytes_are_refused_the_moment_they_arrive() -> None:
    for good, bad in [(b"GET / HTTP/1.1", b"\n"), (b"GET /\r", b"x"), (b"A", b"\x00"), (b"G / H\r\n", b" "), (b"", b"\r")]:
        collector = HeadCollector(1000)
        if good:
            assert collector.feed(good) is None
        with pytest.raises(ClawError, match="bad_head"):
            collector.feed(bad)


def test_the_head_may_be_as_large_as_its_limit_and_no_larger() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100 + b"\r\n\r\n"
    collector = HeadCollector(len(head))
    assert collector.feed(head + b"rest") == head
    assert collector.rest == b"rest"
    with pytest.raises(ClawError, match="head_too_large"):
        HeadCollector(len(head) - 1).feed(head)


@pytest.mark.parametrize("target", ["/%00", "/a%2Fb", "/%0A", "/%0d", "/a/../b", "//a", "/é"])
def test_risky_targets(target: str) -> None:
    assert risky_target(target)
    assert not risky_target("/v1/chat/completions?x=%20")


@pytest.mark.parametrize(
    "framing", ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("name", ["httptools", "h11"])
def test_an_offer_to_upgrade_on_a_post_is_ignored_and_its_body_read(name: str, framing: str) -> None:
    """curl's h2c: both engines go on with HTTP/1.1 (RFC 9110 section 7.8)."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: gw.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    data = (head + framing).encode()
    for cut in range(1, len(data)):
        engine = select(name)()
        collector = HeadCollector(16384)
        later = data[cut:]
        raw = collector.feed(data[:cut])
        if raw is None:
            raw, later = collector.feed(later), b""
        assert raw is not None
        reader = BodyReader(parse_head(raw, engine, collector.match), engine, 1000)
        for piece in (collector.rest, later):
            if piece:
                reader.feed(piece)
        assert reader.done
        assert reader.content() == b"hello"
