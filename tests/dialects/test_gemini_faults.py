"""Gemini's errors as rows of the table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clawproxy.dialects import PROVIDER
from clawproxy.errors import ProviderFault

QUOTA = "You exceeded your current quota, please check your plan and billing details."
MINUTE = {"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}]}
DAY = {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12.5s"}
KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}


def fault(code: int, status: str, message: str, *details: Any, headers: dict[str, str] | None = None) -> ProviderFault:
    document = {"error": {"code": code, "message": message, "status": status, "details": list(details)}}
    made = [PROVIDER["gemini"].decode_error(code, headers or {}, json.dumps(each).encode()) for each in (document, [document])]
    assert (made[0].slug, made[0].details) == (made[1].slug, made[1].details), "alone or in an array of one"
    return made[0]


@pytest.mark.parametrize(
    ("code", "status", "message", "details", "slug"),
    [
        (400, "INVALID_ARGUMENT", "bad", [], "provider_error.rejected"),
        (400, "INVALID_ARGUMENT", "API key not valid.", [KEY], "provider_error.auth"),
        (401, "UNAUTHENTICATED", "no", [], "provider_error.auth"),
        (403, "PERMISSION_DENIED", "no", [], "provider_error.auth"),
        (404, "NOT_FOUND", "models/x is not found", [], "provider_error.not_found"),
        (429, "RESOURCE_EXHAUSTED", QUOTA, [], "provider_error.rate_limited"),
        (429, "RESOURCE_EXHAUSTED", QUOTA, [MINUTE, RETRY], "provider_error.rate_limited"),
        (429, "RESOURCE_EXHAUSTED", QUOTA, [DAY, RETRY], "provider_error.quota"),
        (500, "INTERNAL", "oh", [], "provider_error.server"),
        (503, "UNAVAILABLE", "overloaded", [], "provider_error.overloaded"),
        (504, "DEADLINE_EXCEEDED", "slow", [], "provider_error.server"),
        (
            400,
            "INVALID_ARGUMENT",
            "The input token count (9) exceeds the maximum number of tokens allowed (8).",
            [],
            "context_length_exceeded",
        ),
    ],
)
def test_what_went_wrong(code: int, status: str, message: str, details: list[Any], slug: str) -> None:
    made = fault(code, status, message, *details)
    assert (made.slug, made.details.provider_status) == (slug, code)


def test_when_to_come_back() -> None:
    assert fault(429, "RESOURCE_EXHAUSTED", "x", RETRY).details.retry_after_ms == 12_500
    assert fault(503, "UNAVAILABLE", "x", RETRY, headers={"retry-after": "3"}).details.retry_after_ms == 3_000
    assert fault(503, "UNAVAILABLE", "x", {"retryDelay": "0.05s"}).details.retry_after_ms == 1_000
    assert fault(503, "UNAVAILABLE", "x", {"retryDelay": "999999s"}).details.retry_after_ms == 600_000
    for odd in ("soon", "-5s", 12, None, "1e9s"):
        assert fault(503, "UNAVAILABLE", "x", {"retryDelay": odd}).details.retry_after_ms is None


@pytest.mark.parametrize(
    "details", [None, 5, "x", [5, None, {"violations": 7}, {"violations": [7, {"quotaId": 8}]}, {"reason": []}]]
)
def test_details_of_any_shape(details: Any) -> None:
    body = json.dumps({"error": {"code": 429, "message": 5, "details": details}}).encode()
    assert PROVIDER["gemini"].decode_error(429, {}, body).slug == "provider_error.rate_limited"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"error":"text"}', b"[" * 5000])
def test_a_body_that_can_not_be_read_counts_by_its_status(body: bytes) -> None:
    assert PROVIDER["gemini"].decode_error(503, {}, body).slug == "provider_error.overloaded"
