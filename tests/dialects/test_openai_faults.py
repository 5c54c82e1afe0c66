"""A provider's errors become rows of the table, and its words stay with the gateway unless they may be told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.dialects.openai_chat.provider_faults import classify, decode_error, retry_after_ms

LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens."


def error(**fields: Any) -> dict[str, Any]:
    return {"error": {"message": "m", "type": None, "param": None, "code": None, **fields}}


@pytest.mark.parametrize(
    ("status", "document", "slug"),
    [
        (400, error(), "provider_error.rejected"),
        (400, error(code="context_length_exceeded"), "context_length_exceeded"),
        (400, error(message=LONG), "context_length_exceeded"),
        (400, error(message="prompt is too long: 9 tokens > 8 maximum"), "context_length_exceeded"),
        (413, error(message="Too many tokens"), "context_length_exceeded"),
        (413, error(), "provider_error.rejected"),
        (422, {"detail": [{"msg": "x"}]}, "provider_error.rejected"),
        (401, error(code="invalid_api_key"), "provider_error.auth"),
        (403, error(), "provider_error.auth"),
        (402, error(), "provider_error.quota"),
        (429, error(code="insufficient_quota"), "provider_error.quota"),
        (429, error(type="insufficient_quota"), "provider_error.quota"),
        (429, error(message="You exceeded your current quota, please check your plan"), "provider_error.quota"),
        (429, error(details={"error_code": "enforced_spend_limit_reached"}), "provider_error.quota"),
        (429, error(code="rate_limit_exceeded"), "provider_error.rate_limited"),
        (429, None, "provider_error.rate_limited"),
        (404, error(code="model_not_found"), "provider_error.not_found"),
        (408, error(), "provider_error.overloaded"),
        (409, error(), "provider_error.overloaded"),
        (418, error(), "provider_error.rejected"),
        (500, error(), "provider_error.server"),
        (502, "<html>", "provider_error.server"),
        (503, error(), "provider_error.overloaded"),
        (504, None, "provider_error.server"),
        (529, error(type="overloaded_error"), "provider_error.overloaded"),
        (302, None, "provider_error.redirect"),
        (500, [error(code="insufficient_quota")], "provider_error.quota"),
        (400, {"error": "a string"}, "provider_error.rejected"),
        (400, {"error": ["x"]}, "provider_error.rejected"),
        (400, {"error": {"message": {"a": 1}, "code": {"b": 1}, "type": 5}}, "provider_error.rejected"),
        (400, 5, "provider_error.rejected"),
    ],
)
def test_statuses_and_codes(status: int, document: Any, slug: str) -> None:
    fault = PROVIDER["openai_chat"].decode_error(status, {}, json.dumps(document).encode())
    assert fault.slug == slug
    assert fault.details.provider_status == status
    assert fault.sent


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 65_536, b'{"error":"\\ud800"}'])
def test_a_body_that_can_not_be_read_counts_by_its_status(body: bytes) -> None:
    assert decode_error(429, {}, body).slug == "provider_error.rate_limited"


@pytest.mark.parametrize(
    ("said", "slug"),
    [
        ({"code": 429, "message": "m"}, "provider_error.rate_limited"),
        ({"code": "429", "message": "m"}, "provider_error.server"),
        ({"type": "server_error"}, "provider_error.server"),
        ({"code": "rate_limit_exceeded"}, "provider_error.rate_limited"),
        ({"type": "overloaded_error"}, "provider_error.overloaded"),
        ({"type": "insufficient_quota"}, "provider_error.quota"),
        ({"code": "context_length_exceeded"}, "context_length_exceeded"),
        ({"message": LONG}, "context_length_exceeded"),
        ({"code": 1}, "provider_error.server"),
        ({"code": True}, "provider_error.server"),
        ("out of memory", "provider_error.server"),
        (5, "provider_error.server"),
    ],
)
def test_errors_inside_a_stream(said: Any, slug: str) -> None:
    assert classify(said).slug == slug


NOW = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT


@pytest.mark.parametrize(
    ("headers", "millis"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3_000),
        ({"retry-after": "0"}, 1_000),
        ({"retry-after": "-5"}, 1_000),
        ({"retry-after": "1.5"}, 1_500),
        ({"retry-after": "86400"}, 600_000),
        ({"retry-after": "9" * 30}, 600_000),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30_000),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 1_000),
        ({"retry-after": "Fri, 15 Jan 2099 07:00:00 GMT"}, 600_000),
        ({"retry-after": "Fri, 99 Jan 2027 07:00:00 GMT"}, None),
        ({"retry-after-ms": "1500"}, 1_500),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1_500),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9_000),
        ({"retry-after-ms": "1"}, 1_000),
    ],
)
def test_retry_after(headers: dict[str, str], millis: int | None) -> None:
    assert retry_after_ms(headers, NOW) == millis
    assert decode_error(429, headers, b"", NOW).details.retry_after_ms == millis


@settings(deadline=None)
@given(st.text(max_size=40))
@example("0\x1f")
def test_any_retry_after_is_read_or_not(text: str) -> None:
    millis = retry_after_ms({"retry-after": text}, NOW)
    assert millis is None or 1_000 <= millis <= 600_000


CANARY = "sk-canary-0123456789abcdef"


@pytest.mark.parametrize("status", [302, 400, 401, 402, 403, 404, 409, 413, 418, 422, 429, 500, 502, 503, 529])
@pytest.mark.parametrize(
    "document",
    [
        error(message=f"Incorrect API key provided: {CANARY}."),
        error(message=f"{LONG} {CANARY}"),
        error(code=CANARY, type=CANARY, param=CANARY),
        {"error": CANARY},
        {"detail": CANARY, "message": f"x {CANARY}"},
        {CANARY: CANARY},
    ],
)
def test_k01_the_key_never_reaches_the_client(status: int, document: Any) -> None:
    fault = decode_error(status, {"retry-after": CANARY}, json.dumps(document).encode())
    shown = CLIENT["openai_chat"].error_body(fault, "req-1").decode() + repr(fault)
    assert "canary" not in shown
    assert "0123456789" not in shown


def test_the_words_of_a_400_pass() -> None:
    fault = decode_error(
        400, {}, json.dumps(error(message="Invalid value: 'x'.\r\nSupported: 'y'. \x1b[2J" + "z " * 600)).encode()
    )
    assert fault.message.startswith("The provider rejected the request: Invalid value: 'x'. Supported: 'y'. [2Jz z")
    assert len(fault.message) < 560
    assert fault.message.isprintable()


@pytest.mark.parametrize("status", [401, 404, 422, 429, 500])
def test_the_words_of_others_do_not(status: int) -> None:
    assert "wisdom" not in decode_error(status, {}, json.dumps(error(message="wisdom")).encode()).message


def test_of_a_long_prompt_only_the_number_passes() -> None:
    fault = decode_error(400, {}, json.dumps(error(message=LONG)).encode())
    assert fault.message == (
        "The prompt does not fit the model's context window. This model's maximum context length is 8192 tokens."
    )
    plain = decode_error(400, {}, json.dumps(error(code="context_length_exceeded", message="it is long")).encode())
    assert plain.message == "The prompt does not fit the model's context window."
