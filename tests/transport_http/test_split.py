"""H-48 without sockets: every two-way split of every case, and one byte at a time, has the verdict of the whole; and both
engines have the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.errors import ClawError
from clawproxy.http1.body import BodyReader
from clawproxy.http1.engine import EngineFactory, select
from clawproxy.http1.head import Head
from clawproxy.http1.headcheck import HeadCollector, parse_head

from .support import Case, corpus, post

Verdict = tuple[str, Head | None, bytes, bytes]
ENGINES = {name: select(name) for name in ("httptools", "h11")}
CASES = [*corpus("heads"), *corpus("bodies")]
LIMIT = 16 * 1024


def verdict(pieces: list[bytes], make: EngineFactory) -> Verdict:
    """`(slug or "ok" or "more", head, content, rest)` of one request fed as `pieces`."""
    collector = HeadCollector(LIMIT)
    engine = make()
    head: Head | None = None
    reader: BodyReader | None = None
    try:
        for piece in pieces:
            if reader is None:
                raw = collector.feed(piece)
                if raw is None:
                    continue
                head = parse_head(raw, engine)
                reader = BodyReader(head, engine, 32 * 1024 * 1024)
                piece = collector.rest
            if piece:
                reader.feed(piece)
    except ClawError as error:
        return error.slug, None, b"", b""
    if reader is None or not reader.done:
        return "more", head, b"", b""
    return "ok", head, reader.content(), reader.rest


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_verdict_does_not_depend_on_the_cut(case: Case) -> None:
    data = case.data
    whole = verdict([data], ENGINES["httptools"])
    assert verdict([data], ENGINES["h11"]) == whole
    single = min(len(data), 17_000)
    assert verdict([*(data[i : i + 1] for i in range(single)), data[single:]], ENGINES["httptools"]) == whole
    for at in range(1, len(data), 1 if len(data) < 2000 else len(data) // 25):
        assert verdict([data[:at], data[at:]], ENGINES["httptools"]) == whole, at
    for at in range(1, len(data), max(1, len(data) // (40 if len(data) < 2000 else 4))):
        assert verdict([data[:at], data[at:]], ENGINES["h11"]) == whole, at


# --- both engines, behind the strict check -----------------------------------------------------------------------------------

FRAGMENTS = [
    b"GET / HTTP/1.1\r\n", b"POST /v1/chat/completions HTTP/1.1\r\n", b"POST / HTTP/1.0\r\n", b"OPTIONS * HTTP/1.1\r\n",
    b"Host: gw.test\r\n", b"Host: [::1]:80\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"content-length:3 \r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: CHUNKED\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\n",
    b"Connection: keep-alive, upgrade\r\n", b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n",
    b"Keep-Alive: timeout=5\r\n", b"TE: trailers\r\n", b"Trailer: X\r\n", b"X:\r\n", b"X: \xff\t y \r\n",
    b"Proxy-Connection: close\r\n", b"x-y: \"a, b\"\r\n", b"\r\n", b"hello", b"5\r\nhello\r\n",
    b"5;a=b\r\nhello\r\n", b'5;a="b"\r\nhello\r\n', b"0\r\n", b"00\r\n",
    b"0\r\n\r\n", b"A;b;c=d\r\n0123456789\r\n", b"\n", b"\r", b" ", b":", b"0", b"GET http://gw.test HTTP/1.1\r\n",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=14))
def test_engines_agree_on_fragments(fragments: list[bytes]) -> None:
    data = b"".join(fragments)
    assert verdict([data], ENGINES["httptools"]) == verdict([data], ENGINES["h11"])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([post(), *(case.data for case in CASES if len(case.data) < 600)]), st.data())
def test_engines_agree_on_mutations(base: bytes, draw: st.DataObject) -> None:
    data = bytearray(base)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(data) - 1))
        what = draw.draw(st.integers(0, 2))
        if what == 0:
            data[at] = draw.draw(st.integers(0, 255))
        elif what == 1 and len(data) > 1:
            del data[at]
        else:
            data[at:at] = draw.draw(st.sampled_from([b"\r\n", *(bytes([c]) for c in b"\n\r \t;,0\x00\xff:")]))
    raw = bytes(data)
    assert verdict([raw], ENGINES["httptools"]) == verdict([raw], ENGINES["h11"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.sampled_from([b"", b";a", b';a="b"', b";a=b"])), max_size=8))
def test_chunks_carry_their_content(chunks: list[tuple[bytes, bytes]]) -> None:
    raw = b"".join(b"%x%b\r\n%b\r\n" % (len(data), extension, data) for data, extension in chunks)
    request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + raw + b"0\r\nX: y\r\n\r\nGET"
    for make in ENGINES.values():
        slug, _, content, rest = verdict([request], make)
        assert (slug, content, rest) == ("ok", b"".join(data for data, _ in chunks), b"GET")
