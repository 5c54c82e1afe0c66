"""Whatever arrives, what comes out of Ollama's and Cohere's formats is an answer or an error of the table: never another
exception, and the same however it was cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.errors import KINDS, ClawError
from clawproxy.events import End, Failed, Outcome
from clawproxy.messages import ChatRequest
from clawproxy.testing.factories import make_exchange, make_head, make_request, make_route
from tests.dialects.native import decoded


def words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split())


NAMES = words(
    "type delta message content text thinking tool_plan tool_calls function name arguments id index citations usage "
    "billed_units tokens cached_tokens input_tokens output_tokens finish_reason error embeddings float base64 meta "
    "model done done_reason prompt_eval_count eval_count messages role tools options format think stream images "
    "tool_call_id tool_name document documents data image_url url input prompt texts inputs response_format json_schema"
)
WORDS = words(
    "message-start content-start content-delta content-end tool-plan-delta tool-call-start tool-call-delta tool-call-end "
    "citation-start message-end COMPLETE ERROR TOOL_CALL user assistant tool text thinking document image_url function "
    "json stop load REQUIRED enabled json_object iVBORw0KGgo="
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)
CALL = st.fixed_dictionaries({}, optional={"id": ANY, "function": st.dictionaries(NAMES, ANY, max_size=3) | ANY})
CONTENT = st.fixed_dictionaries({}, optional={"type": WORDS, "text": ANY, "thinking": ANY}) | ANY
MESSAGE = st.fixed_dictionaries(
    {},
    optional={"role": WORDS, "content": CONTENT | st.lists(CONTENT, max_size=2), "tool_calls": CALL | st.lists(CALL, max_size=2)},
)
DELTA = st.fixed_dictionaries({}, optional={"message": MESSAGE | ANY, "finish_reason": WORDS | ANY, "usage": ANY, "error": ANY})
DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "type": WORDS | ANY,
        "index": st.integers(0, 3) | ANY,
        "delta": DELTA | ANY,
        "message": MESSAGE | ANY,
        "done": st.booleans() | ANY,
        "done_reason": WORDS,
        "error": ANY,
        "usage": ANY,
        "finish_reason": WORDS,
        "embeddings": ANY,
        "eval_count": ANY,
    },
)
DIALECTS = pytest.mark.parametrize("dialect", ["ollama", "cohere"])


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def told(dialect: str, request: ChatRequest, pieces: list[bytes]) -> tuple[list[Any], bytes]:
    """All that an answer says, failures by their slugs."""
    events, raw = decoded(PROVIDER[dialect].decoder(request), pieces)
    return [event.error.slug if isinstance(event, Failed) else event for event in events], raw


@DIALECTS
@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(DOCUMENT | ANY, max_size=4),
    stream=st.booleans(),
    operation=st.sampled_from(["chat", "embeddings"]),
    noise=st.binary(max_size=6),
    cut=st.integers(0, 400),
)
def test_any_answer(dialect: str, documents: list[Any], stream: bool, operation: str, noise: bytes, cut: int) -> None:
    request = make_request(stream=stream and operation == "chat", operation=operation, dialect=dialect)
    kind = f"{dialect}_embed" if operation == "embeddings" else dialect
    if request.stream and dialect == "cohere":
        body = b"".join(b"data: " + encoded(each) + b"\n\n" for each in documents) + noise
    elif request.stream:
        body = b"".join(encoded(each) + b"\n" for each in documents) + noise
    else:
        body = b"".join(encoded(each) for each in documents[:1]) + noise
    whole = told(dialect, request, [body])
    assert isinstance(whole[0][-1], End | str)
    assert told(dialect, request, [body[:cut], body[cut:]]) == whole
    assert told(dialect, request, [body[at : at + 1] for at in range(len(body))]) == whole
    decoder = PROVIDER[dialect].decoder(request)
    passed, made = (CLIENT[kind].answer(make_exchange(), request) for _ in range(2))
    try:
        for batch in [*map(decoder.feed, [body[:cut], body[cut:]]), decoder.close()]:
            if batch is not None:
                passed.encode(batch)
                made.encode(batch.replaced(batch.events))
        passed.finish(Outcome("complete"), None)
        made.finish(Outcome("complete"), None)
    except ClawError as error:
        assert error.slug == "provider_error.malformed"  # noqa: PT017  # arguments that are no object, vectors that are none


@pytest.mark.parametrize("kind", ["ollama", "ollama_generate", "ollama_embed", "ollama_embeddings", "cohere", "cohere_embed"])
@settings(max_examples=60, deadline=None)
@given(
    document=st.fixed_dictionaries({"model": WORDS, "messages": st.lists(MESSAGE, max_size=2) | ANY})
    | st.dictionaries(NAMES, ANY).map(lambda rest: {**rest, "model": "m", "messages": [{"role": "user", "content": "x"}]})
    | ANY
)
def test_any_request(kind: str, document: Any) -> None:
    refusal: ClawError | None = None
    try:
        request = CLIENT[kind].decode_request(encoded(document), {}, make_head())
        for provider in ("ollama", "cohere"):
            PROVIDER[provider].encode_request(request, make_route())
    except ClawError as error:
        refusal = error
    assert refusal is None or (refusal.status == 400 and refusal.message.isprintable())


@DIALECTS
@settings(max_examples=60, deadline=None)
@given(
    status=st.integers(300, 599), document=ANY | st.fixed_dictionaries({"message": ANY}) | st.fixed_dictionaries({"error": ANY})
)
def test_any_error(dialect: str, status: int, document: Any) -> None:
    assert PROVIDER[dialect].decode_error(status, {}, encoded(document)).slug in KINDS
    PROVIDER[dialect].decode_error(status, {}, str(document).encode(errors="replace"))
