"""The short ways of the dialect, held to the long ones: the same result, or no result."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_chat.client_plain import decode_plain
from clawproxy.dialects.openai_chat.client_request import decode_any
from clawproxy.errors import ClawError

USER = {"role": "user", "content": "hi"}
PLAIN: dict[str, Any] = {"model": "m", "messages": [{"role": "system", "content": "s"}, USER]}

ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 1.0, 0.5, -0.0, 2.5, 1e30, 2**63, 2**63 - 1, -(2**63), 2**64, 10_000_000, 10_000_001,
     "", "x", "é\U0001f600", "\0", "\x1f", "user", [], ["x"], {}, {"a": 1}, [[[[]]]]]
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": st.text(max_size=5)},
        optional={"name": ODD, "extra": ODD, "tool_calls": ODD},
    )
    | st.fixed_dictionaries({}, optional={"role": ODD, "content": ODD}),
    max_size=3,
)
DOCUMENTS = st.fixed_dictionaries(
    {"model": st.just("m") | ODD, "messages": MESSAGES | ODD},
    optional={
        "stream": st.booleans() | ODD,
        "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans() | ODD, "more": ODD}) | ODD,
        "max_tokens": st.integers(1, 100) | ODD,
        "temperature": st.floats(0, 2) | ODD,
        "top_p": st.floats(0, 1) | ODD,
        "seed": st.integers(-(2**63), 2**63 - 1) | ODD,
        "n": ODD,
        "api_base": ODD,
    },
)
DUPLICATES = st.lists(
    st.tuples(st.sampled_from(["model", "max_tokens", "temperature", "seed", "stream", "new"]), ODD), max_size=2
)


def same_or_nothing(body: bytes, limits: dict[str, int]) -> None:
    short = decode_plain(body, limits)
    if short is not None:
        # `repr` as well, for 1 == 1.0 == True.
        assert repr(short) == repr(decode_any(body, limits))
        assert short == decode_any(body, limits)


@settings(max_examples=1000)
@given(DOCUMENTS, DUPLICATES, st.booleans(), st.sampled_from([{}, {"messages": 1}, {"json_depth": 2}, {"json_depth": 3}]))
@example({**PLAIN, "max_tokens": 1}, [("max_tokens", None)], False, {})
def test_a_plain_request_reads_the_same(
    document: dict[str, Any], twice: list[tuple[str, Any]], escaped: bool, limits: dict[str, int]
) -> None:
    text = json.dumps(document, ensure_ascii=escaped)
    for name, value in twice:  # of duplicate keys the last counts
        text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(value)}}}"
    same_or_nothing(text.encode(), limits)


@settings(max_examples=500)
@given(st.data())
def test_whatever_the_bytes_it_reads_the_same(data: st.DataObject) -> None:
    body = bytearray(json.dumps({**PLAIN, "temperature": 0.7, "max_tokens": 256, "stream": False}).encode())
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(body)))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from(
                [
                    b"",
                    b'"',
                    b"\\",
                    b"\\u0000",
                    b"\xff",
                    b"\xed\xa0\x80",
                    b"1",
                    b"e9",
                    b".",
                    b"-",
                    b"{",
                    b"[",
                    b",",
                    b"\xef\xbb\xbf",
                ]
            )
        )
    same_or_nothing(bytes(body), {})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0.7, "max_tokens": 256, "stream": False},
        {"temperature": 1, "top_p": None, "seed": -5},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": None},
    ],
)
def test_what_most_clients_send_goes_the_short_way(more: dict[str, Any]) -> None:
    body = json.dumps({**PLAIN, **more}).encode()
    assert decode_plain(body, {"json_depth": 64, "messages": 100_000}) == decode_any(body, {})


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": None},
        {"max_tokens": 0},
        {"temperature": 2.1},
        {"temperature": True},
        {"stream_options": {}},
        {"tools": []},
        {"user": "u"},
        {"messages": []},
        {"messages": [{**USER, "name": "n"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "nobody", "content": "x"}]},
    ],
)
def test_all_else_is_left_to_the_long_way(more: dict[str, Any]) -> None:
    assert decode_plain(json.dumps({**PLAIN, **more}).encode(), {}) is None


def test_the_bounds_hold_on_the_short_way_too() -> None:
    body = json.dumps({**PLAIN, "messages": [USER] * 5}).encode()
    assert decode_plain(body, {"messages": 4}) is None
    assert decode_plain(body, {"json_depth": 2}) is None
    assert decode_plain(b" " * jsonio.MAX_VALUES + body, {}) is None  # may hold too many values: the long way counts
    with pytest.raises(ClawError):
        decode_any(body, {"messages": 4})
    with pytest.raises(ClawError):
        decode_any(body, {"json_depth": 2})
    assert decode_any(body, {"json_depth": 3}) == decode_plain(body, {"json_depth": 3})
