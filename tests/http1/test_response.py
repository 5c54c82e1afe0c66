"""What is written to clients: fixed phrases, checked values, escaped names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.errors import KINDS
from clawproxy.http1 import response


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "\x00", "\x1b[2J", "\x7f", "é", "\u2028"])
def test_a_value_that_could_split_a_response_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="not visible ASCII"):
        response.whole(200, [("x-a", value)], b"")
    with pytest.raises(ValueError, match="not visible ASCII"):
        response.stream_head([("x-a", value)], content_type="text/event-stream", chunked=True, close=False)


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "é\u2028\x00", "a b", "\ud800", "x" * 500, "%0d"])
def test_any_name_can_be_escaped_into_a_header(value: str) -> None:
    text = response.escaped(value)
    assert len(text) <= 128
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert response.escaped("gpt-4o_mini:free/x@1") == "gpt-4o_mini:free/x@1"


NAMES = st.one_of(st.text(max_size=140), st.text("abc/-", min_size=60, max_size=130), st.sampled_from(["", "mock", "a\r\nb: c"]))


@given(NAMES, NAMES)
def test_a_pair_of_names_is_escaped_as_each_of_them(first: str, second: str) -> None:
    assert response.pair(first, second) == f"{response.escaped(first)}/{response.escaped(second)}"


def test_lines_come_before_the_other_fields() -> None:
    for text in (
        response.whole(200, [("b", "2")], b"", lines="a: 1\r\n"),
        response.stream_head([("b", "2")], lines="a: 1\r\n", content_type="c/d", chunked=True, close=False),
    ):
        assert b" GMT\r\na: 1\r\nb: 2\r\n" in text


def test_every_row_of_the_table_has_a_phrase() -> None:
    for kind in KINDS.values():
        if kind.status != 499:  # in logs only
            assert response.whole(kind.status, (), b"").startswith(b"HTTP/1.1 %d " % kind.status)


def test_framing() -> None:
    assert response.whole(200, [("a", "b")], b"xyz", content_type="t/u").endswith(
        b"a: b\r\ncontent-type: t/u\r\ncontent-length: 3\r\n\r\nxyz"
    )
    assert response.whole(200, (), b"xyz", no_body=True).endswith(b"content-length: 3\r\n\r\n")
    assert b"content-length" not in response.whole(204, (), b"")
    assert response.whole(400, (), b"", close=True).endswith(b"connection: close\r\n\r\n")
    assert response.chunk(b"0123456789abcdef!") == b"11\r\n0123456789abcdef!\r\n"
    assert b"transfer-encoding" not in response.stream_head((), content_type="a/b", chunked=False, close=True)
