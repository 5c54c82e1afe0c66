"""Embeddings in OpenAI's form: their request in, our request out, vectors back, whichever form they come in."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PATHS, PROVIDER
from clawproxy.dialects.openai_chat.client_embeddings import converted
from clawproxy.dialects.openai_chat.provider_embeddings import EmbeddingsDecoder, encode_embeddings
from clawproxy.dialects.profiles import PROFILES
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Begin, Embedding, End, Event, Failed, Outcome, Text, UsageReport
from clawproxy.messages import ChatRequest, Message, Usage
from clawproxy.testing.factories import make_exchange, make_head, make_request, make_route

CLIENT_SIDE = CLIENT["openai_embeddings"]
PROVIDER_SIDE = PROVIDER["openai_chat"]
ROUTE = make_route(model="upstream-model")


def decode(**fields: Any) -> ChatRequest:
    return CLIENT_SIDE.decode_request(json.dumps({"model": "m", **fields}).encode(), {"messages": 100}, make_head())


def sent(request: ChatRequest) -> dict[str, Any]:
    outbound = PROVIDER_SIDE.encode_request(request, ROUTE)
    assert (outbound.path, outbound.stream) == ("/embeddings", False)
    document: dict[str, Any] = json.loads(outbound.body)
    return document


def refused(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(ClawError) as caught:
        decode(**fields)
    assert caught.value.status == 400
    return caught.value.slug, caught.value.details.param


def test_where_it_is_served() -> None:
    assert PATHS["/v1/embeddings"] == PATHS["/openai/v1/embeddings"] == "openai_embeddings"


# --- requests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["one text", ["one text"], ["one", "", "three"]])
def test_each_input_is_a_user_message(given: Any) -> None:
    request = decode(input=given, user="u", dimensions=8, encoding_format="base64", later={"x": 1})
    texts = [given] if isinstance(given, str) else given
    assert request == ChatRequest(
        "m",
        tuple(Message("user", text) for text in texts),
        user="u",
        dialect="openai_chat",
        extra={"dimensions": 8, "encoding_format": "base64", "later": {"x": 1}},
        operation="embeddings",
    )
    assert sent(request) == {
        "model": "upstream-model", "input": texts, "user": "u", "dimensions": 8, "encoding_format": "base64", "later": {"x": 1},
    }  # fmt: skip


def test_a_policys_text_is_what_is_sent() -> None:
    request = decode(input=["secret", "b"])
    cleaned = evolve(request, messages=(Message("user", "***"), request.messages[1]), model="other")
    assert sent(cleaned) == {"model": "upstream-model", "input": ["***", "b"]}


@pytest.mark.parametrize(("given", "messages"), [([1, 2, 3], 1), ([[1, 2], [3]], 2)])
def test_tokens_go_to_the_same_dialect_only(given: Any, messages: int) -> None:
    request = decode(input=given)
    assert [message.text() for message in request.messages] == [""] * messages
    assert sent(request) == {"model": "upstream-model", "input": given}
    with pytest.raises(ClawError) as caught:
        sent(evolve(request, dialect="cohere"))
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", "input")


def test_other_dialects_bring_texts_only() -> None:
    request = make_request("text", operation="embeddings", dialect="gemini", user="u")
    assert sent(request) == {"model": "upstream-model", "input": ["text"]}


def test_a_hosts_own_names_hold_here_too() -> None:
    request = decode(input="x", dimensions=8, user="u", tools=5, response_format=5, store=True)
    body, notices = encode_embeddings(request, ROUTE, PROFILES["mistral"])
    assert json.loads(body) == {
        "model": "upstream-model", "input": ["x"], "output_dimension": 8, "tools": 5, "response_format": 5,
    }  # fmt: skip
    assert {notice.details["param"] for notice in notices} == {"user", "store"}


def test_the_form_of_vectors_is_for_the_client_side_alone() -> None:
    """No other provider needs to know `encoding_format`, which SDKs send unasked: no refusal, no notice."""
    from clawproxy.dialects.translate import leftovers

    assert leftovers(decode(input="x", encoding_format="base64"), "gemini", "has no place") == ()
    with pytest.raises(ClawError, match="dimensions"):
        leftovers(decode(input="x", dimensions=3), "gemini", "has no place")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [[1], [2.5]]}, "input[1]"),
        ({"input": [[1], "a"]}, "input[1]"),
        ({"input": ["x"] * 101}, "input"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "dimensions": True}, "dimensions"),
        ({"input": "x", "user": "a\nb"}, "user"),
        ({"input": "x", "model": ""}, "model"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields) == ("invalid_request", param)


@pytest.mark.parametrize("name", ["stream", "messages", "api_base"])
def test_what_is_no_parameter_is_refused(name: str) -> None:
    assert refused(input="x", **{name: True}) == ("unknown_parameter", name)


def test_a_body_that_is_no_object() -> None:
    with pytest.raises(ClawError, match="object"):
        CLIENT_SIDE.decode_request(b"[]", {}, make_head())


# --- answers -----------------------------------------------------------------------------------------------------------------


def document(*vectors: Any, **changes: Any) -> bytes:
    data = [{"object": "embedding", "index": place, "embedding": each} for place, each in enumerate(vectors)]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return json.dumps({"object": "list", "data": data, "model": "up", "usage": usage, **changes}).encode()


def answered(body: bytes) -> list[Event]:
    decoder = EmbeddingsDecoder()
    assert decoder.feed(body) is None
    batch = decoder.close()
    assert batch is not None
    assert decoder.close() is None
    return list(batch.events)


def test_an_answer_is_read_whole() -> None:
    events = answered(document([0.5, 1, -2], "AAAAPw=="))
    usage = Usage(7, 0, raw={"prompt_tokens": 7, "total_tokens": 7})
    assert events == [
        Begin("up"), Embedding(0, (0.5, 1.0, -2.0)), Embedding(1, "AAAAPw=="), UsageReport(usage), End(),
    ]  # fmt: skip


def test_an_index_counts_and_usage_may_be_missing() -> None:
    body = b'{"data":[{"index":1,"embedding":[1]},{"index":0,"embedding":[2]},{"embedding":[3]}]}'
    assert answered(body) == [Begin(), Embedding(1, (1.0,)), Embedding(0, (2.0,)), Embedding(2, (3.0,)), End()]


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        (b"", "cut"),
        (document([1])[:-20], "cut"),
        (b"null", "malformed"),
        (b"[]", "malformed"),
        (b'{"data":[]}', "malformed"),
        (b'{"data":null,"model":"x"}', "malformed"),
        (b'{"data":[{"embedding":null}]}', "malformed"),
        (b'{"data":[{"embedding":[1,"x"]}]}', "malformed"),
        (b'{"data":[{"index":0}]}', "malformed"),
        (b'{"data":[{"embedding":[1],"x":"\xff"}]}', "malformed"),
        (b'{"error":{"message":"busy","type":"overloaded_error"}}', "overloaded"),
    ],
)
def test_a_broken_answer_is_a_failure(body: bytes, slug: str) -> None:
    [event] = answered(body)
    assert isinstance(event, Failed)
    assert event.error.slug == f"provider_error.{slug}"


def test_an_answer_without_end_is_too_large() -> None:
    decoder = EmbeddingsDecoder(limit=10)
    assert decoder.feed(b"x" * 10) is None
    batch = decoder.feed(b"x")
    assert batch is not None
    assert [event.error.slug for event in batch.events if isinstance(event, Failed)] == ["provider_error.too_large"]
    assert decoder.feed(b"x") is decoder.close() is None


@given(st.data())
def test_any_bytes_make_a_batch(data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=60) | st.just(document([1.5], "AAAA")))
    place = data.draw(st.integers(0, len(body)))
    whole, cut = EmbeddingsDecoder(), EmbeddingsDecoder()
    whole.feed(body)
    cut.feed(body[:place])
    cut.feed(body[place:])
    one, two = whole.close(), cut.close()
    assert one is not None
    assert two is not None
    assert repr(one.events) == repr(two.events)
    assert type(one.events[-1]) in (End, Failed)


# --- to the client -----------------------------------------------------------------------------------------------------------


def written(*batches: Batch, usage: Usage | None = None, **fields: Any) -> bytes:
    encoder = CLIENT_SIDE.answer(make_exchange(requested_model="asked"), decode(input=["a", "b"], **fields))
    assert [encoder.encode(batch) for batch in batches] == [b""] * len(batches)
    return encoder.finish(Outcome("complete"), usage)


@pytest.mark.parametrize(("form", "vectors"), [("float", ([0.5, 1.0], [2.0])), ("base64", ("AAAAPw==", "AAAAQA=="))])
def test_the_providers_own_document_passes(form: str, vectors: Any) -> None:
    body = document(*vectors, note="theirs")
    assert written(Batch(answered(body), raw=body, dialect="openai_chat"), encoding_format=form) == body


@pytest.mark.parametrize(
    ("form", "came", "goes"),
    [
        ("float", ["AAAAPw==", "AAAAQA=="], [[0.5], [2.0]]),
        (None, ["AAAAPw==", "AAAAQA=="], [[0.5], [2.0]]),
        ("base64", [[0.5], [2.0]], ["AAAAPw==", "AAAAQA=="]),
    ],
)
def test_a_host_that_does_not_mind_the_form_is_corrected(form: str | None, came: Any, goes: Any) -> None:
    body = document(*came)
    made = json.loads(written(Batch(answered(body), raw=body, dialect="openai_chat"), encoding_format=form))
    assert made == {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": each} for place, each in enumerate(goes)],
        "model": "asked",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


def test_other_dialects_vectors_are_written_in_order() -> None:
    batches = Batch([Embedding(1, (2.0,))], dialect="gemini"), Batch([Embedding(0, (1.0,)), End()], dialect="gemini")
    made = json.loads(written(*batches, usage=Usage(3, 0)))
    assert [each["embedding"] for each in made["data"]] == [[1.0], [2.0]]
    assert made["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_an_answer_without_vectors_is_none() -> None:
    """A dialect that took the request for a chat."""
    with pytest.raises(ClawError) as caught:
        written(Batch([Text("Hello"), End()]))
    assert caught.value.slug == "provider_error.malformed"


def test_what_this_format_can_not_do_is_refused() -> None:
    with pytest.raises(ClawError, match=r"`test` \(openai_chat\) has no way to count tokens") as caught:
        PROVIDER_SIDE.encode_request(make_request(operation="count_tokens"), ROUTE)
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", "model")


def test_missing_usage_is_not_zero() -> None:
    assert json.loads(written(Batch([Embedding(0, (1.0,))])))["usage"] is None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=8))
def test_both_forms_say_the_same(values: list[float]) -> None:
    text = converted(tuple(values), str)
    assert isinstance(text, str)
    back = converted(text, tuple)
    assert isinstance(back, tuple)
    assert struct.pack(f"<{len(back)}f", *back) == struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize(("values", "form"), [("!", tuple), ("AAA=", tuple), ("AACAfw==", tuple), ((1e300,), str), ("é", tuple)])
def test_what_is_no_vector_is_the_providers_fault(values: Any, form: type) -> None:
    with pytest.raises(ClawError) as caught:
        converted(values, form)
    assert caught.value.slug == "provider_error.malformed"


def test_what_is_not_used() -> None:
    encoder = CLIENT_SIDE.answer(make_exchange(), decode(input="x"))
    assert encoder.fail(ClawError("internal")) == encoder.keepalive() == b""
    assert json.loads(CLIENT_SIDE.error_body(ClawError("internal"), "r"))["request_id"] == "r"
