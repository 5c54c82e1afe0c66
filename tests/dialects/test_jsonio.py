"""Strict JSON: the J rows of the threat catalogue, by their ids, and that what is decoded can be encoded."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, jsonio
from clawproxy.errors import ClawError
from clawproxy.testing.factories import make_head

MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


def refused(data: bytes, **options: int) -> ClawError:
    with pytest.raises(ClawError) as caught:
        jsonio.decode(data, **options)
    assert caught.value.status in (400, 413)
    return caught.value


def request(body: bytes) -> Any:
    return CLIENT["openai_chat"].decode_request(body, {}, make_head())


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 65 + b"]" * 65,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'["\\\\",' + b"[" * 64 + b"]" * 64 + b"]",
        b'["\\"",' + b"[" * 64 + b"]" * 64 + b"]",
        b'{"messages":[{"role":"user","content":' + b"[" * 65 + b"]" * 65 + b"}]}",
    ],
)
def test_j01_nesting_is_refused_before_the_parser(data: bytes) -> None:
    assert refused(data).slug == "json_too_deep"


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 64 + b"]" * 64,
        json.dumps(["[" * 1000, "{" * 1000, '"[[\\', "\\" * 7 + "["] + [[]] * 200).encode(),
        json.dumps({'"' + "[" * 70: "\\" + "{" * 70}).encode(),
    ],
)
def test_j01_brackets_in_strings_are_not_nesting(data: bytes) -> None:
    assert jsonio.decode(data) == json.loads(data)


def test_j01_the_limit_is_the_callers() -> None:
    assert jsonio.decode(b"[[[]]]", depth=3) == [[[]]]
    assert refused(b"[[[]]]", depth=2).slug == "json_too_deep"
    assert "2 levels" in refused(b"[[[]]]", depth=2).message


@pytest.mark.parametrize(
    "digits", [b"9" * 5000, b"-" + b"9" * 5000, b"9" * 4000, b"18446744073709551616", b"-9223372036854775809"]
)
def test_j02_huge_integers(digits: bytes) -> None:
    assert refused(b'{"max_tokens":' + digits + b"}").slug == "invalid_json"


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"0.12345678901234567890123", 0.12345678901234568),
        (b'"99999999999999999999999"', "9" * 23),
        (b"1e300", 1e300),
    ],
)
def test_j02_integers_that_fit(data: bytes, value: object) -> None:
    assert jsonio.decode(data) == value
    assert jsonio.decode(jsonio.encode(value)) == value


@pytest.mark.parametrize("value", [b"-1", b"0", b"1e18", b"1000000000000000000", b"1.5", b"true", b'"5"', b"null", b"1e400"])
@pytest.mark.parametrize("name", [b"max_tokens", b"max_completion_tokens"])
def test_j03_max_tokens_is_a_positive_bounded_integer(name: bytes, value: bytes) -> None:
    with pytest.raises(ClawError) as caught:
        request(b'{"model":"m",' + MESSAGES + b',"' + name + b'":' + value + b"}")
    assert caught.value.status == 400
    assert caught.value.slug == "invalid_json" or caught.value.details.param == name.decode()


def test_j04_of_duplicate_keys_the_last_counts() -> None:
    body = b'{"model":"cheap","model":"costly","stream":false,"stream":true,"messages":[],' + MESSAGES + b"}"
    decoded = request(body)
    assert (decoded.model, decoded.stream, decoded.messages[0].content) == ("costly", True, "hi")


@pytest.mark.parametrize("text", [b"\\ud800", b"\\udc00", b"\\ud800x", b"\\ud800\\ud800", b"\xed\xa0\x80", b"a\\udfff"])
def test_j05_lone_surrogates(text: bytes) -> None:
    assert refused(b'{"content":"' + text + b'"}').slug == "invalid_json"


def test_j05_pairs_are_one_character() -> None:
    assert jsonio.decode(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize(
    "data",
    [
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"[1,]",
        b'{"a":1,}',
        b"/* */1",
        b"// x\n1",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-32"),
        b"'a'",
        b"{a:1}",
        b"01",
        b"+1",
        b".5",
        b"",
        b" ",
        b"{}{}",
        b'"\x00"',
        b'"\n"',
        b'"\\x"',
    ],
)
def test_j06_only_rfc_8259(data: bytes) -> None:
    assert refused(data).slug == "invalid_json"


@pytest.mark.parametrize(
    "data", [b'"\xff"', b'"\xc0\xaf"', b'{"\xff":1}', b'"\xf5\x80\x80\x80"', b'{"\\u0000":1}', b'[{"a":[{"b\\u0000c":1}]}]']
)
def test_j07_bytes_that_are_no_text(data: bytes) -> None:
    assert refused(data).slug == "invalid_json"


def test_j07_nul_in_a_value_is_a_character() -> None:
    assert jsonio.decode(b'{"a":"\\u0000"}') == {"a": "\0"}


@pytest.mark.timed
@pytest.mark.parametrize(
    "data",
    [
        b"{" + b",".join(b'"%d":1' % n for n in range(200_000)) + b"}",
        b"[" + b"1," * 999_999 + b"1]",
        b"[" + b"[]," * 100_000 + b"[]]",
        b'{"model":"m","messages":[' + b",".join([b'{"role":"user","content":"x"}'] * 100_000) + b"]}",
        b"[" + b'"",' * 2_000_000 + b'""]',
    ],
    ids=["keys", "array", "arrays", "messages", "strings"],
)
def test_j08_too_many_values_are_refused_fast(data: bytes) -> None:
    begin = time.thread_time()
    assert refused(data).slug == "invalid_request"
    assert time.thread_time() - begin < 0.1


def test_j08_messages_have_a_limit_of_their_own() -> None:
    body = b'{"model":"m","messages":[' + b",".join([b'{"role":"user","content":"x"}'] * 11) + b"]}"
    with pytest.raises(ClawError, match="at most 10 items") as caught:
        CLIENT["openai_chat"].decode_request(body, {"messages": 10}, make_head())
    assert caught.value.details.param == "messages"


def test_j10_a_long_string_is_accepted() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"x[" * 1_000_000 + b'"}]}'
    begin = time.thread_time()
    assert len(request(body).messages[0].content) == 2_000_000
    assert time.thread_time() - begin < 0.1


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b'{\n "a": 1,\n "b" 2\n}', "line 3, column 6 (byte 16)"),
        (b'{"a":\xff}', "line 1, column 6 (byte 5)"),
        (b'{\n"a":"\xff"}', "line 2, column 6 (byte 7)"),
    ],
)
def test_an_error_says_where_and_not_what(data: bytes, place: str) -> None:
    assert place in refused(data).message


def test_errors_hold_nothing_of_the_body() -> None:
    for data in (b'{"a":"sk-canary\xff"}', b'{"a":sk-canary}', b'{"a":"sk-canary\\x"}'):
        error = refused(data)
        assert "canary" not in f"{error!r} {error.message} {error.__cause__!r}"
        assert error.__suppress_context__


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
NUMBER = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT, lambda inner: st.lists(inner) | st.dictionaries(KEY, inner), max_leaves=40
)


@settings(deadline=None)
@given(JSON)
def test_encode_and_decode_are_inverse(value: Any) -> None:
    data = jsonio.encode(value)
    assert b"\n" not in data
    assert b"\r" not in data
    assert jsonio.decode(data) == value
    assert jsonio.decode(json.dumps(value).encode()) == value


@settings(deadline=None)
@given(st.text('[]{}",:\\1ea ', max_size=60), st.integers(0, 4))
def test_the_scan_agrees_with_a_parser_that_counts(text: str, depth: int) -> None:
    """Valid JSON is refused exactly if it is deeper than allowed; anything else is an error of either kind."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError):
        refused(text.encode(), depth=depth)
        return
    if _depth(value) > depth:
        assert refused(text.encode(), depth=depth).slug == "json_too_deep"
    else:
        assert jsonio.decode(text.encode(), depth=depth) == value


@given(st.text('[]{}",:\\19 ', max_size=80), st.integers(0, 6), st.integers(0, 80))
def test_what_is_small_need_not_be_measured(text: str, depth: int, values: int) -> None:
    if jsonio._is_small(text.encode(), depth, values):
        jsonio._measure(text.encode(), depth, values)
    assert not jsonio._is_small(b"1" * 19, depth, 100)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


@given(st.text('a"\\[,}', max_size=40))
def test_what_stands_between_strings_is_found_either_way(text: str) -> None:
    data = text.encode()
    assert b"".join(jsonio._between(data)) == b"".join(data.split(b'"')[::2])
