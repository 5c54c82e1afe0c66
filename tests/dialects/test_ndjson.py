"""Lines, however they arrive."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.dialects.ndjson import NDJSONDecoder, TooLarge
from tests.dialects.native import cuts


def read(pieces: list[bytes], limit: int = 1000) -> tuple[list[bytes], bytes, bool]:
    """The lines, what was left, and whether one was too long."""
    decoder = NDJSONDecoder(limit)
    lines: list[bytes] = []
    for piece in pieces:
        try:
            lines += decoder.feed(piece)
        except TooLarge as error:
            return lines + error.lines, b"", True
    return lines, decoder.close(), False


@pytest.mark.parametrize(
    ("data", "lines", "left"),
    [
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}'], b""),
        (b'{"a":1}\r\n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}'], b""),
        (b'{"a":1}\n{"b":2}', [b'{"a":1}'], b'{"b":2}'),
        (b'{"a":1}\n{"b":2}\r', [b'{"a":1}'], b'{"b":2}'),
        (b'\n\r\n{"a":"\xe2\x80\xa8"}\n\n', [b'{"a":"\xe2\x80\xa8"}'], b""),
        (b"", [], b""),
        (b"\n", [], b""),
    ],
)
def test_lines(data: bytes, lines: list[bytes], left: bytes) -> None:
    for pieces in cuts(data):
        assert read(pieces) == (lines, left, False)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"123\n12345\n1\n", [b"123"]),
        (b"1\n2\n12345", [b"1", b"2"]),
        (b"12345", []),
        (b"1234\r\n", []),  # with its CR it is five
    ],
)
def test_a_line_that_is_too_long(data: bytes, lines: list[bytes]) -> None:
    for pieces in cuts(data):
        assert read(pieces, 4) == (lines, b"", True)


def test_the_longest_line_is_read() -> None:
    assert read([b"1234\n123\r\n"], 4) == ([b"1234", b"123"], b"", False)


@given(
    st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\r", b" ", b"d" * 9])),
    st.lists(st.integers(0, 40)),
    st.integers(1, 20),
)
def test_any_cut_gives_the_same(tokens: list[bytes], places: list[int], limit: int) -> None:
    data = b"".join(tokens)
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert read(pieces, limit) == read([data], limit)
