"""Server-sent events, against a slow reader written straight from the WHATWG text, however the bytes are cut."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects.sse import MAX_EVENT, ServerEvent, SSEDecoder, TooLarge, encode_event

Said = tuple[bytes, bytes]
"""(event name, data)"""


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes whole, one by one, and cut in two and three anywhere."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]
        yield [data[:at], data[at : at + 1], data[at + 1 :]]


def read(pieces: list[bytes], limit: int = MAX_EVENT) -> list[ServerEvent]:
    decoder = SSEDecoder(limit)
    return [event for piece in pieces for event in decoder.feed(piece)]


def said(events: list[ServerEvent]) -> list[Said]:
    return [(event.name, event.data) for event in events if event.data is not None]


def reference(stream: bytes) -> list[Said]:
    """WHATWG HTML 9.2.6, line by line."""
    if stream.startswith(b"\xef\xbb\xbf"):
        stream = stream[3:]
    lines, line, at = [], b"", 0
    while at < len(stream):
        byte = stream[at : at + 1]
        at += 1
        if byte not in (b"\r", b"\n"):
            line += byte
            continue
        if byte == b"\r" and stream[at : at + 1] == b"\n":
            at += 1
        lines.append(line)
        line = b""
    events: list[Said] = []
    data, name = b"", b""
    for line in lines:
        if line == b"":
            if data:
                events.append((name, data.removesuffix(b"\n")))
            data, name = b"", b""
        elif not line.startswith(b":"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                name = value
            elif field == b"data":
                data += value + b"\n"
    return [event for event in events if event[1]]


CASES = {
    "one": b'data: {"a":1}\n\n',
    "two in a read": b"data: 1\n\ndata: 2\n\n",
    "crlf": b"data: 1\r\n\r\ndata: 2\r\n\r\n",
    "cr": b"data: 1\r\rdata: 2\r\r",
    "mixed ends": b"data: 1\r\n\ndata: 2\n\r\ndata: 3\r\n\rdata: 4\r\r\n",
    "no space": b"data:1\n\n",
    "two spaces": b"data:  1\n\n",
    "lines": b"data: 1\ndata: 2\ndata\ndata: 3\n\n",
    "named": b"event: error\ndata: 1\n\n",
    "the name after": b"data: 1\nevent: late\n\n",
    "comment": b": OPENROUTER PROCESSING\n\ndata: 1\n\n",
    "comment inside": b": note\ndata: 1\n\n",
    "id and retry": b"id: 7\nretry: 10\ndata: 1\n\n",
    "unknown field": b"color: red\ndata: 1\n\n",
    "bom": b"\xef\xbb\xbfdata: 1\n\n",
    "bom later": b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n",
    "empty data": b"data: \n\ndata:\n\ndata\n\ndata: 1\n\n",
    "many blank lines": b"\n\n\n\ndata: 1\n\n\n\n\ndata: 2\n\n\n",
    "unfinished": b"data: 1\n\ndata: 2\n",
    "not line ends": "data: a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\n\n".encode(),
    "utf-8": "data: \u00e9\u4e2d\U0001f600\n\n".encode(),
    "lone event": b"event: ping\n\ndata: 1\n\n",
    "id with nul": b"id: a\0b\ndata: 1\n\n",
}


@pytest.mark.parametrize("name", CASES)
def test_cases_cut_anywhere(name: str) -> None:
    stream = CASES[name]
    right = reference(stream)
    for pieces in cuts(stream):
        assert said(read(pieces)) == right, pieces


FRAGMENTS = st.sampled_from(
    [b"data: ", b"data:", b"data", b"event: x", b"id: 3", b": c", b"\n", b"\n", b"\n\n", b"\r\n", b"\r", b"\r\n\r\n", b" ",
     b"a", b"{}", b":", b"\xef\xbb\xbf", b"\xc3\xa9", b"\xff", b"\0", b"\xe2\x80\xa8"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(FRAGMENTS, max_size=30).map(b"".join), st.randoms(use_true_random=False))
def test_any_stream_reads_as_the_reference_does(stream: bytes, dice: random.Random) -> None:
    pieces = []
    at = 0
    while at < len(stream):
        size = dice.choice((1, 1, 2, 3, 5, 8, 100))
        pieces.append(stream[at : at + size])
        at += size
    assert said(read([stream])) == said(read(pieces)) == reference(stream)


@settings(deadline=None)
@given(st.lists(FRAGMENTS, max_size=30).map(b"".join))
def test_what_is_passed_on_reads_the_same(stream: bytes) -> None:
    """The `wire` bytes of all events, one after the other, are the same events to the next reader, and hold nothing else."""
    events = read([b"\n", stream])
    passed = b"".join(event.wire for event in events)
    assert b"\r" not in passed
    assert said(read([b"\n", passed])) == said(events)
    for line in passed.split(b"\n"):
        assert line == b"" or line.partition(b":")[0] in (b"data", b"event")


def test_the_common_case_keeps_its_bytes() -> None:
    stream = b'data: {"a":1}\n\n'
    decoder = SSEDecoder()
    decoder.feed(stream)
    assert decoder.feed(stream) == [ServerEvent(b'{"a":1}', stream)]
    assert decoder.feed(stream)[0].wire is stream


def test_a_block_without_data_is_told_of_but_not_passed_on() -> None:
    assert read([b": hello\n\n", b"event: ping\nid: 4\n\n"]) == [
        ServerEvent(None, b""),
        ServerEvent(None, b"", b"ping", b"4"),
    ]


@pytest.mark.parametrize(
    "stream", [b"data: " + b"x" * 100, b"data: " + b"x" * 100 + b"\n\n", b"data: 1\n\ndata: " + b"x" * 100 + b"\n\n"]
)
def test_an_event_beyond_the_limit_is_refused(stream: bytes) -> None:
    for pieces in ([stream], [stream[:5], stream[5:]], [stream[at : at + 1] for at in range(len(stream))]):
        with pytest.raises(TooLarge):
            read(pieces, limit=100)


def test_a_megabyte_line_passes() -> None:
    data = b"x" * 1_048_576
    assert said(read([b"data: ", data, b"\n\n"])) == [(b"", data)]


def test_a_dripped_event_costs_no_more_than_its_bytes() -> None:
    decoder = SSEDecoder()
    begin = time.thread_time()
    for _ in range(100_000):
        decoder.feed(b"x")
    assert time.thread_time() - begin < 1.0
    assert decoder.feed(b"\r\r") != []


def test_close_gives_what_no_blank_line_ended() -> None:
    decoder = SSEDecoder()
    decoder.feed(b"data: 1\n\ndata: [DONE]\n")
    assert decoder.close() == b"data: [DONE]\n"
    assert decoder.close() == b""


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1).filter(lambda data: b"\r" not in data and data != b"\n" * len(data)), min_size=1))
def test_encode_and_decode_are_inverse(datas: list[bytes]) -> None:
    stream = b"\n" + b"".join(encode_event(data, b"e") for data in datas)
    assert said(read([stream])) == [(b"e", data) for data in datas]
