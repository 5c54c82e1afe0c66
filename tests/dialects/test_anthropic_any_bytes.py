"""Whatever arrives, what comes out is an answer or an error of the table: never another exception."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.errors import KINDS, ClawError
from clawproxy.events import Outcome
from clawproxy.testing.factories import make_exchange, make_head, make_request, make_route

NAMES = st.sampled_from(
    [
        "type",
        "index",
        "message",
        "content_block",
        "delta",
        "usage",
        "error",
        "text",
        "thinking",
        "signature",
        "data",
        "id",
        "name",
        "input",
        "partial_json",
        "stop_reason",
        "stop_sequence",
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "output_tokens_details",
        "thinking_tokens",
        "details",
        "error_code",
        "role",
        "content",
        "model",
        "messages",
        "system",
        "tools",
        "tool_choice",
        "source",
        "media_type",
        "url",
        "file_id",
        "title",
        "tool_use_id",
        "is_error",
        "cache_control",
        "input_schema",
        "budget_tokens",
        "effort",
        "format",
        "schema",
        "citations",
        "max_tokens",
    ]
)
WORDS = st.sampled_from(
    [
        "text",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "image",
        "document",
        "server_tool_use",
        "text_delta",
        "thinking_delta",
        "base64",
        "url",
        "file",
        "signature_delta",
        "input_json_delta",
        "citations_delta",
        "user",
        "assistant",
        "system",
        "auto",
        "any",
        "tool",
        "none",
        "enabled",
        "json_schema",
        "end_turn",
        "",
        "\x00",
        "é",
    ]
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)
BLOCK = st.fixed_dictionaries(
    {"type": WORDS | ANY},
    optional=dict.fromkeys(("text", "thinking", "signature", "data", "id", "name", "input", "partial_json"), WORDS | ANY),
)
EVENTS = ("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop")
EVENT = st.tuples(
    st.sampled_from([*EVENTS, "ping", "error", "novel", ""]),
    st.fixed_dictionaries(
        {"type": st.sampled_from(EVENTS) | ANY},
        optional={
            "index": st.integers(0, 3) | ANY,
            "message": st.fixed_dictionaries({}, optional={"id": ANY, "usage": ANY, "content": ANY}) | ANY,
            "content_block": BLOCK | ANY,
            "delta": BLOCK | ANY,
            "usage": ANY,
            "error": ANY,
        },
    )
    | ANY,
)
PART = st.fixed_dictionaries(
    {"type": WORDS},
    optional={
        **dict.fromkeys(("text", "id", "name", "input", "thinking", "signature", "data", "tool_use_id"), WORDS | ANY),
        "source": st.fixed_dictionaries({"type": WORDS}, optional={"data": WORDS, "media_type": WORDS, "url": WORDS}) | ANY,
        "content": ANY | st.lists(st.fixed_dictionaries({"type": WORDS}, optional={"text": WORDS}), max_size=2),
    },
)
MESSAGE = st.fixed_dictionaries({"role": WORDS, "content": WORDS | st.lists(PART | ANY, max_size=3) | ANY}, optional={"x": ANY})
REQUEST = st.fixed_dictionaries(
    {"model": WORDS, "max_tokens": st.just(5) | ANY, "messages": st.lists(MESSAGE, max_size=3) | ANY},
    optional={
        name: ANY | st.fixed_dictionaries({"type": WORDS}) | WORDS
        for name in ("system", "tools", "tool_choice", "thinking", "output_config", "metadata", "stop_sequences", "stream", "x")
    },
)


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENT, max_size=5), st.lists(st.binary(max_size=6), max_size=2), st.booleans())
def test_any_stream(events: list[tuple[str, Any]], noise: list[bytes], rewritten: bool) -> None:
    request = make_request(stream=True, dialect="anthropic")
    decoder = PROVIDER["anthropic"].decoder(request)
    answer = CLIENT["anthropic"].answer(make_exchange(), request)
    pieces = [b"event: %b\ndata: %b\n\n" % (name.encode(), encoded(data)) for name, data in events] + noise
    for number, batch in enumerate([*map(decoder.feed, pieces), decoder.close()]):
        if batch is not None:
            answer.encode(batch.replaced(batch.events) if rewritten and number % 2 else batch)
    written = answer.finish(Outcome("complete"), None)
    assert written.endswith(b'message_stop"}\n\n') or not written


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({"content": st.lists(BLOCK | ANY, max_size=3) | ANY}, optional={"usage": ANY, "error": ANY}) | ANY)
def test_any_document(document: Any) -> None:
    for operation in ("chat", "count_tokens"):
        request = make_request(dialect="anthropic", operation=operation)
        decoder = PROVIDER["anthropic"].decoder(request)
        answer = CLIENT["anthropic"].answer(make_exchange(), request)
        assert decoder.feed(encoded(document)) is None
        batch = decoder.close()
        assert batch is not None
        answer.encode(batch.replaced(batch.events))
        if decoder.done:
            assert json.loads(answer.finish(Outcome("complete"), None))


@settings(max_examples=150, deadline=None)
@given(REQUEST | ANY, st.sampled_from(["/v1/messages", "/v1/messages/count_tokens"]))
def test_any_request(document: Any, target: str) -> None:
    refusal: ClawError | None = None
    try:
        request = CLIENT["anthropic"].decode_request(encoded(document), {}, make_head(target))
        for provider in ("anthropic", "openai_chat"):
            PROVIDER[provider].encode_request(request, make_route())
    except ClawError as error:
        refusal = error
    assert refusal is None or (refusal.status == 400 and refusal.message.isprintable())


@settings(max_examples=40, deadline=None)
@given(st.integers(300, 599), ANY | st.fixed_dictionaries({"type": st.just("error"), "error": st.dictionaries(NAMES, ANY)}))
def test_any_error(status: int, document: Any) -> None:
    assert PROVIDER["anthropic"].decode_error(status, {}, encoded(document)).slug in KINDS
