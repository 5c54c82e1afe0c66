"""The short way for plain requests gives what the careful way gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawproxy.dialects import claw, jsonio
from clawproxy.dialects.claw_plain import DEPTH, plain
from clawproxy.errors import ClawError

Raw = str
"""JSON as text: what a library would not write (escapes in keys, long exponents, duplicate keys) belongs to it, too."""


def outcome(call: Any) -> object:
    """What a call gives, types included, or the whole of its error."""
    try:
        value = call()
    except ClawError as error:
        return (error.slug, error.message, error.details)
    return repr(value)


def check(data: bytes, most: int = 3) -> bool:
    """Whether the short way took it; if so, it gave what the careful way gives."""
    frame = plain(data)
    if frame is None:
        return False
    careful = jsonio.decode(data, depth=DEPTH)
    assert careful["type"] == "llm_request"
    assert careful.get("id") == frame.id
    assert frame.id is None or claw.valid_id(frame.id)
    assert claw.deadline(careful) == frame.deadline()
    assert outcome(lambda: claw.decode_request(careful, max_messages=most)) == outcome(lambda: frame.request(most))
    return True


def escaped(text: str) -> Raw:
    return '"' + "".join(f"\\u{ord(char):04x}" for char in text) + '"'


STRINGS = st.one_of(
    st.sampled_from(
        ["", "a", "r1", "gpt-4o-mini", "cancel", "user", "system", "tool", "x" * 128, "x" * 129, "\0", "\x1b", "\u2028"]
    ),
    st.text(st.characters(exclude_categories=()), max_size=6),
).map(json.dumps)
EDGES = [
    "0", "-0", "-0.0", "1", "1.0", "1.0000001", "2", "2.0", "2.1", "3", "-1", "1e0", "1E+0", "1e-400", "1e400", "0e" + "0" * 30,
    "1." + "0" * 40, "2147483647", "2147483648", "86400000", "86400001", "9223372036854775807", "9223372036854775808",
    "-9223372036854775808", "-9223372036854775809", "18446744073709551616", "1" * 40, "01", "NaN", "1.", "+1", "null", "true",
    '""', '"x"', "[]", "{}", '[""]', '["x"]', json.dumps(["x"] * 16), json.dumps(["x"] * 17), json.dumps("x" * 128),
    json.dumps("x" * 129), '"\\u0000"', '"\\ud800"', '[{"role":"user","content":"x"}]', '[{"role":"user","content":null}]',
    "[null]", '[{"role":"tool","content":"x"}]', '[{"role":"user","content":"x","name":null}]',
    '[{"role":"user","content":"x","name":"n"}]',
    '[{"role":"user"}]', '{"user_id":"u"}', '{"user_id":1}', '{"a\\u0000":"x"}', '{"a":{}}', '"llm_request"', '"cancel"',
]  # fmt: skip
NUMBERS = st.integers(-3, 300).map(str) | st.floats(-1, 3).map(repr) | st.sampled_from(EDGES[:31])
SCALARS = STRINGS | NUMBERS | st.sampled_from(["null", "true", "false"])


def objects(keys: list[str], values: st.SearchStrategy[Raw]) -> st.SearchStrategy[Raw]:
    """Objects of these keys (now and then another, or the same once more, or one written with escapes)."""
    key = st.one_of(*[st.sampled_from(keys).map(json.dumps)] * 5, st.sampled_from(keys).map(escaped), STRINGS)
    return st.lists(st.tuples(key, values), max_size=4).map(lambda items: "{" + ",".join(f"{k}:{v}" for k, v in items) + "}")


def lists(values: st.SearchStrategy[Raw], most: int = 4) -> st.SearchStrategy[Raw]:
    return st.lists(values, max_size=most).map(lambda items: "[" + ", ".join(items) + "]")


STOP = STRINGS | lists(STRINGS) | st.just(json.dumps(["x"] * 16)) | st.just(json.dumps(["x"] * 17)) | SCALARS
PARAMETER = st.one_of(
    st.tuples(st.sampled_from(["max_tokens", "temperature", "top_p", "seed"]), NUMBERS),
    st.tuples(st.just("stop"), STOP),
    st.tuples(st.just("stream"), st.sampled_from(["true", "false"])),
    st.tuples(st.sampled_from(["max_tokens", "temperature", "stream", "tools", "n", "reasoning_effort"]), SCALARS),
)
PARAMETERS = st.lists(PARAMETER, max_size=4).map(lambda items: "{" + ",".join(f'"{k}":{v}' for k, v in items) + "}")
ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool", "nobody"]).map(json.dumps)
MESSAGE = st.tuples(ROLES, STRINGS | SCALARS).map(lambda pair: f'{{"role":{pair[0]},"content":{pair[1]}}}')
MESSAGES = lists(MESSAGE | objects(["role", "content", "name", "tool_call_id"], SCALARS), 5)
METADATA = objects(["user_id", "app", "tags", "x" * 65, "a\0b"], STRINGS | SCALARS)
DEADLINE = st.just('"deadline_ms"'), NUMBERS
FIELD = st.one_of(
    st.tuples(st.just('"prompt"'), STRINGS | SCALARS | MESSAGES),
    st.tuples(st.just('"messages"'), MESSAGES),
    st.tuples(st.just('"parameters"'), PARAMETERS),
    st.tuples(st.just('"parameters"'), PARAMETERS),
    st.tuples(st.just('"metadata"'), METADATA),
    st.tuples(*DEADLINE),
    st.tuples(st.sampled_from(["id", "model", "system", "type", "prompt", "on_disconnect", "session_id"]).map(escaped), SCALARS),
    st.tuples(st.sampled_from(["id", "model", "system", "prompt_stream", "idempotency_key", "x"]).map(json.dumps), SCALARS),
)
FIRST = [('"type"', '"llm_request"'), ('"model"', '"m"'), ('"prompt"', '"p"')]


@settings(max_examples=600, deadline=None)
@given(
    st.lists(FIELD, max_size=4),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
    st.sampled_from(["", " ", "\n", "x", "\ufeff"]),
)
@example([('"metadata"', '{"a\\u0000b":"x"}')], 3, None, "")
@example([('"parameters"', '{"temperature":1E' + "0" * 30 + "}")], 3, None, "")
def test_what_the_short_way_takes_the_careful_way_takes_too(
    fields: list[tuple[Raw, Raw]], first: int, random: Any, around: str
) -> None:
    items = [*FIRST[:first], *fields]
    if random is not None:
        random.shuffle(items)
    text = around + "{" + ",".join(f"{key}: {value}" for key, value in items) + "}" + around
    check(text.encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=60), st.integers(0, 80), st.integers(0, 12))
def test_nor_does_it_take_what_is_broken(junk: bytes, place: int, drop: int) -> None:
    data = b'{"type":"llm_request","id":"a","model":"m","prompt":"some words","parameters":{"temperature":0.5}}'
    check(data[:place] + junk + data[place + drop :])


def test_it_takes_the_common_ones() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "\u00e9"}]
    common: list[dict[str, Any]] = [
        {"prompt": "hi"},
        {"prompt": "hi", "id": "r1", "parameters": {"max_tokens": 256, "stream": True}},
        {"prompt": "hi", "system": "be kind", "parameters": {"temperature": 0, "top_p": 0.5, "stop": "x", "seed": -1}},
        {"messages": turns, "parameters": {"stop": ["a", "b"], "stream": False, "temperature": 2.0}, "deadline_ms": 5},
        {"prompt": "hi", "metadata": {"user_id": "u", "app": "a"}},
        {"prompt": "hi", "metadata": {"user_id": "\x1b"}},  # an error, and the same one
        {"messages": [*turns, turns[0]]},  # one too many
    ]
    for fields in common:
        for text in (json.dumps(fields), json.dumps(fields, ensure_ascii=False, indent=1)):
            assert check(f'{{"type":"llm_request","model":"m",{text[1:]}'.encode()), fields


@pytest.mark.parametrize("name", ["max_tokens", "temperature", "top_p", "stop", "seed", "stream", "tools", "parallel_tool_calls"])
def test_the_bounds_of_each_parameter(name: str) -> None:
    taken = [
        edge
        for edge in EDGES
        if check(f'{{"type":"llm_request","model":"m","prompt":"p","parameters":{{"{name}":{edge}}}}}'.encode())
    ]
    assert bool(taken) is (name not in ("tools", "parallel_tool_calls"))


@pytest.mark.parametrize(
    "name", ["type", "id", "model", "prompt", "messages", "system", "parameters", "metadata", "deadline_ms", "x"]
)
def test_the_bounds_of_each_field(name: str) -> None:
    given = {"type": '"llm_request"', "model": '"m"', "prompt": '"p"'}
    if name == "messages":
        del given["prompt"]
    taken = 0
    for edge in EDGES:
        taken += check(("{" + ",".join(f'"{key}":{value}' for key, value in (given | {name: edge}).items()) + "}").encode())
    assert bool(taken) is (name != "x")


def test_it_leaves_long_ones_to_the_careful_way() -> None:
    """The number of values is bounded by counting there, by the length here."""
    data = b'{"type":"llm_request","model":"m","prompt":"%s"}'
    assert plain(data % (b"x" * 100_000)) is not None
    assert plain(data % (b"x" * jsonio.MAX_VALUES)) is None
