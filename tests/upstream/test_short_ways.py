"""The short ways say what the long ways say: for heads of answers, and for heads of requests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clawproxy.config import SecretRef
from clawproxy.dialects.base import OutboundRequest
from clawproxy.errors import ClawError
from clawproxy.secrets import Secret
from clawproxy.upstream import response_parser
from clawproxy.upstream.request import RequestEncoder
from clawproxy.upstream.response_parser import BadAnswer, Engine, H11Engine, HttptoolsEngine, ResponseParser
from clawproxy.upstream.url import parse_base_url

Said = tuple[Any, ...]


def outcome(parser: ResponseParser, pieces: list[bytes]) -> Said:
    """All that a connection could learn of it."""
    body, bad = b"", None
    for piece in pieces:
        try:
            body += parser.feed(piece)
        except BadAnswer as error:
            body += error.body
            bad = str(error)
            break
    head = parser.head
    known = None if head is None else (head.status, head.fields, head.framing, head.length, head.keep_alive)
    return known, body, bad, parser.complete and bad is None, parser.reusable and bad is None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in pairwise(edges)]


def at_once_and_long(answer: bytes, places: list[int], engine: Callable[[], Engine]) -> tuple[Said, Said, bool]:
    """The answer with its head in one read, and the same with its first byte apart, which is the long way. Body cuts are the
    same. Third: whether the first took the short way."""
    end = answer.find(b"\r\n\r\n") + 4
    split = [place for place in cut(answer, places) if place] if end < 4 else cut(answer[end:], places)
    first = b"" if end < 4 else answer[:end]
    pieces = [first + split[0], *split[1:]] if split else [first]
    short, long = ResponseParser(engine), ResponseParser(engine)
    said = outcome(short, pieces)
    return said, outcome(long, [pieces[0][:1], pieces[0][1:], *pieces[1:]]), bool(response_parser._PLAIN.match(pieces[0]))


def same(short: Said, long: Said, engine: Callable[[], Engine]) -> bool:
    """llhttp overlooks empty lines after an answer; counting, as h11, does not, and gives the connection up."""
    return short[:-1] == long[:-1] and (short[-1] == long[-1] or (engine is HttptoolsEngine and not short[-1]))


NAMES = ["content-length", "Transfer-Encoding", "CONNECTION", "content-encoding", "Content-Type", "x-a", "t", "c", "date", "te"]
NAMES += ["Content-Length-X", "transfer-encodin", "set-cookie", "proxy-connection", "upgrade", "trailer", "keep-alive", ""]
VALUES = [
    "chunked",
    "Chunked",
    "5",
    "0",
    "05",
    "12",
    "5 ",
    "+5",
    "5, 5",
    "gzip",
    "identity",
    "keep-alive",
    "Keep-Alive",
    "close",
    "",
]
VALUES += ["a: b", "\t5", "\xe9", "x\x00", "y\nz", "y\rz", "gzip, chunked", "chunked ", " chunked", "keep-alive, upgrade", "h2c"]

field = st.builds(
    lambda name, colon, value, end: f"{name}{colon}{value}{end}".encode("latin-1"),
    st.sampled_from(NAMES),
    st.sampled_from([": ", ":", ":  ", " : ", ":\t"]) | st.just(": "),
    st.sampled_from(VALUES),
    st.just("\r\n") | st.sampled_from(["\r\n", " \r\n", "\n", "\r\n x\r\n"]),
)
framing = st.sampled_from(
    [
        b"content-length: 5\r\n",
        b"Content-Length:12\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding:Chunked\r\n",
        b"",
    ]
)
plain_field = st.sampled_from(
    [
        *(
            b"Content-Type: text/event-stream; charset=utf-8\r\n",
            b"Connection: keep-alive\r\n",
            b"cf-ray: 1-FRA\r\n",
            b"x-a:\r\n",
        ),
        *(b"Date: Fri, 21 Nov 2025 23:09:41 GMT\r\n", b"transfer-x: 1\r\n", b"t: \xff\r\n", b"content-lengt: 9\r\n"),
        *(b"proxy-connection: close\r\n", b"upgrade: h2c\r\n", b"trailer: x\r\n", b"keep-alive: timeout=5\r\n"),
    ]
)
status_line = st.just(b"HTTP/1.1 200 OK\r\n") | st.sampled_from(
    [
        b"HTTP/1.1 200\r\n",
        b"HTTP/1.1 200 \r\n",
        b"HTTP/1.1 200 a: b\r\n",
        b"HTTP/1.1 200 \xe9\t\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 204 No\r\n",
        b"HTTP/1.1 500 a:b\r\n",
        b"HTTP/1.1 2000 OK\r\n",
        b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\n",
    ]
)
body = st.sampled_from(
    [
        *(b"hello", b"hello world!", b"", b"he", b"hello\r\n", b"helloHTTP/1.1 200 OK\r\n\r\n"),
        b"5\r\nhello\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n7\r\n world!\r\n0\r\n\r\nx",
        b"5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n",
        b"5\r\nhelloX",
        b"zz\r\n",
        b"f" * 17 + b"\r\n",
    ]
)
many_plain = st.lists(plain_field, max_size=4).map(b"".join)
fields = st.lists(field, max_size=3).map(b"".join)
head = st.tuples(status_line, many_plain, framing, many_plain, st.just(b"") | fields).map(b"".join)
answers = st.builds(lambda head, body: head + b"\r\n" + body, head, body)
places = st.lists(st.integers(0, 200), max_size=4)


@pytest.mark.parametrize("engine", [HttptoolsEngine, H11Engine])
@given(answer=answers, places=places, spoil=st.none() | st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=1)))
def test_an_answers_head(engine: Callable[[], Engine], answer: bytes, places: list[int], spoil: tuple[int, bytes] | None) -> None:
    if spoil is not None:
        at = spoil[0] % len(answer)
        answer = answer[:at] + spoil[1] + answer[at + 1 :]
    short, long, _ = at_once_and_long(answer, places, engine)
    assert same(short, long, engine)


@pytest.mark.parametrize("engine", [HttptoolsEngine, H11Engine])
@given(fields=many_plain, more=many_plain, kind=framing.filter(bool), body=body, places=places)
def test_plain_heads_do_take_the_short_way(
    engine: Callable[[], Engine], fields: bytes, more: bytes, kind: bytes, body: bytes, places: list[int]
) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + fields + kind + more + b"\r\n" + body
    short, long, was_short = at_once_and_long(answer, places, engine)
    assert was_short
    assert same(short, long, engine)


# --- requests --------------------------------------------------------------------------------------------------------------

URL = parse_base_url("https://api.test/v1")
REF = SecretRef("", "unused")
pairs = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "Accept", "x-a", "x-request-id", "X-Request-ID", "host", "authorization", "a b", ""]),
        st.sampled_from(["application/json", "0192d5a0-1234-7abc-8def-000000000001", "a\r\nb: c", "", "é", " x", "x y"]),
    ),
    max_size=4,
).map(tuple)


def encoded(encoder: RequestEncoder, outbound: OutboundRequest) -> Any:
    """What the bytes say, or why there are none. The order of the lines means nothing, but for the first two."""
    try:
        head, _, body = encoder.encode(outbound, Secret("sk-1")).partition(b"\r\n\r\n")
    except (ValueError, ClawError) as error:
        return type(error), str(error)
    line, host, *fields = head.split(b"\r\n")
    return line, host, sorted(fields), body


@given(
    headers=pairs,
    last=st.sampled_from(["0192d5a0-1234-7abc-8def-000000000002", "", "a\r\nb: c", "x\x7f", "é", " x"]) | st.text(max_size=3),
    operator=st.sampled_from([{}, {"X-Request-Id": "ours"}, {"x-b": "c"}]),
    auth=st.sampled_from(["authorization", "x-api-key", "x-request-id", ""]),
)
@example(headers=(("x-request-id", "a"), ("accept", "b")), last="c", operator={}, auth="authorization")
@example(headers=(), last="c", operator={}, auth="authorization")
def test_a_requests_head(headers: tuple[tuple[str, str], ...], last: str, operator: dict[str, str], auth: str) -> None:
    outbound = OutboundRequest("/say", b"hi", (*headers, ("x-request-id", last)))
    short, long = RequestEncoder(URL, operator, auth, None), RequestEncoder(URL, operator, auth, None)
    long._takes_id = False
    assert encoded(short, outbound) == encoded(long, outbound)
