"""A provider's errors, as rows of the table.

Rule 1: codes and types decide before statuses, and statuses before words. Money (`provider_error.quota`) is never taken for a
        rate limit: trying again can not help, and clients that read "quota" put a key out of use (WIRE 3.6).
Rule 2: of the provider's words only `error.message` of a 400 passes, redacted (K-01). Numbers taken out of words are safe.
Rule 3: what can not be read counts by its status alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from clawproxy.dialects.redact import words
from clawproxy.errors import KINDS, ProviderFault

QUOTA = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_error",
        "quota_exceeded",
        "insufficient_balance",
        "insufficient_funds",
        "enforced_spend_limit_reached",
        "access_terminated",
        "payment_required",
    }
)
CONTEXT = frozenset({"context_length_exceeded", "context_window_exceeded", "prompt_too_long"})
BY_CODE: Mapping[str, str] = {
    "rate_limit_exceeded": "rate_limited",
    "rate_limit_error": "rate_limited",
    "too_many_requests": "rate_limited",
    "invalid_api_key": "auth",
    "authentication_error": "auth",
    "permission_error": "auth",
    "model_not_found": "not_found",
    "not_found_error": "not_found",
    "overloaded_error": "overloaded",
    "overloaded": "overloaded",
    "service_unavailable": "overloaded",
    "engine_overloaded": "overloaded",
    "server_error": "server",
    "internal_error": "server",
    "internal_server_error": "server",
    "api_error": "server",
    "timeout": "server",
    "invalid_request_error": "rejected",
    "content_filter": "rejected",
}
BY_STATUS: Mapping[int, str] = {
    401: "auth",
    402: "quota",
    403: "auth",
    404: "not_found",
    408: "overloaded",  # both say "again, later", and neither that a rate was passed
    409: "overloaded",
    429: "rate_limited",
    503: "overloaded",
    529: "overloaded",
}
_SPENT = re.compile(r"spend(?:ing)? limit|exceeded your current quota|credit balance|insufficient (?:credit|balance|fund)", re.I)
_TOO_LONG = re.compile(
    r"maximum context length|context (?:window|length|size)|prompt is too long|too many (?:input |prompt )?tokens"
    r"|input (?:is too long|length exceeds)|exceeds? the (?:model's )?maximum (?:number of )?(?:input )?tokens",
    re.I,
)
_WINDOW = re.compile(r"(?:maximum context length|context (?:window|length|size)) (?:is|of) ([0-9]{1,9})\b", re.I)


def decode_error(status: int, headers: Mapping[str, str], body: bytes, now: float | None = None) -> ProviderFault:
    """The fault behind a status from 300 up. `now`: Unix time, for a Retry-After that is a date."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        document = None
    if isinstance(document, list) and len(document) == 1:  # Gemini's compatible endpoint wraps it
        document = document[0]
    error = document.get("error", document) if isinstance(document, dict) else None
    return classify(error, status, retry_after_ms(headers, now))


def classify(error: Any, status: int | None = None, retry_ms: int | None = None) -> ProviderFault:
    """The fault behind an `error` value: an object, a string (Ollama, some proxies) or nothing readable. Inside a stream there
    is no status but what the object says."""
    fields: Mapping[str, Any] = error if isinstance(error, dict) else {"message": error}
    said = fields.get("message")
    message = said[:4096] if isinstance(said, str) else ""
    if status is None:
        status = next((value for value in (fields.get("status"), fields.get("code")) if _is_status(value)), None)
    codes = [value.lower() for value in (fields.get("code"), fields.get("type"), _nested(fields)) if isinstance(value, str)]
    slug = _slug(codes, status, message)
    details: dict[str, Any] = {"provider_status": status, "retry_after_ms": retry_ms}
    if slug == "context_length_exceeded":
        return ProviderFault(slug, _context_words(message), **details)
    slug = f"provider_error.{slug}"
    if slug == "provider_error.rejected" and status == 400 and (shown := words(message)) is not None:
        return ProviderFault(slug, f"The provider rejected the request: {shown}", **details)
    return ProviderFault(slug, **details)


def _is_status(value: Any) -> bool:
    return type(value) is int and 300 <= value <= 599


def _nested(fields: Mapping[str, Any]) -> Any:
    """Anthropic's spend limit stands in `error.details.error_code`."""
    details = fields.get("details")
    return details.get("error_code") if isinstance(details, dict) else None


def _slug(codes: list[str], status: int | None, message: str) -> str:
    if any(code in QUOTA for code in codes) or (status in (402, 403, 429, None) and _SPENT.search(message)):
        return "quota"
    if any(code in CONTEXT for code in codes) or (status in (400, 413, 422, None) and _TOO_LONG.search(message)):
        return "context_length_exceeded"
    if status is not None:
        if status in BY_STATUS:
            return BY_STATUS[status]
        return "redirect" if status < 400 else "rejected" if status < 500 else "server"
    for code in codes:
        if code in BY_CODE:
            return BY_CODE[code]
    return "server"


def _context_words(message: str) -> str | None:
    match = _WINDOW.search(message)
    if match is None:
        return None
    return f"{KINDS['context_length_exceeded'].message} This model's maximum context length is {match[1]} tokens."


def retry_after_ms(headers: Mapping[str, str], now: float | None = None) -> int | None:
    """`retry-after-ms`, or `retry-after` as seconds or as an HTTP date (RFC 9110 10.2.3), held within 1..600 s; None where
    neither can be read. A stand-in for the truth beats believing that the provider is gone for a year."""
    millis = _decimal(headers.get("retry-after-ms"))
    if millis is None:
        text = headers.get("retry-after")
        seconds = _decimal(text)
        if seconds is None and text is not None:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
            except (ValueError, TypeError, OverflowError):
                return None
        if seconds is None:
            return None
        millis = seconds * 1000
    return round(min(max(millis, 1_000.0), 600_000.0))


def _decimal(text: str | None) -> float | None:
    """Digits with at most one point; no sign but `-`, no exponent, no `nan`."""
    if text is None or not re.fullmatch(r"-?[0-9]{1,30}(?:\.[0-9]{0,30})?", text := text.strip()):
        return None
    return float(text)
