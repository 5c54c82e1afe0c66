"""Whatever arrives, what comes out is an answer or an error of the table: never another exception."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.dialects.openai_chat.provider_faults import decode_error
from clawproxy.errors import KINDS, ClawError
from clawproxy.events import Outcome
from clawproxy.testing.factories import make_exchange, make_head, make_request, make_route

NAMES = st.sampled_from(
    [
        "id",
        "model",
        "choices",
        "delta",
        "message",
        "content",
        "role",
        "refusal",
        "reasoning",
        "reasoning_content",
        "tool_calls",
        "function_call",
        "index",
        "function",
        "name",
        "arguments",
        "custom",
        "input",
        "audio",
        "transcript",
        "finish_reason",
        "usage",
        "error",
        "code",
        "type",
        "param",
        "details",
        "status",
        "prompt_tokens",
        "completion_tokens",
        "prompt_tokens_details",
        "cached_tokens",
        "completion_tokens_details",
        "text",
        "thinking",
        "messages",
        "stream",
        "stream_options",
        "include_usage",
        "tools",
        "tool_choice",
        "parameters",
        "response_format",
        "json_schema",
        "image_url",
        "url",
        "input_audio",
        "data",
        "format",
        "file",
        "file_id",
        "metadata",
        "user",
        "stop",
        "seed",
        "max_tokens",
        "temperature",
        "n",
        "tool_call_id",
    ]
)
WORDS = st.sampled_from(
    ["", "user", "assistant", "tool", "text", "image_url", "file", "function", "custom", "json_schema", "stop", "a"]
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=25,
)
CALL = st.fixed_dictionaries({}, optional={"index": ANY, "id": ANY, "type": ANY, "function": ANY | st.dictionaries(NAMES, WORDS)})
DELTA = st.fixed_dictionaries(
    {}, optional={"content": ANY, "reasoning": ANY, "audio": ANY, "tool_calls": st.lists(CALL, max_size=2)}
)
CHOICE = st.fixed_dictionaries({}, optional={"delta": DELTA | ANY, "message": DELTA, "finish_reason": WORDS | ANY})
CHUNK = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE | ANY, max_size=2) | ANY}, optional={"usage": ANY, "error": ANY, "id": ANY}
)
PART = st.fixed_dictionaries({"type": WORDS}, optional={"text": ANY, "image_url": ANY, "file": ANY, "refusal": WORDS})
MESSAGE = st.fixed_dictionaries(
    {"role": WORDS, "content": WORDS | st.lists(PART | ANY, max_size=2) | ANY},
    optional={"tool_calls": st.lists(CALL | ANY, max_size=2), "tool_call_id": ANY, "name": ANY, "reasoning": ANY},
)


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


@settings(max_examples=60, deadline=None)
@given(st.lists(CHUNK | ANY, max_size=4), st.booleans(), st.booleans(), st.lists(st.binary(max_size=6), max_size=2))
def test_any_answer(chunks: list[Any], stream: bool, usage: bool, noise: list[bytes]) -> None:
    request = make_request(stream=stream, include_usage=usage)
    decoder = PROVIDER["openai_chat"].decoder(request)
    answer = CLIENT["openai_chat"].answer(make_exchange(), request)
    if stream:
        pieces = [b"data: " + encoded(chunk) + b"\n\n" for chunk in chunks] + noise
    else:
        pieces = [encoded(chunk) for chunk in chunks[:1]] + noise[:1]
    for batch in [*map(decoder.feed, pieces), decoder.close()]:
        if batch is not None:
            answer.encode(batch)
            answer.encode(batch.replaced(batch.events))
    written = answer.finish(Outcome("complete"), None)
    assert written.endswith(b"data: [DONE]\n\n" if stream else b"}") or not written


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({"model": WORDS, "messages": st.lists(MESSAGE, max_size=2) | ANY})
    | st.dictionaries(NAMES, ANY).map(lambda rest: {**rest, "model": "m", "messages": [{"role": "user", "content": "x"}]})
    | ANY
)
def test_any_request(document: Any) -> None:
    refusal: ClawError | None = None
    try:
        request = CLIENT["openai_chat"].decode_request(encoded(document), {}, make_head())
        PROVIDER["openai_chat"].encode_request(request, make_route())
    except ClawError as error:
        refusal = error
    assert refusal is None or (refusal.status == 400 and refusal.message.isprintable())


@settings(max_examples=60, deadline=None)
@given(st.integers(300, 599), ANY | st.fixed_dictionaries({"error": st.dictionaries(NAMES, ANY)}) | st.lists(ANY, max_size=1))
def test_any_error(status: int, document: Any) -> None:
    assert decode_error(status, {}, encoded(document)).slug in KINDS
    decode_error(status, {}, str(document).encode(errors="replace"))
