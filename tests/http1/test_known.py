"""The short ways decide nothing of their own: what they take, the full check takes, and reads the same."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawproxy.errors import ClawError
from clawproxy.http1.engine import EngineFactory, select
from clawproxy.http1.head import Head
from clawproxy.http1.headcheck import AT_ONCE, HeadCollector, parse_head
from clawproxy.http1.known import LARGEST, KnownHead

ENGINES = [select("httptools"), select("h11")]
FIRST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gw.test\r\nAuthorization: Bearer K\r\nX-A: 12, 2\r\n"
SDK = (
    FIRST
    + b"Accept: */*\r\nConnection: keep-alive\r\nX-Stainless-Read-Timeout: 600\r\ncontent-LENGTH:  12 \t\r\nX-B: \xff\r\n\r\n"
)
SHORT = FIRST + b"Content-Length: 2\r\n\r\n"
TRACED = FIRST + b"X-Request-ID: run-1:model:2\r\nContent-Length: 2\r\ntraceparent: 00-0af7-b7ad-01\r\n\r\n"
HEADS = [
    SDK,
    SHORT,
    TRACED,
    TRACED.replace(b"traceparent:", b"x-request-id:"),
    SHORT.replace(b"X-A:", b"Connection:"),
    b"POST / HTTP/1.1\r\nContent-Length:7\r\nHost:a\r\n\r\n",
]
EDITS = [
    b"",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"0",
    b"1",
    b"99",
    b"+1",
    b"-",
    b"_",
    b"1e3",
    b"\x00",
    b"\xff",
    b"/",
    b"x: y\r\n",
]
LENGTHS = [
    b"1",
    b"0",
    b"00",
    b"012",
    b"12",
    b"120",
    b"65536",
    b"999999999999999",
    b"9223372036854775808",
    b"1 1",
    b"1,1",
    b"+2",
    b"",
    b" 5",
]


def read(data: bytes, make: EngineFactory, cut: int = 0) -> tuple[Head, bytes] | str:
    """What the full check makes of the first head in `data`, and what comes after it; fed in two where `cut` says so."""
    collector = HeadCollector(16 * 1024)
    try:
        raw = collector.feed(data[:cut]) if cut else None
        if raw is None:
            raw = collector.feed(data[cut:])
            rest = collector.rest
        else:
            rest = collector.rest + data[cut:]
        return "more" if raw is None else (parse_head(raw, make()), rest)
    except ClawError as error:
        return error.slug


def known(raw: bytes) -> KnownHead:
    made = KnownHead.of(raw, parse_head(raw, select("h11")()))
    assert made is not None
    return made


@st.composite
def edited(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A head, and the head of a next request: the same, or with another length, or changed anywhere."""
    raw = draw(st.sampled_from(HEADS))
    data = raw
    if draw(st.booleans()):
        number = b"12" if raw is SDK else b"7" if raw is HEADS[-1] else b"2"
        at = raw.index(number, raw.lower().index(b"content-length:"))
        data = raw[:at] + draw(st.sampled_from(LENGTHS)) + raw[at + len(number) :]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(EDITS)) + data[at + draw(st.integers(0, 3)) :]
    return raw, data + draw(st.sampled_from([b"", b"{}", b"\r\n\r\n", b"5", b"GET / HTTP/1.1\r\n\r\n"]))


@settings(max_examples=1500, deadline=None)
@given(edited())
@example((SHORT, SHORT))
def test_a_head_is_known_only_where_the_full_check_reads_the_same(pair: tuple[bytes, bytes]) -> None:
    raw, data = pair
    each = known(raw)
    end = each.recognise(data)
    if end:
        assert [read(data, make) for make in ENGINES] == [(each.head, data[end:])] * 2
    # And whatever was recognised in between, the first head is recognised again.
    assert known(raw).recognise(raw) == each.recognise(raw) == len(raw)
    assert each.head == parse_head(raw, ENGINES[0]())


def test_a_head_with_another_id_is_known() -> None:
    each = known(TRACED)
    assert (each.recognise(TRACED), each.varied) == (len(TRACED), False)
    other = TRACED.replace(b"run-1:model:2", b"run-1:model:17").replace(b"0af7", b"1111").replace(b": 2\r", b": 31\r")
    assert (each.recognise(other + b"body"), each.varied) == (len(other), True)
    assert each.head == parse_head(other, ENGINES[0]())
    assert (each.recognise(other), each.varied) == (len(other), False)
    for wrong in (b"run 1", b"", b"\xff", b"x" * 129, b"a\r\nb: c"):
        assert each.recognise(TRACED.replace(b"run-1:model:2", wrong)) == 0
    twice = TRACED.replace(b"traceparent:", b"x-request-id:")
    assert known(twice).recognise(twice.replace(b"run-1", b"run-2")) == 0


@pytest.mark.parametrize("raw", HEADS)
@pytest.mark.parametrize("length", [b"1", b"2", b"31", b"65536", b"999999999999999"])
def test_another_length_is_known(raw: bytes, length: bytes) -> None:
    """The short way is taken where it can be: else the tests above would say nothing."""
    each = known(raw)
    old = b"%d" % (each.head.content_length or 0)
    at = raw.rindex(old)
    data = raw[:at] + length + raw[at + len(old) :]
    assert each.recognise(data + b"body") == len(data)
    assert each.head.content_length == int(length)
    assert each.head.get("content-length") == length.decode()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nX: " + b"x" * LARGEST + b"\r\n\r\n",
    ],
)
def test_other_heads_are_not_kept(raw: bytes) -> None:
    assert KnownHead.of(raw, parse_head(raw, select("h11")())) is None


@settings(max_examples=1500, deadline=None)
@given(edited(), st.integers(1, 40))
def test_a_whole_head_at_once_is_checked_as_one_in_pieces(pair: tuple[bytes, bytes], cut: int) -> None:
    data = pair[1]
    assert read(data, ENGINES[0]) == read(data, ENGINES[0], cut) == read(data, ENGINES[1])


@settings(max_examples=1500, deadline=None)
@given(edited(), st.integers(20, 400))
def test_what_the_one_pattern_takes_the_search_for_faults_takes(pair: tuple[bytes, bytes], limit: int) -> None:
    collector = HeadCollector(limit)
    try:
        raw = collector.feed(pair[1])
    except ClawError:
        assert collector.match is None
        return
    if collector.match is not None:
        assert raw == collector.match[0]
        assert AT_ONCE.search(pair[1], 0, len(raw)) is None
        assert len(raw) <= limit
        assert raw.index(b"\r\n\r\n") == len(raw) - 4
        assert raw + collector.rest == pair[1]
